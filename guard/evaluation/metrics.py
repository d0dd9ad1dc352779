"""How well a score tells wrong answers from right ones, with bootstrap intervals.

What is drawn is entities, each with all answers about it: answers about one thing are right or wrong together, and
drawn one by one they would look like more evidence than they are (a cluster bootstrap: Field and Welsh, Journal of the
Royal Statistical Society B 69, 2007).

Every statistic is read off how many wrong and right answers score at least so high, so a thousand bootstraps are sums
over a matrix of how often each answer was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from guard.probe.card import Interval

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
# From counts of wrong and of right answers at or above each score, highest first, float64 [draws, scores], to [draws].
Statistic = Callable[[Floats, Floats], Floats]

_CELLS = 1 << 21  # draws times answers that are in memory at once


def bootstrap(
    wrong: Bools,
    score: Floats,
    entities: Sequence[str],
    statistics: Mapping[str, Statistic],
    seed: int = 0,
    draws: int = 1000,
) -> dict[str, Interval]:
    """Each statistic with its percentile bootstrap 95 % interval over ``entities`` (what each answer is about); both
    kinds of answers must be there."""
    order = np.argsort(-score, kind="stable")
    is_wrong = wrong[order]
    last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # of those that score the same

    def counts(drawn: NDArray[np.int64]) -> tuple[Floats, Floats]:
        drawn = drawn[:, order]
        at_least, of_these = np.cumsum(drawn, 1)[:, last], np.cumsum(drawn * is_wrong, 1)[:, last]
        return of_these.astype(np.float64), (at_least - of_these).astype(np.float64)

    whole = counts(np.ones((1, len(wrong)), np.int64))
    values: dict[str, list[Floats]] = {name: [] for name in statistics}
    for drawn in _resamples(wrong, entities, seed, draws):
        at_least = counts(drawn)
        for name, statistic in statistics.items():
            values[name].append(statistic(*at_least))
    found = {}
    for name, statistic in statistics.items():
        low, high = np.percentile(np.concatenate(values[name]), [2.5, 97.5])
        found[name] = Interval(value=float(statistic(*whole)[0]), low=float(low), high=float(high))
    return found


def resamples(entities: Sequence[str], seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each answer was drawn, int64 [answers], draw after draw without end: as often as its entity."""
    place: dict[str, int] = {}
    code = np.array([place.setdefault(entity.casefold(), len(place)) for entity in entities], np.int64)
    rng, count = np.random.default_rng(seed), len(place)
    while True:
        yield np.bincount(rng.integers(0, count, count), minlength=count)[code]


def _resamples(wrong: Bools, entities: Sequence[str], seed: int, draws: int) -> Iterator[NDArray[np.int64]]:
    """``draws`` of them that have both kinds of answers, in blocks: int64 [draws, answers]."""
    known = (drawn for drawn in resamples(entities, seed) if drawn[wrong].any() and drawn[~wrong].any())
    block = max(1, _CELLS // len(wrong))
    while draws > 0:
        rows = list(islice(known, min(draws, block)))
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


def auroc(wrong: Bools, score: Floats, entities: Sequence[str], seed: int = 0, draws: int = 1000) -> Interval:
    """Area under the ROC curve."""
    return bootstrap(wrong, score, entities, {"": _auroc}, seed, draws)[""]


def auprc(wrong: Bools, score: Floats, entities: Sequence[str], seed: int = 0, draws: int = 1000) -> Interval:
    """Area under the precision-recall curve (average precision); chance is the share of wrong answers."""
    return bootstrap(wrong, score, entities, {"": _auprc}, seed, draws)[""]


def recall_at(
    wrong: Bools, score: Floats, entities: Sequence[str], rate: float, seed: int = 0, draws: int = 1000
) -> Interval:
    """Share of wrong answers above the score that at most ``rate`` of the right ones exceed."""
    return bootstrap(wrong, score, entities, {"": _recall_at(rate)}, seed, draws)[""]


def detection(
    wrong: Bools,
    score: Floats,
    entities: Sequence[str],
    rates: Sequence[float],
    seed: int = 0,
    draws: int = 1000,
) -> dict[str, Interval]:
    """All three from the same draws: ``auroc``, ``auprc``, and ``recall_at_0.05`` for each of ``rates``."""
    recalls = {f"recall_at_{rate:.2f}": _recall_at(rate) for rate in rates}
    return bootstrap(wrong, score, entities, {"auroc": _auroc, "auprc": _auprc, **recalls}, seed, draws)


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
