"""The layout of a probe's neurons and heads over a model's layers, and what the engine's configuration says of it.

The latter is ``VllmConfig.additional_config["hguard"]``: vLLM hashes it into the key of its compile cache and hands it
to every worker. Without it a graph that was compiled without taps would be loaded from the cache, silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import TapError, UnsupportedError
from guard.probe.bundle import Bundle, load_bundle
from guard.probe.heads import Head, head_from

KEY = "hguard"
# Which ops a compiled graph calls, and with what. Raised whenever that changes: no cache must bring back a graph that
# calls them as they were.
OPS = 5


@dataclass(frozen=True, slots=True)
class LayerTap:
    """What one tapped layer reads: neuron int64 [K]; folded float32 [K], 0 where padded; scaled int64 [<=K]."""

    layer: int
    neuron: NDArray[np.int64]
    folded: NDArray[np.float32]
    scaled: NDArray[np.int64]

    def padded(self, width: int) -> LayerTap:
        """The same with room for ``width`` neurons: what is added weighs 0."""
        further = width - len(self.neuron)
        return replace(self, neuron=np.pad(self.neuron, (0, further)), folded=np.pad(self.folded, (0, further)))

    def shard(self, start: int, size: int) -> LayerTap:
        """This tap on a rank that holds neurons start..start+size-1: indices become local, foreign ones weigh 0."""
        local = self.neuron - start
        own = (local >= 0) & (local < size)
        scaled = self.scaled - start
        return LayerTap(
            self.layer,
            np.where(own, local, 0),
            np.where(own, self.folded, np.float32(0)),
            scaled[(scaled >= 0) & (scaled < size)],
        )


@dataclass(frozen=True, slots=True)
class TapSpec:
    """All taps of a probe. Every layer is padded to the same K, so that compiled layers stay alike.

    heads: by name of a signal and layer, the weight of each number of its states, float32 [width]; of DISTANCE
    float32 [k, width + 1] (``guard.probe.heads``).
    """

    layers: dict[int, LayerTap]
    width: int
    heads: dict[str, dict[int, NDArray[np.float32]]] = field(default_factory=dict)

    @classmethod
    def from_arrays(
        cls,
        layer: NDArray[np.int32],
        neuron: NDArray[np.int32],
        folded: NDArray[np.float32],
        coefficient: NDArray[np.float32],
        heads: Mapping[str, Head] | None = None,
    ) -> TapSpec:
        """Group a verified probe's k neurons, and its heads by name of a signal, by layer."""
        width = int(np.unique(layer, return_counts=True)[1].max(initial=0))
        taps = {}
        for number in np.unique(layer).tolist():
            chosen = layer == number
            scaled = neuron[chosen & (coefficient > 0)].astype(np.int64)
            own = LayerTap(int(number), neuron[chosen].astype(np.int64), folded[chosen], scaled)
            taps[int(number)] = own.padded(width)
        by_layer = {
            name: dict(zip(head.layer.tolist(), head.weight, strict=True)) for name, head in (heads or {}).items()
        }
        return cls(taps, width, by_layer)

    def fitted(self, layers: Sequence[int], width: int) -> TapSpec:
        """These taps in these layers, each with room for ``width`` neurons; a layer that has none reads nothing.

        Raises UnsupportedError for neurons that have no room there.
        """
        if missing := sorted(self.layers.keys() - set(layers)):
            raise UnsupportedError(f"it reads neurons of layers {', '.join(map(str, missing))}, which are not tapped")
        if self.width > width:
            raise UnsupportedError(f"it reads {self.width} neurons of a layer, and there is room for {width}")
        none = LayerTap(0, np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64))
        return TapSpec(
            {layer: replace(self.layers.get(layer, none), layer=layer).padded(width) for layer in layers},
            width,
            self.heads,
        )

    def summary(self) -> dict[str, Any]:
        """What goes into the engine's configuration, and so into its compile-cache key."""
        return {"layers": sorted(self.layers), "width": self.width, "heads": self.head_shapes}

    @property
    def head_shapes(self) -> dict[str, dict[int, int]]:
        """By name of a signal and layer, how many weights there are."""
        return {
            name: {layer: one.size for layer, one in sorted(weights.items())} for name, weights in self.heads.items()
        }


def by_neuron(bundle: Bundle, layers: Sequence[int], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the taps of ``layers`` have of each entry, float64 [layers, K], as of the bundle's neurons: float64 [k]."""
    found = np.empty(len(bundle.layer))
    for row, layer in zip(values, layers, strict=True):
        own = np.flatnonzero(bundle.layer == layer)
        found[own] = row[: len(own)]
    return found


def spec_of(bundle: Bundle) -> TapSpec:
    """The tap layout of a bundle."""
    return TapSpec.from_arrays(bundle.layer, bundle.neuron, bundle.folded, bundle.coefficient, bundle.tapped_heads)


def sendable(bundle: Bundle) -> dict[str, Any]:
    """A bundle's neurons and heads for a message to the workers, on whatever node."""
    neurons = {name: getattr(bundle, name).tolist() for name in ("layer", "neuron", "folded", "coefficient")}
    return {**neurons, "heads": {name: head.to_dict() for name, head in bundle.tapped_heads.items()}}


def received(sent: Mapping[str, Any]) -> TapSpec:
    """The layout of what was ``sendable``."""
    layer, neuron = (np.array(sent[name], np.int32) for name in ("layer", "neuron"))
    folded, coefficient = (np.array(sent[name], np.float32) for name in ("folded", "coefficient"))
    heads = {name: head_from(name, head) for name, head in sent["heads"].items()}
    return TapSpec.from_arrays(layer, neuron, folded, coefficient, heads)


@dataclass(frozen=True, slots=True)
class TapConfig:
    """Which bundle to tap, and the layout that it must have. heads: as ``TapSpec.head_shapes``. apart: whether neurons
    can be told apart, which compiled graphs keep room for."""

    bundle: str
    sha256: str
    layers: list[int]
    width: int
    heads: dict[str, dict[int, int]] = field(default_factory=dict)
    apart: bool = False
    ops: int = OPS

    @classmethod
    def of(cls, bundle: Bundle, room: int = 0, apart: bool = False) -> TapConfig:
        """``room``: how many neurons each layer of the model has room for, so that another probe may take their place;
        0: for this probe's, where it has any."""
        summary = spec_of(bundle).summary()
        layers = list(range(bundle.card.model.layers)) if room else summary["layers"]
        path, width = str(bundle.path.resolve()), max(summary["width"], room)
        return cls(path, bundle.card.tensors_sha256, layers, width, summary["heads"], apart)

    @classmethod
    def find(cls, additional_config: Any) -> TapConfig | None:
        """The configuration in ``additional_config``, or None."""
        found = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        if found is None:
            return None
        # Of a configuration that was JSON on its way, a layer is a string.
        heads = {name: {int(layer): width for layer, width in one.items()} for name, one in found["heads"].items()}
        return cls(**{**found, "heads": heads})

    def additional_config(self) -> dict[str, Any]:
        return {KEY: asdict(self)}

    def spec(self) -> TapSpec:
        """Load the bundle again, in the worker. Raises TapError when it changed since the server read it."""
        bundle = load_bundle(Path(self.bundle))
        if bundle.card.tensors_sha256 != self.sha256:
            raise TapError(f"probe bundle {self.bundle} changed while the engine was starting; start again")
        return self.fitted(spec_of(bundle))

    def fitted(self, spec: TapSpec) -> TapSpec:
        """A probe's taps where this configuration has room. Raises UnsupportedError where it has none."""
        for name, shapes in spec.head_shapes.items():
            tapped = self.heads.get(name, {})
            if lacking := [layer for layer, width in shapes.items() if tapped.get(layer) != width]:
                raise UnsupportedError(
                    f"its head on {name} is of layers {', '.join(map(str, lacking))}, which the running engine does "
                    "not read in that size: restart the server with it"
                )
        return spec.fitted(self.layers, self.width)
