"""The layout of a probe's neurons over a model's layers, and what the engine's configuration says of it.

The latter is ``VllmConfig.additional_config["hguard"]``: vLLM hashes it into the key of its compile cache and hands it
to every worker. Without it a graph that was compiled without taps would be loaded from the cache, silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import TapError, UnsupportedError
from guard.probe.bundle import Bundle, load_bundle

KEY = "hguard"
# Which ops a compiled graph calls, and with what. Raised whenever that changes: no cache must bring back a graph that
# calls them as they were.
OPS = 2


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
    """All taps of a probe. Every layer is padded to the same K, so that compiled layers stay alike."""

    layers: dict[int, LayerTap]
    width: int

    @classmethod
    def from_arrays(
        cls,
        layer: NDArray[np.int32],
        neuron: NDArray[np.int32],
        folded: NDArray[np.float32],
        coefficient: NDArray[np.float32],
    ) -> TapSpec:
        """Group a verified probe's k > 0 neurons by layer."""
        width = int(np.unique(layer, return_counts=True)[1].max())
        taps = {}
        for number in np.unique(layer).tolist():
            chosen = layer == number
            scaled = neuron[chosen & (coefficient > 0)].astype(np.int64)
            own = LayerTap(int(number), neuron[chosen].astype(np.int64), folded[chosen], scaled)
            taps[int(number)] = own.padded(width)
        return cls(taps, width)

    def fitted(self, layers: Sequence[int], width: int) -> TapSpec:
        """These taps in these layers, each with room for ``width`` neurons; a layer that has none reads nothing.

        Raises UnsupportedError for what has no room there.
        """
        if missing := sorted(self.layers.keys() - set(layers)):
            raise UnsupportedError(f"it reads neurons of layers {', '.join(map(str, missing))}, which are not tapped")
        if self.width > width:
            raise UnsupportedError(f"it reads {self.width} neurons of a layer, and there is room for {width}")
        none = LayerTap(0, np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64))
        return TapSpec(
            {layer: replace(self.layers.get(layer, none), layer=layer).padded(width) for layer in layers}, width
        )

    def summary(self) -> dict[str, Any]:
        """What goes into the engine's configuration, and so into its compile-cache key."""
        return {"layers": sorted(self.layers), "width": self.width}


def spec_of(bundle: Bundle) -> TapSpec:
    """The tap layout of a bundle."""
    return TapSpec.from_arrays(bundle.layer, bundle.neuron, bundle.folded, bundle.coefficient)


def sendable(bundle: Bundle) -> dict[str, list[Any]]:
    """A bundle's neurons for a message to the workers, on whatever node."""
    return {name: getattr(bundle, name).tolist() for name in ("layer", "neuron", "folded", "coefficient")}


def received(neurons: dict[str, list[Any]]) -> TapSpec:
    """The layout of what was ``sendable``."""
    layer, neuron = (np.array(neurons[name], np.int32) for name in ("layer", "neuron"))
    folded, coefficient = (np.array(neurons[name], np.float32) for name in ("folded", "coefficient"))
    return TapSpec.from_arrays(layer, neuron, folded, coefficient)


@dataclass(frozen=True, slots=True)
class TapConfig:
    """Which bundle to tap, and the layout that it must have."""

    bundle: str
    sha256: str
    layers: list[int]
    width: int
    ops: int = OPS

    @classmethod
    def of(cls, bundle: Bundle, room: int = 0) -> TapConfig:
        """``room``: how many neurons each layer of the model has room for, so that another probe may take their place;
        0: for this probe's, where it has any."""
        summary = spec_of(bundle).summary()
        layers = list(range(bundle.card.model.layers)) if room else summary["layers"]
        return cls(str(bundle.path.resolve()), bundle.card.tensors_sha256, layers, max(summary["width"], room))

    @classmethod
    def find(cls, additional_config: Any) -> TapConfig | None:
        """The configuration in ``additional_config``, or None."""
        found = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        return None if found is None else cls(**found)

    def additional_config(self) -> dict[str, Any]:
        return {KEY: asdict(self)}

    def spec(self) -> TapSpec:
        """Load the bundle again, in the worker. Raises TapError when it changed since the server read it."""
        bundle = load_bundle(Path(self.bundle))
        if bundle.card.tensors_sha256 != self.sha256:
            raise TapError(f"probe bundle {self.bundle} changed while the engine was starting; start again")
        return self.fitted(bundle)

    def fitted(self, bundle: Bundle) -> TapSpec:
        """The taps of a bundle where this configuration has room. Raises UnsupportedError where it has none."""
        return spec_of(bundle).fitted(self.layers, self.width)
