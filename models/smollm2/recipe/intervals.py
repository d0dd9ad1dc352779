"""Figures with bootstrap intervals over entities: all answers about a thing are drawn together, or not at all.

A figure is float64 [1 + draws]: its value on the answers as they are, then on each draw; NaN on a draw that lacks right
or wrong answers. Figures made with the same draws may be averaged and subtracted draw by draw, which pairs them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Weights = NDArray[np.int32]

DRAWS = 1000
_CELLS = 1 << 21  # draws times answers that are worked on at once


def draws(entities: Sequence[str], seed: int = 0, count: int = DRAWS) -> Weights:
    """How often each answer was drawn: int32 [1 + count, answers], the first row ones."""
    _, code = np.unique(np.array(entities), return_inverse=True)
    total = int(code.max()) + 1
    rng = np.random.default_rng(seed)
    weights = np.ones((1 + count, len(code)), np.int32)
    for row in weights[1:]:
        row[:] = np.bincount(rng.integers(0, total, total), minlength=total)[code]
    return weights


def auroc(wrong: Bools, score: Floats, weights: Weights) -> Doubles:
    """Area under the ROC curve of wrong (riskier) against right answers; ties count half."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # of those that score the same
    is_wrong = wrong[order]

    def of(drawn: Weights) -> Doubles:
        drawn = drawn[:, order]
        of_wrong = np.cumsum(drawn * is_wrong, 1)[:, last].astype(np.float64)
        of_right = np.cumsum(drawn * ~is_wrong, 1)[:, last].astype(np.float64)
        before = np.pad(of_wrong, ((0, 0), (1, 0)))[:, :-1]
        area = (np.diff(of_right, axis=1, prepend=0) * (of_wrong + before) / 2).sum(1)
        return _ratio(area, of_wrong[:, -1] * of_right[:, -1])

    return _in_blocks(of, weights)


def same_text(wrong: Bools, score: Floats, texts: NDArray[np.str_], weights: Weights) -> Doubles:
    """Share of pairs of a wrong and a right answer of the same text in which the wrong one scores higher; ties half."""
    groups = pairs_of(wrong, texts)
    above, total = np.zeros(len(weights)), np.zeros(len(weights))
    for one in groups:
        first, second = one[wrong[one]], one[~wrong[one]]
        higher = np.sign(score[first][:, None] - score[second]) / 2 + 0.5
        above += np.einsum("di,ij,dj->d", weights[:, first], higher, weights[:, second], optimize=True)
        total += weights[:, first].sum(1) * weights[:, second].sum(1)
    return _ratio(above, total)


def pairs_of(wrong: Bools, texts: NDArray[np.str_]) -> list[NDArray[np.int64]]:
    """The answers of each text that was given at least once rightly and once wrongly."""
    _, code = np.unique(texts, return_inverse=True)
    order = np.argsort(code, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(code[order])) + 1)
    return [one for one in groups if wrong[one].any() and not wrong[one].all()]


def pairs(wrong: Bools, texts: NDArray[np.str_]) -> int:
    """How many pairs of a wrong and a right answer have the same text."""
    return sum(int(wrong[one].sum() * (~wrong[one]).sum()) for one in pairs_of(wrong, texts))


def share(of: Bools, among: Bools, weights: Weights) -> Doubles:
    """Share of those ``among`` that are ``of``."""
    return _ratio((weights @ (of & among)).astype(np.float64), (weights @ among).astype(np.float64))


def mean(figures: Iterable[Doubles]) -> Doubles:
    """Their mean, draw by draw, over those that the draw has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any is NaN, as it should be
        return np.asarray(np.nanmean(np.stack(list(figures)), 0), np.float64)


def interval(figure: Doubles) -> dict[str, float]:
    """value, and low and high of its 95 % percentile interval."""
    known = figure[1:][np.isfinite(figure[1:])]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return {"value": float(figure[0]), "low": float(low), "high": float(high)}


def _in_blocks(of: object, weights: Weights) -> Doubles:
    assert callable(of)
    size = max(1, _CELLS // weights.shape[1])
    return np.concatenate([of(weights[start : start + size]) for start in range(0, len(weights), size)])


def _ratio(above: Floats, below: Floats) -> Doubles:
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)
