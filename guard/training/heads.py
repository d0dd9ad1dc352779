"""Fit a linear head on layers' states (``guard.probe.heads``), on their means over answers.

L2-regularised logistic regression on the standardised means of a few layers: of every fourth, those that tell most
alone. Folds of entities choose layers and strength (linear probes: Alain and Bengio, arXiv 1610.01644; of
hallucinations: Obeso et al., arXiv 2509.03531).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from guard.evaluation.baselines import INNER, STRENGTHS, folds
from guard.probe.heads import Head

EVERY = 4  # layers from one that is tried to the next
TOGETHER = 3  # layers that a head reads at most
COMPARED = 0.01  # inverse strength of regularisation at which layers are compared

Floats = NDArray[np.float32]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class HeadSelection:
    """A head. auroc: on the held-out folds that chose its layers and strength, so somewhat too good. alone: the same of
    each layer that was tried, by itself."""

    head: Head
    auroc: float
    alone: dict[int, float]


def find_head(
    states: Callable[[Sequence[int]], Floats],
    layers: int,
    wrong: NDArray[np.bool_],
    entities: Sequence[str],
    say: Say = lambda text: None,
) -> HeadSelection:
    """Fit a head on the answers of ``wrong``, bool [answers], and ``entities``.

    states: of given layers, in that order, float32 [answers, layers, width]; ``layers``: how many the model has. Raises
    ValueError when too few entities have wrong answers, or right ones.
    """
    parts = folds(wrong, entities, INNER)
    with threadpool_limits(limits=1):  # small fits: threads would wait for each other longer than they work
        alone = {}
        for layer in range(min(EVERY // 2, layers - 1), layers, EVERY):
            alone[layer] = _held_out(_flat(states([layer])), wrong, parts, COMPARED)
            say(f"layer {layer}: AUROC {alone[layer]:.3f} alone")
        chosen = sorted(sorted(alone, key=lambda layer: -alone[layer])[:TOGETHER])
        features = _flat(states(chosen))
        auroc = {strength: _held_out(features, wrong, parts, strength) for strength in STRENGTHS}
        best = max(auroc, key=lambda strength: auroc[strength])
        weight = _fit(features, wrong, best)[0].reshape(len(chosen), -1)
    return HeadSelection(Head(np.array(chosen, np.int32), weight.astype(np.float32)), auroc[best], alone)


def _flat(states: Floats) -> Floats:
    return states.reshape(len(states), -1)


def _held_out(
    features: Floats,
    wrong: NDArray[np.bool_],
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    strength: float,
) -> float:
    score = np.zeros(len(wrong))
    for learn, check in parts:
        weight, intercept = _fit(features[learn], wrong[learn], strength)
        score[check] = features[check] @ weight + intercept
    return float(roc_auc_score(wrong, score))


def _fit(features: Floats, wrong: NDArray[np.bool_], strength: float) -> tuple[NDArray[np.float64], float]:
    """(weight float64 [k] of features as they are, intercept)."""
    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    scale[scale <= 1e-6 * np.abs(mean) + 1e-12] = np.inf  # what never differs says nothing
    model = LogisticRegression(C=strength, max_iter=2000).fit((features - mean) / scale, wrong)
    weight = model.coef_[0] / scale
    return weight, float(model.intercept_[0] - weight @ mean)
