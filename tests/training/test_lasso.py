"""The solver of L1 logistic regression: at scikit-learn's optimum, whatever it starts from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from guard.training import lasso as solver
from guard.training.lasso import TOLERANCE, Model, Rows, chance_of, lasso

Floats = NDArray[np.float32]


def drawn(seed: int, rows: int = 300, columns: int = 60) -> tuple[Floats, Rows]:
    """Columns far from 0 and of different scales, as CETT's are; some rows held out, others at half weight."""
    rng = np.random.default_rng(seed)
    features = rng.gamma(2, 1, (rows, columns)) * np.exp(rng.normal(-5, 1, columns))
    standard = (features - features.mean(0)) / features.std(0)
    wrong = rng.random(rows) < chance_of(standard[:, :5] @ [1.0, -1.0, 0.7, 0.5, -0.5] - 0.4)
    return features.astype(np.float32), Rows(wrong, rng.choice([0.0, 0.5, 1.0], rows))


def at(columns: Floats, scale: Floats, rows: Rows, model: Model, penalty: float) -> float:
    decision = (columns / scale) @ model.coefficient + model.intercept
    return rows.loss(decision) + penalty * np.abs(model.coefficient).sum()


def nothing(columns: Floats, rows: Rows) -> Model:
    return Model(np.zeros(columns.shape[1]), rows.null())


@pytest.mark.parametrize("penalty", [10.0, 3.0, 1.0, 0.3])
def test_it_is_where_saga_ends(penalty: float) -> None:
    """saga has an intercept without penalty and weights of rows, and needs a thousand times the passes."""
    columns, rows = drawn(0)
    scale = columns.std(0)
    own = lasso(columns, scale, rows, penalty, nothing(columns, rows))
    saga = LogisticRegression(l1_ratio=1.0, C=1 / penalty, solver="saga", tol=1e-7, max_iter=100_000, random_state=0)
    standard = (columns - columns.mean(0)) / scale  # saga needs centred columns to arrive at all
    saga.fit(standard.astype(np.float64), rows.wrong, rows.weight)
    decision = (columns / scale) @ own.coefficient + own.intercept
    np.testing.assert_allclose(own.coefficient, saga.coef_[0], atol=2e-3)
    np.testing.assert_allclose(decision, saga.decision_function(standard), atol=2e-2)


def test_liblinear_is_no_better_but_for_its_penalised_intercept() -> None:
    columns, rows = drawn(1)
    scale = columns.std(0)
    for penalty in (10.0, 1.0):
        model = LogisticRegression(l1_ratio=1.0, C=1 / penalty, solver="liblinear", max_iter=5000, random_state=0)
        model.fit(columns / scale, rows.wrong, rows.weight)
        theirs = Model(model.coef_[0], float(model.intercept_[0]))
        own = lasso(columns, scale, rows, penalty, nothing(columns, rows))
        assert at(columns, scale, rows, own, penalty) <= at(columns, scale, rows, theirs, penalty) * (1 + 1e-5)


@pytest.mark.parametrize("penalty", [20.0, 2.0, 0.5])
def test_optimality_holds_on_every_column(penalty: float) -> None:
    columns, rows = drawn(2, columns=500)
    scale = columns.std(0)
    model = lasso(columns, scale, rows, penalty, nothing(columns, rows))
    residual = rows.residual((columns / scale) @ model.coefficient + model.intercept)
    gradient = residual @ (columns / scale)
    kept = model.coefficient != 0
    slack = 3 * TOLERANCE * penalty  # the gradient itself is a sum of float32
    assert 0 < kept.sum() < 500
    assert abs(residual.sum()) < slack
    assert np.abs(gradient[~kept]).max() < penalty + slack
    np.testing.assert_allclose(gradient[kept], penalty * np.sign(model.coefficient[kept]), atol=slack)


def test_a_start_changes_nothing_but_the_way() -> None:
    columns, rows = drawn(3)
    scale = columns.std(0)
    cold = lasso(columns, scale, rows, 3.0, nothing(columns, rows))
    for other in (30.0, 0.1):
        start = lasso(columns, scale, rows, other, nothing(columns, rows))
        warm = lasso(columns, scale, rows, 3.0, start)
        np.testing.assert_allclose(warm.coefficient, cold.coefficient, atol=5e-3)
        assert warm.intercept == pytest.approx(cold.intercept, abs=2e-2)


def test_rows_that_are_held_out_teach_nothing() -> None:
    columns, rows = drawn(4)
    scale = columns.std(0)
    out = rows.weight == 0
    changed = columns.copy()
    changed[out] = 7
    one = lasso(columns, scale, rows, 2.0, nothing(columns, rows))
    other = lasso(changed, scale, Rows(rows.wrong ^ out, rows.weight), 2.0, nothing(columns, rows))
    np.testing.assert_array_equal(one.coefficient, other.coefficient)
    assert one.intercept == other.intercept


def test_answers_that_one_column_tells_apart_end_somewhere() -> None:
    rng = np.random.default_rng(5)
    columns = rng.normal(size=(200, 30)).astype(np.float32)
    wrong = columns[:, 3] > 0
    rows = Rows(wrong, np.ones(200))
    model = lasso(columns, columns.std(0), rows, 1e-3, nothing(columns, rows))
    assert np.isfinite(model.coefficient).all()
    assert np.argmax(np.abs(model.coefficient)) == 3
    assert rows.loss(columns / columns.std(0) @ model.coefficient + model.intercept) < 0.1


def test_a_column_without_a_scale_is_never_used() -> None:
    columns, rows = drawn(6)
    scale = columns.std(0)
    scale[0] = np.inf
    model = lasso(columns, scale, rows, 1.0, nothing(columns, rows))
    assert model.coefficient[0] == 0
    assert model.coefficient[1] != 0


def test_columns_do_not_come_and_go_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from zero, single precision sees a gradient that the centred columns of a working set do not have."""
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((400, 300))
    rows = Rows(rng.random(400) < chance_of(spread[:, :5].sum(1)), np.ones(400))
    far = (1000 + spread).astype(np.float32)
    rounds = 0

    def counted(*given: Any) -> Any:
        nonlocal rounds
        rounds += 1
        assert rounds < 50, "without an end"
        return newton(*given)

    newton = solver._newton
    monkeypatch.setattr(solver, "_newton", counted)
    penalty, near = 0.1, (far - 1000).astype(np.float32)
    scale = near.std(0)
    found = [lasso(columns, scale, rows, penalty, nothing(columns, rows)) for columns in (far, near)]
    moved = Model(found[0].coefficient, found[0].intercept + 1000 * float(found[0].coefficient @ (1 / scale)))
    wanted = at(near, scale, rows, found[1], penalty)
    assert at(near, scale, rows, moved, penalty) == pytest.approx(wanted, rel=0.01)
