"""Find the neurons: L1 logistic regression on mean CETT (arXiv 2512.01797, section 6.1.3).

Wrong answers are 1, right ones 0; positive weights are the H-Neurons. C is found by entity-grouped folds: the sparsest
probe that is as good as the best one, among those under the cap on neurons. Those that are nearly as good are
candidates too: what happens to the model's accuracy when their neurons are switched off may decide between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

CS = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
FOLDS = 4
CLOSE = 0.003  # AUROC: nearer to the best than this is as good
NEAR = 0.01  # AUROC: nearer to the best than this is a candidate
CANDIDATES = 3
LEAD_WEIGHT = 0.5  # of a last prompt token, beside its answer
SCREENED = 20_000  # neurons that L1 chooses from, the best ones by themselves; a larger matrix fits no memory
BOOTSTRAPS = 10

Floats = NDArray[np.float32]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Point:
    """One value of C on the path: AUROC on held-out folds, and how many neurons were kept, on average."""

    C: float
    auroc: float
    neurons: float


@dataclass(frozen=True, slots=True)
class Found:
    """index int64 [k] into the flat neurons; coefficient float32 [k].

    path: what each C gave. stability: share of bootstraps over entities that keep each neuron, float32 [k].
    """

    index: NDArray[np.int64]
    coefficient: Floats
    intercept: float
    C: float
    path: list[Point] = field(default_factory=list)
    stability: Floats | None = None


@dataclass(frozen=True, slots=True)
class _Learner:
    """What a probe learns from: answers, and their last prompt tokens beside them where given."""

    features: Floats
    leads: Floats | None
    wrong: NDArray[np.bool_]
    seed: int

    def lasso(self, rows: Index, columns: Index, C: float) -> LogisticRegression:
        """L1 on these answers and neurons."""
        model = LogisticRegression(l1_ratio=1.0, C=C, solver="liblinear", max_iter=2000, random_state=self.seed)
        return model.fit(*self._material(rows, columns))

    def ridge(self, columns: Index) -> tuple[NDArray[np.float64], float]:
        """L2 on all answers, standardised: (coefficient [columns], intercept)."""
        features, wrong, weight = self._material(np.arange(len(self.wrong)), columns)
        scale = features.std(0) + 1e-12
        model = LogisticRegression(C=1.0, max_iter=2000, random_state=self.seed).fit(features / scale, wrong, weight)
        return model.coef_[0] / scale, float(model.intercept_[0])

    def _material(self, rows: Index, columns: Index) -> tuple[Floats, NDArray[np.bool_], NDArray[np.float64] | None]:
        """(features, wrong, weight of each row)."""
        own, wrong = self.features[np.ix_(rows, columns)], self.wrong[rows]
        if self.leads is None:
            return own, wrong, None
        both = np.concatenate([own, self.leads[np.ix_(rows, columns)]])
        return both, np.tile(wrong, 2), np.repeat([1.0, LEAD_WEIGHT], len(rows))


def screen(features: Floats, wrong: NDArray[np.bool_], most: int = SCREENED) -> NDArray[np.int64]:
    """The neurons whose means differ most between wrong and right answers, in standard errors: int64 [at most most]."""
    if features.shape[1] <= most:
        return np.arange(features.shape[1])
    one, zero = features[wrong], features[~wrong]
    error = np.sqrt(one.var(0) / len(one) + zero.var(0) / len(zero)) + 1e-12
    score = np.abs(one.mean(0) - zero.mean(0)) / error
    return np.sort(np.argpartition(score, -most)[-most:])


def find_neurons(
    features: Floats,
    wrong: NDArray[np.bool_],
    entities: Sequence[str],
    cap: float,
    seed: int,
    refit: bool = False,
    bootstraps: int = 0,
    tick: Callable[[str], None] = lambda text: None,
    most: int = 1,
    leads: Floats | None = None,
) -> list[Found]:
    """features float32 [answers, neurons], wrong bool [answers]; ``cap`` is the largest share of neurons to keep.

    leads: the same of the last prompt token alone, float32 [answers, neurons]; where given, one probe learns from both,
    so that its score means something before the answer begins. C is chosen by answers all the same.

    The best first, then at most ``most`` - 1 other candidates. ``refit`` fits the chosen neurons again with L2, which
    undoes L1's shrinking. Raises ValueError when one class is missing, or no neuron tells them apart.
    """
    if wrong.all() or not wrong.any():
        raise ValueError(f"the answers are all {'wrong' if wrong.all() else 'right'}: there is nothing to tell apart")
    limit = max(cap * features.shape[1], 1)
    learn = _Learner(features, leads, wrong, seed)
    path = _path(learn, entities, limit, tick)
    columns, everything = screen(features, wrong), np.arange(len(wrong))
    found: list[Found] = []
    for point in _preferred(path):
        if found and (len(found) == most or point.auroc < max(p.auroc for p in path) - NEAR):
            break
        model = learn.lasso(everything, columns, point.C)
        kept = np.flatnonzero(model.coef_[0])
        if not 0 < len(kept) <= limit:
            continue
        index = columns[kept]
        coefficient, intercept = model.coef_[0][kept], float(model.intercept_[0])
        if refit:
            coefficient, intercept = learn.ridge(index)
        stable = _stability(learn, entities, index, columns, point.C, bootstraps) if bootstraps else None
        found.append(Found(index, coefficient.astype(np.float32), intercept, point.C, path, stable))
    if not found:
        raise ValueError("no neuron tells the answers apart under the cap on neurons; raise it, or ask more questions")
    return found


def _path(learn: _Learner, entities: Sequence[str], limit: float, tick: Callable[[str], None]) -> list[Point]:
    """What each C gives on held-out folds, up to the first that keeps more than ``limit`` neurons."""
    features, wrong = learn.features, learn.wrong
    path: list[Point] = []
    for C in CS:
        scores = np.zeros(len(wrong))
        kept = []
        for train, test in GroupKFold(FOLDS).split(features, wrong, entities):
            # Screened inside the fold: what the held-out answers say must not choose what is tried on them.
            columns = screen(features[train], wrong[train])
            model = learn.lasso(train, columns, C)
            scores[test] = model.decision_function(features[np.ix_(test, columns)])
            kept.append(np.count_nonzero(model.coef_))
        if path and np.mean(kept) > limit:
            break  # a larger C keeps more still
        path.append(Point(C, float(roc_auc_score(wrong, scores)), float(np.mean(kept))))
        tick(f"C={C:g}: AUROC {path[-1].auroc:.3f} with {path[-1].neurons:.0f} neurons")
    return path


def _preferred(path: Sequence[Point]) -> list[Point]:
    """The sparsest of those that are as good as the best, first; then what is sparser still.

    A fit on all answers may keep more neurons than the folds did, and then exceed the cap.
    """
    best = max(point.auroc for point in path)
    first = next(i for i, point in enumerate(path) if point.auroc >= best - CLOSE)
    return [*(p for p in path[first:] if p.auroc >= best - CLOSE), *reversed(path[:first])]


def _stability(
    learn: _Learner, entities: Sequence[str], index: Index, columns: Index, C: float, bootstraps: int
) -> Floats:
    """How often each of ``index`` is kept when entities are drawn with replacement."""
    rng = np.random.default_rng(learn.seed)
    names, member = np.unique(np.array(entities, dtype=object).astype(str), return_inverse=True)
    rows_of = [np.flatnonzero(member == i) for i in range(len(names))]
    place = np.searchsorted(columns, index)
    kept = np.zeros(len(index))
    for _ in range(bootstraps):
        rows = np.concatenate([rows_of[i] for i in rng.integers(0, len(names), len(names))])
        if learn.wrong[rows].all() or not learn.wrong[rows].any():
            continue
        kept += learn.lasso(rows, columns, C).coef_[0][place] != 0
    return (kept / bootstraps).astype(np.float32)
