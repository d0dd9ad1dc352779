"""Calibration on answers whose risks are known."""

from __future__ import annotations

import numpy as np
import pytest

from guard.evaluation import metrics
from guard.probe.readout import Readout, sigmoid
from guard.probe.signals import TokenSignals
from guard.training import calibration
from tests.measured import token_signals


def answers(count: int, seed: int) -> tuple[list[TokenSignals], np.ndarray]:
    """Answers of four tokens whose probability of being wrong is a logistic function of lead and entropy."""
    rng = np.random.default_rng(seed)
    lead, entropy = rng.normal(size=count), rng.gamma(2, 0.5, count)
    wrong = rng.random(count) < sigmoid(2 * lead + 3 * (entropy - 1))
    made = [
        token_signals(float(z), np.full(4, z, np.float32), np.full(4, h, np.float32), np.full(4, -h, np.float32))
        for z, h in zip(lead, entropy, strict=True)
    ]
    return made, wrong


def fitted(method: calibration.Method) -> tuple[Readout, list[TokenSignals], np.ndarray]:
    signals, wrong = answers(4000, 0)
    readout = calibration.fit_readout(signals, wrong, [(0, 4)] * len(signals), 4, method)
    fresh, truth = answers(4000, 1)
    return readout, fresh, truth


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_risks_are_probabilities_on_fresh_answers(method: calibration.Method) -> None:
    readout, fresh, wrong = fitted(method)
    risk = np.array([readout.risk(one)[0] for one in fresh])
    entities = [str(i) for i in range(len(fresh))]
    assert metrics.ece(wrong, risk) < 0.03
    assert metrics.auroc(wrong, risk, entities, draws=20).value > 0.9
    prompt_risk = np.array([readout.prompt_risk(one.prompt_score) for one in fresh])
    # Without the entropy, the truth is no logistic function of the lead score any more.
    assert metrics.ece(wrong, prompt_risk) < 0.05
    ahead = metrics.auroc(wrong, prompt_risk, entities, draws=20).value
    assert 0.6 < ahead < metrics.auroc(wrong, risk, entities, draws=20).value


def test_isotonic_follows_what_no_sigmoid_can() -> None:
    """A base rate that jumps: half of all beyond a point are wrong, almost none before it."""
    rng = np.random.default_rng(2)
    logits = rng.uniform(-4, 4, 4000)
    wrong = rng.random(4000) < np.where(logits > 1, 0.5, 0.02)
    points = calibration.isotonic(logits.tolist(), wrong)
    x, y = np.array(points).T
    assert (np.diff(x) > 0).all()
    assert (np.diff(y) > 0).all()
    a, b = calibration.platt(logits.tolist(), wrong)
    steps = metrics.ece(wrong, np.interp(logits, x, y))
    assert steps < 0.02 < metrics.ece(wrong, sigmoid(a * logits + b))


def test_isotonic_on_one_level_is_flat() -> None:
    logits = [float(i) for i in range(40)]
    wrong = np.array([True] * 20 + [False] * 20)  # the wrong way round: nothing ascends
    (low, high) = calibration.isotonic(logits, wrong)
    assert low[0] < high[0]
    assert low[1] == high[1] == pytest.approx(0.5)


def test_a_score_that_says_the_opposite_gives_the_base_rate() -> None:
    rng = np.random.default_rng(3)
    lead = rng.normal(size=500)
    wrong = rng.random(500) < sigmoid(-3 * lead)
    slope, bias = calibration.platt(lead.tolist(), wrong)
    assert slope == 0
    assert sigmoid(np.float64(bias)) == pytest.approx(wrong.mean())


def test_what_thresholds_cost() -> None:
    risk = np.array([0.1, 0.2, 0.6, 0.3, 0.8, 0.9])
    wrong = np.array([False, False, False, True, True, True])
    (at,) = calibration.at_thresholds({"0.05": 0.5}, risk, wrong).values()
    assert (at.false_alarms, at.caught, at.coverage) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 0.5)


def test_thresholds_come_from_right_answers_alone() -> None:
    readout, fresh, wrong = fitted("platt")
    parameters, risks = calibration.calibrated(readout, fresh, wrong)
    assert parameters.prompt_platt is not None
    assert len(risks["right_risks"]) == len(risks["right_prompt_risks"]) == (~wrong).sum()
    assert len(risks["wrong_risks"]) == wrong.sum()
    assert (np.diff(risks["right_risks"]) >= 0).all()
    assert (np.diff(risks["wrong_risks"]) >= 0).all()
