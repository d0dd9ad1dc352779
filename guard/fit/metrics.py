"""How well a score tells wrong answers from right ones, with bootstrap intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from guard.probe.card import Interval

Floats = NDArray[np.floating]


def auroc(wrong: NDArray[np.bool_], score: Floats, seed: int = 0, draws: int = 1000) -> Interval:
    """Area under the ROC curve with a percentile bootstrap 95 % interval over answers."""
    rng = np.random.default_rng(seed)
    values: list[float] = []
    while len(values) < draws:
        chosen = rng.integers(0, len(wrong), len(wrong))
        if wrong[chosen].any() and not wrong[chosen].all():
            values.append(roc_auc_score(wrong[chosen], score[chosen]))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(value=float(roc_auc_score(wrong, score)), low=float(low), high=float(high))


def ece(wrong: NDArray[np.bool_], risk: Floats, bins: int = 10) -> float:
    """Expected calibration error over equally wide bins of risk (Guo et al., 2017)."""
    place = np.minimum((risk * bins).astype(int), bins - 1)
    gaps = [
        abs(float(wrong[place == b].mean()) - float(risk[place == b].mean())) * float((place == b).mean())
        for b in range(bins)
        if (place == b).any()
    ]
    return float(sum(gaps))


def brier(wrong: NDArray[np.bool_], risk: Floats) -> float:
    """Mean squared error of the risk as a probability."""
    return float(np.mean((risk - wrong) ** 2))
