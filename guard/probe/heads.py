"""Heads on layers' states: what a probe may read beside neurons.

A token's score is sum_l w_l . x_l over a few layers, w_l a weight for each number of layer l's state x_l at a site
(``guard.probe.signals``: RESIDUAL, ATTENTION, BLOCK). No intercept: the stack that the score enters has one.

DISTANCE is of one layer, and not linear: the mean of the squares of k numbers, each w . x plus a number of its own.
With the axes of a covariance as w, each over its deviation, that is the squared Mahalanobis distance over k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.probe.signals import DISTANCE, OF_STATES

HEAD_TENSORS: dict[str, type[np.generic]] = {
    tensor: dtype
    for name in OF_STATES
    for tensor, dtype in ((f"{name}_layer", np.int32), (f"{name}_weight", np.float32))
}


@dataclass(frozen=True, slots=True)
class Head:
    """layer int32 [m], ascending; weight float32 [m, width], of a layer's state, not standardised."""

    layer: NDArray[np.int32]
    weight: NDArray[np.float32]

    @property
    def width(self) -> int:
        """Of a state."""
        return self.weight.shape[-1]

    @property
    def table(self) -> NDArray[np.float32]:
        """As a bundle keeps it, two-dimensional."""
        return self.weight

    def by_layer(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        """What each layer adds to the scores of states [n, m, width], those of ``layer`` in that order: [n, m]."""
        return np.einsum("nmw,mw->nm", states, self.weight, dtype=np.float64)

    def score(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores [n] of states [n, m, width]."""
        return self.by_layer(states).sum(1)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Head)
            and np.array_equal(self.layer, other.layer)
            and np.array_equal(self.weight, other.weight)
        )

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, and for messages."""
        return {"layer": self.layer.tolist(), "weight": self.table.tolist()}


class DistanceHead(Head):
    """layer int32 [1]; weight float32 [1, k, width + 1], whose last column is added to the products with the others."""

    __slots__ = ()

    @property
    def width(self) -> int:
        return self.weight.shape[-1] - 1

    @property
    def table(self) -> NDArray[np.float32]:
        return self.weight[0]

    def by_layer(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        axes = np.einsum("nmw,mkw->nmk", states, self.weight[..., :-1], dtype=np.float64) + self.weight[..., -1]
        return np.asarray(np.square(axes).mean(-1))


def head_of(name: str, layer: NDArray[np.int32], table: NDArray[np.float32]) -> Head:
    """The head of this signal, of what a bundle keeps."""
    return DistanceHead(layer, table[None]) if name == DISTANCE else Head(layer, table)


def head_from(name: str, row: Mapping[str, Any]) -> Head:
    """As ``to_dict`` wrote it."""
    return head_of(name, np.array(row["layer"], np.int32), np.array(row["weight"], np.float32))


def tensors_of(heads: Mapping[str, Head]) -> dict[str, NDArray[np.generic]]:
    """A bundle's tensors, by their names, of these heads, by name of a signal."""
    found: dict[str, NDArray[np.generic]] = {}
    for name, head in heads.items():
        found[f"{name}_layer"], found[f"{name}_weight"] = head.layer, head.table
    return found


def heads_in(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Head]:
    """The heads among a bundle's checked tensors, by name of a signal."""
    return {
        name: head_of(name, tensors[f"{name}_layer"], tensors[f"{name}_weight"])
        for name in OF_STATES
        if f"{name}_layer" in tensors
    }


def head_flaw(tensors: Mapping[str, NDArray[Any]], layers: int) -> str | None:
    """What is wrong with a bundle's tensors of heads, of a model with so many layers; None where nothing is."""
    for name in OF_STATES:
        parts = [f"{name}_layer", f"{name}_weight"]
        missing = [part for part in parts if part not in tensors]
        if len(missing) == 1:
            return f"tensor {missing[0]!r} is missing, and the other of its head is there"
        if missing:
            continue
        layer, weight = (tensors[part] for part in parts)
        if name == DISTANCE:
            if len(layer) != 1 or weight.shape[0] == 0 or weight.shape[1] < 2:
                return f"{parts[0]!r} must name one layer, and {parts[1]!r} have a row for each axis"
        elif len(layer) == 0 or weight.shape[0] != len(layer) or weight.shape[1] == 0:
            return f"{parts[1]!r} must have a row for each layer in {parts[0]!r}, and there must be one"
        if layer[0] < 0 or layer[-1] >= layers or np.any(np.diff(layer) <= 0):
            return f"{parts[0]!r} must ascend, within 0..{layers - 1}"
        if not np.isfinite(weight).all():
            return f"tensor {parts[1]!r} has values that are not finite"
    return None
