"""How well a score tells wrong answers from right ones, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from guard.probe.card import Interval

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


def bootstrap(
    wrong: Bools, score: Floats, statistic: Callable[[Bools, Floats], float], seed: int = 0, draws: int = 1000
) -> Interval:
    """A statistic with its percentile bootstrap 95 % interval over answers; both kinds must be there."""
    rng = np.random.default_rng(seed)
    values: list[float] = []
    while len(values) < draws:
        chosen = rng.integers(0, len(wrong), len(wrong))
        if wrong[chosen].any() and not wrong[chosen].all():
            values.append(statistic(wrong[chosen], score[chosen]))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(value=float(statistic(wrong, score)), low=float(low), high=float(high))


def auroc(wrong: Bools, score: Floats, seed: int = 0, draws: int = 1000) -> Interval:
    """Area under the ROC curve."""
    return bootstrap(wrong, score, roc_auc_score, seed, draws)


def auprc(wrong: Bools, score: Floats, seed: int = 0, draws: int = 1000) -> Interval:
    """Area under the precision-recall curve (average precision); chance is the share of wrong answers."""
    return bootstrap(wrong, score, average_precision_score, seed, draws)


def recall_at(wrong: Bools, score: Floats, rate: float, seed: int = 0, draws: int = 1000) -> Interval:
    """Share of wrong answers above the score that at most ``rate`` of the right ones exceed."""

    def statistic(wrong: Bools, score: Floats) -> float:
        right = np.sort(score[~wrong])
        limit = right[min(len(right) - 1, int(np.ceil(len(right) * (1 - rate))) - 1)]
        return float((score[wrong] > limit).mean())

    return bootstrap(wrong, score, statistic, seed, draws)


def risk_coverage(wrong: Bools, risk: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(coverage, share of wrong answers among the covered) when the riskiest are withheld first, float64 [answers]."""
    order = np.argsort(risk, kind="stable")
    count = np.arange(1, len(wrong) + 1)
    return count / len(wrong), np.cumsum(wrong[order]) / count


def truthfulness(right: int, wrong: int, declined: int) -> float:
    """+1 for a right answer, 0 for a declined one, -1 for a wrong one, on average (the reward of TruthRL)."""
    return (right - wrong) / (right + wrong + declined)


def reliability(wrong: Bools, risk: Floats, bins: int = 10) -> list[tuple[float, float, int]]:
    """(mean risk, share of wrong answers, how many) of each equally wide bin of risk that has any."""
    place = np.minimum((risk * bins).astype(int), bins - 1)
    members = [place == b for b in range(bins) if (place == b).any()]
    return [(float(risk[member].mean()), float(wrong[member].mean()), int(member.sum())) for member in members]


def ece(wrong: Bools, risk: Floats, bins: int = 10) -> float:
    """Expected calibration error over equally wide bins of risk (Guo et al., 2017)."""
    return sum(abs(share - mean) * n / len(wrong) for mean, share, n in reliability(wrong, risk, bins))


def brier(wrong: Bools, risk: Floats) -> float:
    """Mean squared error of the risk as a probability."""
    return float(np.mean((risk - wrong) ** 2))
