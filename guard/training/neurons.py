"""Find the neurons: L1 logistic regression on mean CETT (arXiv 2512.01797, section 6.1.3).

Wrong answers are 1, right ones 0; positive weights are the H-Neurons. C is found by entity-grouped folds: the sparsest
probe that is as good as the best one, among those under the cap on neurons. Those that are nearly as good are
candidates too: what happens to the model's accuracy when their neurons are switched off may decide between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from guard.harness.features import Features
from guard.harness.progress import duration
from guard.training.path import Fitted, Path

FOLDS = 4
STEPS, RATIO = 16, 1.5  # values of C that are tried, each so many times the one before
PATIENCE = 3  # values of C in a row that are no better than an earlier one: a larger one will not be, either
SEPARATED = 0.95  # of the loss explained: the answers are told apart, and a larger C only makes the weights larger
CLOSE = 0.003  # AUROC: nearer to the best than this is as good
NEAR = 0.01  # AUROC: nearer to the best than this is a candidate
CANDIDATES = 3
RIDGE = 1.0  # the C of L2
LEAD_WEIGHT = 0.5  # of a last prompt token, beside its answer

Floats = NDArray[np.float32]
Index = NDArray[np.int64]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Point:
    """One value of C on the path: AUROC on held-out folds, and how many neurons were kept, on average."""

    C: float
    auroc: float
    neurons: float


@dataclass(frozen=True, slots=True)
class NeuronSelection:
    """index int64 [k] into the flat neurons; coefficient float32 [k], of CETT as it is. path: what each C gave."""

    index: NDArray[np.int64]
    coefficient: Floats
    intercept: float
    C: float
    path: list[Point] = field(default_factory=list)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> NeuronSelection:
        """As ``to_dict`` wrote it."""
        index, coefficient = np.array(row["index"], np.int64), np.array(row["coefficient"], np.float32)
        return cls(index, coefficient, row["intercept"], row["C"], [Point(*point) for point in row["path"]])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "index": self.index.tolist(),
            "coefficient": self.coefficient.tolist(),
            "intercept": self.intercept,
            "C": self.C,
            "path": [[point.C, point.auroc, point.neurons] for point in self.path],
        }


def find_neurons(
    features: Features,
    wrong: NDArray[np.bool_],
    entities: Sequence[str],
    cap: float,
    refit: bool = False,
    tick: Say = lambda text: None,
    most: int = 1,
    leads: Features | None = None,
) -> list[NeuronSelection]:
    """features [answers, neurons], wrong bool [answers]; ``cap`` is the largest share of neurons to keep.

    leads: the same of the last prompt token alone; where given, one probe learns from both, so that its score means
    something before the answer begins. C is chosen by answers all the same.

    The best first, then at most ``most`` - 1 other candidates. ``refit`` fits the chosen neurons again with L2, which
    undoes L1's shrinking. Raises ValueError when one class is missing, or no neuron tells them apart.
    """
    if wrong.all() or not wrong.any():
        raise ValueError(f"the answers are all {'wrong' if wrong.all() else 'right'}: there is nothing to tell apart")
    limit = max(cap * features.shape[1], 1)
    path, fitted = _path(features, leads, wrong, entities, limit, tick)
    found: list[NeuronSelection] = []
    for point in _preferred(path):
        if found and (len(found) == most or point.auroc < max(p.auroc for p in path) - NEAR):
            break
        one = fitted[point.C]
        if not 0 < len(one.index) <= limit or any(np.array_equal(one.index, other.index) for other in found):
            continue  # the same neurons off would do the same to the model
        coefficient, intercept = one.coefficient, one.intercept
        if refit:
            coefficient, intercept = ridge(features, wrong, one.index, leads)
        found.append(NeuronSelection(one.index, coefficient.astype(np.float32), intercept, point.C, path))
    if not found:
        raise ValueError(
            "no neuron tells the answers apart within --max-neuron-fraction; raise it, or ask more questions"
        )
    return found


def given_neurons(
    features: Features, wrong: NDArray[np.bool_], index: Index, leads: Features | None
) -> NeuronSelection:
    """Neurons that somebody else found, int64 [k], ascending, with the weights that L2 gives them here."""
    coefficient, intercept = ridge(features, wrong, index, leads)
    return NeuronSelection(index, coefficient.astype(np.float32), intercept, RIDGE)


def ridge(
    features: Features, wrong: NDArray[np.bool_], index: Index, leads: Features | None = None
) -> tuple[NDArray[np.float64], float]:
    """L2 on given neurons, standardised: (coefficient float64 [index] of CETT as it is, intercept)."""
    taken, weight = features.take(index), None
    if leads is not None:
        taken = np.concatenate([taken, leads.take(index)])
        weight, wrong = np.repeat([1.0, LEAD_WEIGHT], len(wrong)), np.tile(wrong, 2)
    scale = taken.std(0) + 1e-12
    model = LogisticRegression(C=RIDGE, max_iter=2000).fit(taken / scale, wrong, weight)
    return model.coef_[0] / scale, float(model.intercept_[0])


def _path(
    features: Features,
    leads: Features | None,
    wrong: NDArray[np.bool_],
    entities: Sequence[str],
    limit: float,
    tick: Say,
) -> tuple[list[Point], dict[float, Fitted]]:
    """What each C gives on held-out folds, and on all answers, up to the first that keeps more than ``limit`` neurons.

    C begins where the first neuron comes in, which depends on the answers and on how many there are.
    """
    folds = list(GroupKFold(FOLDS).split(wrong, wrong, entities))
    weights = np.ones((FOLDS + 1, len(wrong)))
    for fold, (_, held_out) in enumerate(folds):
        weights[fold, held_out] = 0  # all of them stand in the last row
    fits = Path(features, leads, LEAD_WEIGHT, wrong, weights, tick)
    points: list[Point] = []
    fitted: dict[float, Fitted] = {}
    began = time.monotonic()
    for step in range(1, STEPS + 1):
        C = float(f"{RATIO**step / fits.largest:.3g}")  # few digits: files are named by it
        *held, everything = fits.solve(1 / C)
        scores = np.zeros(len(wrong))
        for one, (_, held_out) in zip(held, folds, strict=True):
            scores[held_out] = one.decision[held_out]
        kept = float(np.mean([len(one.index) for one in held]))
        if points and kept > limit:
            break  # a larger C keeps more still
        points.append(Point(C, float(roc_auc_score(wrong, scores)), kept))
        fitted[C] = everything
        left = (time.monotonic() - began) / step * (STEPS - step)
        tick(
            f"C={C:g}, {step} of at most {STEPS}: AUROC {points[-1].auroc:.3f} with {kept:.0f} neurons; "
            f"at most {duration(left)} left"
        )
        best = max(range(len(points)), key=lambda i: points[i].auroc)
        if step - best > PATIENCE or everything.explained > SEPARATED:
            break
    return points, fitted


def _preferred(path: Sequence[Point]) -> list[Point]:
    """The sparsest of those that are as good as the best, first; then what is sparser still.

    A fit on all answers may keep more neurons than the folds did, and then exceed the cap.
    """
    best = max(point.auroc for point in path)
    first = next(i for i, point in enumerate(path) if point.auroc >= best - CLOSE)
    return [*(p for p in path[first:] if p.auroc >= best - CLOSE), *reversed(path[:first])]
