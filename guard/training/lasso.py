"""L1 logistic regression by Newton steps, each a weighted lasso that scikit-learn's coordinate descent solves.

glmnet's algorithm (Friedman, Hastie and Tibshirani, 2010, section 3): warm starts, a working set that grows until the
optimality conditions hold on all columns, weights of rows, an intercept that is not penalised. liblinear has none of
these; skglm and celer take no weights, and celer no intercept.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lasso_path

TOLERANCE = 1e-3  # of the penalty: how far a gradient may be from the optimality conditions
_STEPS = 100  # Newton steps on one working set; five to ten are usual
_HALVINGS = 30
_LEAST = 64  # columns by which a working set grows
_ROUNDING = 1e-7  # of a sum over float32 decisions
_FLAT = 1e-5  # a row whose curvature is less, of a certain answer, would divide by nothing

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def chance_of(decision: Doubles) -> Doubles:
    """1 / (1 + exp(-decision)), which overflows nowhere."""
    return 0.5 * (1 + np.tanh(0.5 * decision))


@dataclass(frozen=True, slots=True)
class Rows:
    """What is fit: wrong bool [n], and weight float64 [n], 0 for a row that is held out."""

    wrong: NDArray[np.bool_]
    weight: Doubles

    def null(self) -> float:
        """The intercept of a model without columns. Both kinds must be there."""
        share = float(self.weight @ self.wrong / self.weight.sum())
        return float(np.log(share / (1 - share)))

    def residual(self, decision: Doubles) -> Doubles:
        """Minus the loss's gradient by each row's decision: float64 [n]."""
        return self.weight * (self.wrong - chance_of(decision))

    def loss(self, decision: Doubles) -> float:
        """sum_i weight_i log(1 + exp(-+ decision_i))."""
        return float(self.weight @ np.logaddexp(0, np.where(self.wrong, -decision, decision)))


@dataclass(frozen=True, slots=True)
class Model:
    """coefficient float64 [k] of the columns over their scale, and the intercept."""

    coefficient: Doubles
    intercept: float


def lasso(columns: Floats, scale: Floats, rows: Rows, penalty: float, start: Model) -> Model:
    """The model that minimises the rows' loss + penalty * |coefficient|_1; liblinear's C is 1 / penalty.

    columns: float32 [n, k]. scale: float32 [k]; a column whose scale is infinite is never used. start: what a
    neighbouring penalty gave, or zeros.
    """
    used = np.flatnonzero(rows.weight)
    inside = Rows(rows.wrong[used], rows.weight[used])
    coefficient, intercept = start.coefficient.copy(), start.intercept
    residual = np.zeros(len(rows.weight), np.float32)
    work = np.flatnonzero(coefficient)
    reached = np.inf
    while True:
        part = columns[np.ix_(used, work)] / scale[work]
        coefficient[work], intercept, residual[used] = _newton(part, inside, penalty, coefficient[work], intercept)
        decision = (part @ coefficient[work].astype(np.float32)).astype(np.float64) + intercept
        objective = inside.loss(decision) + penalty * np.abs(coefficient[work]).sum()
        if objective >= reached * (1 - _ROUNDING):
            # What single precision tells apart is reached: columns would come and go for ever.
            return Model(coefficient, intercept)
        reached = objective
        excess = np.abs(residual @ columns) / scale - penalty
        excess[work] = 0
        if excess.max(initial=0) <= TOLERANCE * penalty:
            return Model(coefficient, intercept)
        # The worst first: most of the others only stand in for them.
        worst = np.argsort(-excess, kind="stable")[: max(_LEAST, len(work) // 2)]
        work = np.union1d(np.flatnonzero(coefficient), worst[excess[worst] > 0])


def _newton(
    part: Floats, rows: Rows, penalty: float, coefficient: Doubles, intercept: float
) -> tuple[Doubles, float, Doubles]:
    """(coefficient, intercept, residual) of a working set: float32 [n, k]."""
    center = part.mean(0, dtype=np.float64)
    part = part - center.astype(np.float32)  # for the arithmetic's sake; the intercept takes it up again
    intercept += float(center @ coefficient)
    decision = (part @ coefficient.astype(np.float32)).astype(np.float64) + intercept
    for _ in range(_STEPS):
        residual = rows.residual(decision)
        gradient = residual.astype(np.float32) @ part
        off = np.where(coefficient, np.abs(gradient - penalty * np.sign(coefficient)), np.abs(gradient) - penalty)
        if max(off.max(initial=0), abs(residual.sum())) <= TOLERANCE * penalty:
            break
        step, step_intercept = _step(part, rows.weight, decision, residual, penalty, coefficient)
        along = part @ step.astype(np.float32)
        # A Newton step may go too far where the curvature changes on the way.
        now, share = rows.loss(decision) + penalty * np.abs(coefficient).sum(), 1.0
        for _ in range(_HALVINGS):
            tried = decision + share * (along + step_intercept)
            if rows.loss(tried) + penalty * np.abs(coefficient + share * step).sum() <= now * (1 + _ROUNDING):
                break
            share /= 2
        coefficient, intercept, decision = coefficient + share * step, intercept + share * step_intercept, tried
    return coefficient, intercept - float(center @ coefficient), rows.residual(decision)


def _step(
    part: Floats, weight: Doubles, decision: Doubles, residual: Doubles, penalty: float, coefficient: Doubles
) -> tuple[Doubles, float]:
    """From here to the optimum of the loss's second-order approximation: (of the coefficient, of the intercept)."""
    chance = chance_of(decision)
    curvature = weight * np.maximum(chance * (1 - chance), _FLAT)
    total = curvature.sum()
    mean = (curvature.astype(np.float32) @ part) / total
    if not len(coefficient):
        return coefficient, float(residual.sum() / total)
    root = np.sqrt(curvature)
    # Centred by curvature, the columns leave the intercept out of the lasso.
    design = np.asfortranarray((part - mean) * root[:, None].astype(np.float32))
    target = design @ coefficient.astype(np.float32) + residual / root - root * (residual.sum() / total)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the optimality conditions are checked by the caller
        _, path, _ = lasso_path(
            design,
            target.astype(np.float32),
            alphas=[penalty / len(part)],
            precompute=True,
            coef_init=coefficient.astype(np.float32),
            tol=1e-6,
            max_iter=1000,
        )
    step = path[:, 0].astype(np.float64) - coefficient
    return step, float(residual.sum() / total - mean @ step)
