"""The layout of a probe's neurons over a model's layers, as the engine's taps need it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LayerTap:
    """What one tapped layer reads: neuron int64 [K]; folded float32 [K], 0 where padded; scaled int64 [<=K]."""

    layer: int
    neuron: NDArray[np.int64]
    folded: NDArray[np.float32]
    scaled: NDArray[np.int64]

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
            padding = width - int(chosen.sum())
            taps[int(number)] = LayerTap(
                int(number),
                np.pad(neuron[chosen].astype(np.int64), (0, padding)),
                np.pad(folded[chosen], (0, padding)),
                neuron[chosen & (coefficient > 0)].astype(np.int64),
            )
        return cls(taps, width)

    def summary(self) -> dict[str, Any]:
        """What goes into the engine's configuration, and so into its compile-cache key."""
        return {"layers": sorted(self.layers), "width": self.width}
