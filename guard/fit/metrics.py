"""How well a score tells wrong answers from right ones, with bootstrap intervals.

Every statistic is read off how many wrong and right answers score at least so high, so a thousand bootstraps are sums
over a matrix of how often each answer was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from guard.probe.card import Interval

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
# From counts of wrong and of right answers at or above each score, highest first, float64 [draws, scores], to [draws].
Statistic = Callable[[Floats, Floats], Floats]

_CELLS = 1 << 21  # draws times answers that are in memory at once


def bootstrap(
    wrong: Bools, score: Floats, statistics: Mapping[str, Statistic], seed: int = 0, draws: int = 1000
) -> dict[str, Interval]:
    """Each statistic with its percentile bootstrap 95 % interval over answers; both kinds must be there."""
    order = np.argsort(-score, kind="stable")
    is_wrong = wrong[order]
    last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # of those that score the same

    def counts(drawn: NDArray[np.int64]) -> tuple[Floats, Floats]:
        drawn = drawn[:, order]
        at_least, of_these = np.cumsum(drawn, 1)[:, last], np.cumsum(drawn * is_wrong, 1)[:, last]
        return of_these.astype(np.float64), (at_least - of_these).astype(np.float64)

    whole = counts(np.ones((1, len(wrong)), np.int64))
    values: dict[str, list[Floats]] = {name: [] for name in statistics}
    for drawn in _resamples(wrong, seed, draws):
        at_least = counts(drawn)
        for name, statistic in statistics.items():
            values[name].append(statistic(*at_least))
    found = {}
    for name, statistic in statistics.items():
        low, high = np.percentile(np.concatenate(values[name]), [2.5, 97.5])
        found[name] = Interval(value=float(statistic(*whole)[0]), low=float(low), high=float(high))
    return found


def _resamples(wrong: Bools, seed: int, draws: int) -> Iterator[NDArray[np.int64]]:
    """How often each answer was drawn, in blocks of draws that have both kinds: int64 [draws, answers]."""
    rng, count = np.random.default_rng(seed), len(wrong)
    block = max(1, _CELLS // count)
    while draws > 0:
        rows: list[NDArray[np.int64]] = []
        while len(rows) < min(draws, block):
            drawn = np.bincount(rng.integers(0, count, count), minlength=count)
            if 0 < drawn[wrong].sum() < count:
                rows.append(drawn)
        draws -= len(rows)
        yield np.stack(rows)


def _auroc(wrong: Floats, right: Floats) -> Floats:
    before = np.pad(wrong, ((0, 0), (1, 0)))[:, :-1]
    area = np.diff(right, axis=1, prepend=0) * (wrong + before) / 2
    return area.sum(1) / (wrong[:, -1] * right[:, -1])


def _auprc(wrong: Floats, right: Floats) -> Floats:
    precision = wrong / np.maximum(wrong + right, 1)
    return (np.diff(wrong, axis=1, prepend=0) * precision).sum(1) / wrong[:, -1]


def _recall_at(rate: float) -> Statistic:
    def statistic(wrong: Floats, right: Floats) -> Floats:
        total = right[:, -1]
        allowed = total - np.minimum(total, np.ceil(total * (1 - rate)))
        within = (right <= allowed[:, None]).sum(1)
        above = np.pad(wrong, ((0, 0), (1, 0)))[np.arange(len(wrong)), within]
        return above / wrong[:, -1]

    return statistic


def auroc(wrong: Bools, score: Floats, seed: int = 0, draws: int = 1000) -> Interval:
    """Area under the ROC curve."""
    return bootstrap(wrong, score, {"": _auroc}, seed, draws)[""]


def auprc(wrong: Bools, score: Floats, seed: int = 0, draws: int = 1000) -> Interval:
    """Area under the precision-recall curve (average precision); chance is the share of wrong answers."""
    return bootstrap(wrong, score, {"": _auprc}, seed, draws)[""]


def recall_at(wrong: Bools, score: Floats, rate: float, seed: int = 0, draws: int = 1000) -> Interval:
    """Share of wrong answers above the score that at most ``rate`` of the right ones exceed."""
    return bootstrap(wrong, score, {"": _recall_at(rate)}, seed, draws)[""]


def detection(
    wrong: Bools, score: Floats, rates: Sequence[float], seed: int = 0, draws: int = 1000
) -> dict[str, Interval]:
    """All three from the same draws: ``auroc``, ``auprc``, and ``recall_at_0.05`` for each of ``rates``."""
    recalls = {f"recall_at_{rate:.2f}": _recall_at(rate) for rate in rates}
    return bootstrap(wrong, score, {"auroc": _auroc, "auprc": _auprc, **recalls}, seed, draws)


def over(draws: Sequence[Interval]) -> Interval:
    """One estimate of several draws: their mean, from the lowest end of their intervals to the highest."""
    value = float(np.mean([draw.value for draw in draws]))
    return Interval(value=value, low=min(draw.low for draw in draws), high=max(draw.high for draw in draws))


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
