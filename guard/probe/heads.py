"""Linear heads on layers' states: what a probe may read beside neurons.

A token's score is sum_l w_l . x_l over a few layers, w_l a weight for each number of layer l's state x_l at a site
(``guard.probe.signals``: RESIDUAL, ATTENTION). No intercept: the stack that the score enters has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.probe.signals import HEADS

HEAD_TENSORS: dict[str, type[np.generic]] = {
    tensor: dtype for name in HEADS for tensor, dtype in ((f"{name}_layer", np.int32), (f"{name}_weight", np.float32))
}


@dataclass(frozen=True, slots=True)
class Head:
    """layer int32 [m], ascending; weight float32 [m, width], of a layer's state, not standardised."""

    layer: NDArray[np.int32]
    weight: NDArray[np.float32]

    def score(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        """Of states [n, m, width], those of ``layer`` in that order."""
        return np.einsum("nmw,mw->n", states, self.weight, dtype=np.float64)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Head)
            and np.array_equal(self.layer, other.layer)
            and np.array_equal(self.weight, other.weight)
        )

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, and for messages."""
        return {"layer": self.layer.tolist(), "weight": self.weight.tolist()}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Head:
        """As ``to_dict`` wrote it."""
        return cls(np.array(row["layer"], np.int32), np.array(row["weight"], np.float32))


def tensors_of(heads: Mapping[str, Head]) -> dict[str, NDArray[np.generic]]:
    """A bundle's tensors, by their names, of these heads, by name of a signal."""
    found: dict[str, NDArray[np.generic]] = {}
    for name, head in heads.items():
        found[f"{name}_layer"], found[f"{name}_weight"] = head.layer, head.weight
    return found


def heads_in(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Head]:
    """The heads among a bundle's checked tensors, by name of a signal."""
    return {
        name: Head(tensors[f"{name}_layer"], tensors[f"{name}_weight"]) for name in HEADS if f"{name}_layer" in tensors
    }


def head_flaw(tensors: Mapping[str, NDArray[Any]], layers: int) -> str | None:
    """What is wrong with a bundle's tensors of heads, of a model with so many layers; None where nothing is."""
    for name in HEADS:
        parts = [f"{name}_layer", f"{name}_weight"]
        missing = [part for part in parts if part not in tensors]
        if len(missing) == 1:
            return f"tensor {missing[0]!r} is missing, and the other of its head is there"
        if missing:
            continue
        layer, weight = (tensors[part] for part in parts)
        if len(layer) == 0 or weight.shape[0] != len(layer) or weight.shape[1] == 0:
            return f"{parts[1]!r} must have a row for each layer in {parts[0]!r}, and there must be one"
        if layer[0] < 0 or layer[-1] >= layers or np.any(np.diff(layer) <= 0):
            return f"{parts[0]!r} must ascend, within 0..{layers - 1}"
        if not np.isfinite(weight).all():
            return f"tensor {parts[1]!r} has values that are not finite"
    return None
