"""Claims of arXiv 2512.01797 that answers alone decide: are few neurons enough, and does risk follow popularity?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.evaluation import random_baseline
from models.smollm2.recipe import intervals
from models.smollm2.recipe.answered import Answered, Bools, Floats, Index
from models.smollm2.recipe.detection import sets_of
from models.smollm2.recipe.fits import Fits, best_strength, ridge

SHARES = (0.0001, 0.0003, 0.001, 0.003, 0.005, 0.01, 0.03)
RANDOM = 20  # draws of as many neurons in each layer
_TOGETHER = 5  # draws whose columns are in memory at once
DECILES = 10


def against_count(
    answered: Answered, fits: Fits, shares: Sequence[float] = SHARES, random: int = RANDOM, draws: int = intervals.DRAWS
) -> dict[str, Any]:
    """AUROC (mean of sets) of so many neurons of all, chosen by L1, and of as many random ones in each layer.

    Both are refit in the same way: L2 on standardised CETT of the training answers, its strength by folds (that of
    random ones on their first draw). ``better_to``: the largest number up to which the chosen ones are always better:
    above every random draw, with an interval of the difference from their mean that lies above 0.
    """
    parts = answered.parts()
    train, test = parts["train"], parts["test"]
    total = int(np.prod(answered.norms.shape))
    counts = [max(1, round(share * total)) for share in shares]
    means = _MeanOfSets(answered, test, draws)
    rows = []
    for share, count, index in zip(shares, counts, fits.path(train, counts), strict=True):
        if not len(index):
            rows.append({"share": share, "neurons": count, "too_few": "no fit keeps so many"})
            continue
        own = means.of(_refit(answered, train, test, [index])[0])
        drawn = [random_baseline.layer_matched(index, answered.norms.shape[1], seed) for seed in range(random)]
        others = [means.of(score) for score in _refit(answered, train, test, drawn)]
        values = [float(one[0]) for one in others]
        rows.append(
            {
                "share": share,
                "neurons": count,
                "chosen": intervals.interval(own),
                "random": {
                    "draws": random,
                    "mean": float(np.mean(values)),
                    "sd": float(np.std(values, ddof=1)) if random > 1 else 0.0,
                    "least": min(values),
                    "most": max(values),
                },
                "chosen - random": intervals.interval(own - np.mean(others, 0)),
            }
        )
    return {"sets": means.sets, "rows": rows, "better_to": better_to(rows)}


def better_to(rows: Sequence[dict[str, Any]]) -> int | None:
    """The last number of neurons before the first at which the chosen ones are no better than random ones."""
    last = None
    for row in rows:
        if "chosen" not in row:
            continue
        if row["chosen"]["value"] <= row["random"]["most"] or row["chosen - random"]["low"] <= 0:
            break
        last = row["neurons"]
    return last


class _MeanOfSets:
    """Mean over sets of the AUROC of scores of the answers ``test``."""

    def __init__(self, answered: Answered, test: Index, draws: int) -> None:
        self.sets = sets_of(answered, test)
        weights = intervals.draws([answered.entities[i] for i in test], count=draws)
        members = [np.flatnonzero(answered.sets[test] == name) for name in self.sets]
        self._members = [(member, weights[:, member]) for member in members]
        self._wrong = answered.wrong[test]

    def of(self, score: Floats) -> NDArray[np.float64]:
        return intervals.mean(
            intervals.auroc(self._wrong[member], score[member], weights) for member, weights in self._members
        )


def _refit(answered: Answered, train: Index, test: Index, sets: Sequence[Index]) -> list[Floats]:
    """Scores of the answers ``test`` by L2 on each of ``sets`` of neurons."""
    wrong, entities = answered.wrong[train], [answered.entities[i] for i in train]
    found: list[Floats] = []
    strength: float | None = None
    for start in range(0, len(sets), _TOGETHER):
        some = sets[start : start + _TOGETHER]
        every, place = np.unique(np.concatenate(some), return_inverse=True)
        learn, check = answered.means(train).take(every), answered.means(test).take(every)
        for at in np.split(place.reshape(-1), np.cumsum([len(one) for one in some])[:-1]):
            if strength is None:
                strength = best_strength(learn[:, at], wrong, entities)
            model = ridge(learn[:, at], wrong, entities, strength)
            found.append(np.asarray(model.decision_function(check[:, at]), np.float64))
    return found


def popularity(
    answered: Answered, risk: Floats, population: dict[str, int], draws: int = intervals.DRAWS
) -> dict[str, Any]:
    """Risk and accuracy of the set ``cities`` by tenth of population, and their slopes per factor of ten.

    population: inhabitants by name, of the largest city of each name.
    """
    index = np.array([i for i in np.flatnonzero(answered.of(["cities"])) if answered.questions[i].entity in population])
    if len(index) < DECILES:
        return {"too_few": f"{len(index)} cities whose population is known"}
    names = [answered.questions[i].entity for i in index]
    log10 = np.log10([max(population[name], 1) for name in names])
    weights = intervals.draws(names, count=draws)
    right = ~answered.wrong[index]
    rows = []
    for member in np.array_split(np.argsort(-log10, kind="stable"), DECILES):
        inside: Bools = np.zeros(len(index), bool)
        inside[member] = True
        rows.append(
            {
                "n": len(member),
                "log10_population": float(log10[member].mean()),
                "right": intervals.interval(intervals.share(right, inside, weights)),
                "risk": intervals.interval(weights[:, member] @ risk[index][member] / weights[:, member].sum(1)),
            }
        )
    return {
        "n": len(index),
        "deciles": rows,
        "right_per_decade": intervals.interval(slope(log10, right.astype(float), weights)),
        "risk_per_decade": intervals.interval(slope(log10, risk[index], weights)),
    }


def slope(x: Floats, y: Floats, weights: intervals.Weights) -> NDArray[np.float64]:
    """Slope of the least-squares line of y on x, with each draw's weights."""
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    return np.asarray(
        (weights @ (x * y) / total - mean_x * mean_y) / (weights @ (x * x) / total - mean_x**2), np.float64
    )
