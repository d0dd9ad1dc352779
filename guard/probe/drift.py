"""Whether live risks are distributed as those of the calibration answers: ten bands, as many of those in each.

The population stability index of shares p against the calibration's q is sum_b (p_b - q_b) ln(p_b / q_b): the two
Kullback-Leibler divergences added (Jeffreys, 1946; in credit scoring below 0.1 is called stable, above 0.25 shifted).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BANDS = 10
LEAST = 100  # calibration answers below which the shares of ten bands are mostly chance
FLOOR = 1e-4  # of a share: an empty band is a large shift, not an infinite one


@dataclass(frozen=True, slots=True)
class Bands:
    """edges: the risks at which the next band begins, ascending, one fewer than bands; shares: of the calibration
    answers in each, their sum 1."""

    edges: tuple[float, ...]
    shares: tuple[float, ...]

    def of(self, risk: float) -> int:
        """The band of a risk."""
        return int(np.searchsorted(self.edges, np.float32(risk), side="right"))


def bands(risks: NDArray[np.float32]) -> Bands | None:
    """Bands of these calibration risks [m] at their deciles; None when they are too few.

    Where many risks are equal (isotonic calibration has plateaus) bands are fewer and their shares differ.
    """
    if len(risks) < LEAST:
        return None
    edges = np.unique(np.quantile(risks, np.arange(1, BANDS) / BANDS, method="higher").astype(np.float32))
    edges = edges[edges > risks.min()]
    counts = np.bincount(np.searchsorted(edges, risks, side="right"), minlength=len(edges) + 1)
    return Bands(tuple(map(float, edges)), tuple(float(count) / len(risks) for count in counts))


def psi(shares: Sequence[float], expected: Sequence[float]) -> float:
    """The population stability index of ``shares`` against ``expected``; what the recording rule computes, too."""
    p, q = (np.maximum(np.asarray(values, np.float64), FLOOR) for values in (shares, expected))
    return float(np.sum((p - q) * np.log(p / q)))
