"""Find the neurons: L1 logistic regression on mean CETT (arXiv 2512.01797, section 6.1.3).

Wrong answers are 1, right ones 0. C is the one with the best AUROC in entity-grouped folds among those that keep at
most ``cap`` of all neurons, on average over the folds; positive weights are the H-Neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

CS = (1.0, 3.0, 10.0, 30.0)
FOLDS = 4


@dataclass(frozen=True, slots=True)
class Found:
    """index int64 [k] into the flat neurons; coefficient float32 [k]; auroc by C in the folds."""

    index: NDArray[np.int64]
    coefficient: NDArray[np.float32]
    intercept: float
    C: float
    auroc: dict[float, float]


def _lasso(C: float, seed: int) -> LogisticRegression:
    return LogisticRegression(l1_ratio=1.0, C=C, solver="liblinear", max_iter=2000, random_state=seed)


def find_neurons(
    features: NDArray[np.float32], wrong: NDArray[np.bool_], entities: Sequence[str], cap: float, seed: int
) -> Found:
    """features float32 [answers, neurons], wrong bool [answers]. Raises ValueError when one class is missing."""
    if wrong.all() or not wrong.any():
        raise ValueError(f"the answers are all {'wrong' if wrong.all() else 'right'}: there is nothing to tell apart")
    auroc: dict[float, float] = {}
    for C in CS:
        scores = np.zeros(len(wrong))
        kept = []
        for train, test in GroupKFold(FOLDS).split(features, wrong, entities):
            model = _lasso(C, seed).fit(features[train], wrong[train])
            scores[test] = model.decision_function(features[test])
            kept.append(np.count_nonzero(model.coef_))
        if auroc and np.mean(kept) > cap * features.shape[1]:
            break  # a larger C keeps more still
        auroc[C] = float(roc_auc_score(wrong, scores))
    best = max(auroc, key=lambda C: auroc[C])
    model = _lasso(best, seed).fit(features, wrong)
    index = np.flatnonzero(model.coef_[0])
    return Found(index, model.coef_[0][index].astype(np.float32), float(model.intercept_[0]), best, auroc)
