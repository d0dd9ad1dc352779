"""Where the questions lie that a probe is calibrated on, so that others can be told from them.

Thresholds hold for answers to questions like those that they come from. What tells is the normed residual stream of a
middle layer at the last prompt token: of SmolLM2's sets of questions, each that made too many false alarms lay outside
the others' domain (``docs/smollm2-report.md``). Its squared Mahalanobis distance over a covariance that is shrunk
(Ledoit and Wolf, Journal of Multivariate Analysis 88, 2004), in a random projection to AXES numbers: a token that is
served then costs as many products with its state, not one for each of its numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from guard.probe.heads import DistanceHead

AXES = 64
OUTSIDE = 0.05  # of the answers that thresholds come from: their questions lie outside the domain, by definition
_EACH = 4  # answers that each axis needs


def find_distance(states: NDArray[np.float32], layer: int, seed: int) -> DistanceHead:
    """The distance from ``states`` float32 [answers, width], of this layer at the last prompt tokens.

    Raises ValueError when they are too few.
    """
    count, width = states.shape
    axes = min(AXES, width, count // _EACH)
    if axes < 2:
        raise ValueError(f"{count} answers say too little of where their questions lie: ask more")
    x = states.astype(np.float64)
    mean, scale = x.mean(0), x.std(0)
    scale[scale <= 1e-6 * np.abs(mean) + 1e-12] = np.inf  # what never differs says nothing
    if not np.isfinite(scale).any():
        raise ValueError(f"the residual stream of layer {layer} is the same at the end of every prompt")
    turned = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, axes))).Q
    projection = turned / scale[:, None]
    shape = LedoitWolf(assume_centered=True).fit((x - mean) @ projection)
    values, vectors = np.linalg.eigh(shape.covariance_)
    weight = (projection @ vectors / np.sqrt(values)).T
    affine = np.concatenate([weight, -(weight @ mean)[:, None]], 1)
    return DistanceHead(np.array([layer], np.int32), affine[None].astype(np.float32))


def limit_of(distances: NDArray[np.float64]) -> float | None:
    """The one that all but OUTSIDE of these [answers] are within; None where it was measured of too few.

    One that is not finite, or missing, is beyond every limit.
    """
    if not np.isfinite(distances).any():
        return None
    limit = float(np.quantile(np.nan_to_num(distances, nan=np.inf), 1 - OUTSIDE, method="higher"))
    return limit if np.isfinite(limit) else None
