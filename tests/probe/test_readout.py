"""The arithmetic from signals to risk."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from guard.errors import RequestError
from guard.probe import conformal
from guard.probe.readout import Readout, windows
from guard.probe.signals import SignalFault, TokenSignals
from guard.training import calibration
from tests.measured import stack_of, token_signals

STACK = stack_of((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.5, 0.25), -1.0)
NAN = math.nan


def signals(neurons: list[float], lead: float = 1.0) -> TokenSignals:
    n = len(neurons)
    entropy = np.linspace(0.1, 0.1 * n, n, dtype=np.float32)
    return token_signals(lead, neurons, entropy, -10 * entropy)


def test_short_answer_is_one_window_with_the_lead() -> None:
    features, starts, width = windows(signals([2.0, 3.0]), 8)
    assert width == 2
    assert starts.tolist() == [0]
    np.testing.assert_allclose(features[:, :3], [[(1 + 2 + 3) / 3, 0.2, 2.0]], rtol=1e-6)


def test_only_the_first_window_counts_the_lead() -> None:
    features, starts, width = windows(signals([2.0, 4.0, 6.0]), 2)
    assert (starts.tolist(), width) == ([0, 1], 2)
    np.testing.assert_allclose(features[:, 0], [(1 + 2 + 4) / 3, 5.0])
    np.testing.assert_allclose(features[:, 1], [0.2, 0.3], rtol=1e-6)


def test_last_token_without_activation_is_left_out_of_the_mean() -> None:
    features, _, _ = windows(signals([2.0, 4.0, NAN]), 2)
    np.testing.assert_allclose(features[:, 0], [(1 + 2 + 4) / 3, 4.0])
    single, _, _ = windows(signals([2.0, NAN]), 1)
    np.testing.assert_allclose(single[:, 0], [1.5, 2.0])


@pytest.mark.parametrize("tail", [0.0, 0.7])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_an_explanation_sums_to_the_logit(tokens: int, tail: float) -> None:
    rng = np.random.default_rng(tokens)
    stack = stack_of((0.5, -1.0, 0.0), (2.0, 0.5, 3.0), (1.5, 0.0, -0.75), -0.3)
    readout = Readout(4, stack, (1.3, 0.2), STACK, tail=tail)
    measured = token_signals(0.4, *rng.normal(0, 1, (3, tokens)).astype(np.float32))
    logit, peak = readout.logit(measured)
    why = readout.explain(measured)
    assert set(why.signals) == {"neurons", "logprob"}, "what has no weight adds nothing"
    assert why.logit == pytest.approx(logit, abs=1e-6)
    features, starts, _ = windows(measured, 4)
    (worst,) = features[starts == peak.start]
    assert why.signals["neurons"] == pytest.approx(1.5 * (worst[0] - 0.5) / 2)
    assert why.signals["logprob"] == pytest.approx(-0.75 * worst[2] / 3)
    assert (why.base < -0.3) is bool(tail and peak.start)


def test_risk_is_that_of_the_worst_window() -> None:
    calm, spike = [0.0] * 40, [0.0] * 20 + [9.0] * 4 + [0.0] * 16
    readout = Readout(4, STACK, (1.0, 0.0), STACK)
    flat = token_signals(0.0, np.zeros(40, np.float32), np.zeros(40, np.float32), np.zeros(40, np.float32))
    spiked = token_signals(0.0, np.array(spike, np.float32), flat["entropy"], flat["logprob"])
    assert len(calm) == len(spiked)
    low, _ = readout.risk(flat)
    high, peak = readout.risk(spiked)
    assert low == pytest.approx(1 / (1 + math.e))
    assert high == pytest.approx(1 / (1 + math.exp(-8)))
    assert (peak.start, peak.end) == (20, 24)


@pytest.mark.parametrize("tail", [0.0, 0.7])
@pytest.mark.parametrize("isotonic", [None, ((-2.0, 0.1), (0.0, 0.3), (2.5, 0.9))])
def test_windows_of_many_answers_are_judged_as_each_alone(tail: float, isotonic: Any) -> None:
    rng = np.random.default_rng(3)
    stack = stack_of((0.5, 0.1, -1.0), (2.0, 0.5, 3.0), (1.5, 0.4, -0.75), -0.3)
    readout = Readout(4, stack, (1.3, 0.2), STACK, isotonic=isotonic, tail=tail)
    answers = [token_signals(lead, *rng.normal(0, 2, (3, 4)).astype(np.float32)) for lead in (0.4, 3.0, 1.1, -2.0)]
    place = np.array([0, 0, 7, 0])
    answers[2].last_prompt["neurons"] = NAN  # type: ignore[index]
    alone = [readout.risk(one, int(before))[0] for one, before in zip(answers, place, strict=True)]
    values = {name: np.stack([one[name] for one in answers]) for name in ("neurons", "entropy", "logprob")}
    opening = np.array([0, 1, 3])
    before = {"neurons": np.array([0.4, 3.0, -2.0], np.float32)}
    together = readout.window_risks(values, opening, before, place)
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_platt_is_applied_to_the_logit() -> None:
    one = signals([2.0])
    logit, _ = Readout(4, STACK, (1.0, 0.0), STACK).logit(one)
    risk, _ = Readout(4, STACK, (2.0, -1.0), STACK).risk(one)
    assert risk == pytest.approx(1 / (1 + math.exp(-(2 * logit - 1))))


def test_a_token_without_score_has_no_risk() -> None:
    risks = Readout(4, STACK, (1.0, 0.0), STACK).token_risks(signals([2.0, NAN]))
    assert risks[0] == pytest.approx(1 / (1 + math.exp(-(2.0 + 0.05 + 0.25 - 1))))
    assert risks[1] is None


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (signals([]), SignalFault.EMPTY),
        (signals([NAN, 1.0]), SignalFault.MISSING),
        (signals([1.0], lead=NAN), SignalFault.MISSING),
        (signals([math.inf, 1.0]), SignalFault.NOT_FINITE),
        (signals([1.0, -math.inf]), SignalFault.NOT_FINITE),
        (signals([1.0], lead=math.inf), SignalFault.NOT_FINITE),
        (
            token_signals(1.0, np.ones(1, np.float32), np.array([NAN], np.float32), np.zeros(1, np.float32)),
            SignalFault.MISSING,
        ),
    ],
)
def test_flaws_are_named(broken: TokenSignals, says: SignalFault) -> None:
    assert broken.fault() is says


def test_in_the_middle_of_an_answer_each_token_needs_its_score() -> None:
    whole = signals([1.0, 2.0, NAN])
    assert whole.part(0, 2).fault_within() is None
    assert whole.part(1, 3).fault_within() is SignalFault.MISSING
    assert signals([1.0, math.inf]).fault_within() is SignalFault.NOT_FINITE


@pytest.mark.parametrize("tail", [0.0, 0.5])
def test_the_worst_window_is_the_same_part_by_part(tail: float) -> None:
    values = signals(list(np.random.default_rng(3).normal(0, 2, 40)), lead=1.5)
    readout = Readout(4, STACK, (1.0, 0.0), STACK, tail=tail)
    whole, peak = readout.risk(values)
    parts = [readout.risk(values.part(i, i + 4), i)[0] for i in range(37)]
    assert max(parts) == pytest.approx(whole)
    assert parts.index(max(parts)) == peak.start


def test_false_alarms_hardly_grow_with_length() -> None:
    """Tokens that are alike, in answers of one to eight windows, at the threshold of 5 % for those of one."""
    rng = np.random.default_rng(8)
    width, many = 16, 1000
    alone = stack_of((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), 0.0)

    def answers(tokens: int) -> list[TokenSignals]:
        neurons = rng.normal(0, 1, (many, tokens + 1)).astype(np.float32)
        unused = np.zeros(tokens, np.float32)
        return [token_signals(float(row[0]), row[1:], unused, unused) for row in neurons]

    plain = Readout(width, alone, (1.0, 0.0), alone)
    one_window = np.array([plain.logit(one)[0] for one in answers(width)])
    corrected = Readout(width, alone, (1.0, 0.0), alone, tail=calibration.tail(one_window))
    alarms = {}
    for readout in (plain, corrected):
        threshold = np.quantile([readout.logit(one)[0] for one in answers(width)], 0.95)
        alarms[readout.tail > 0] = [
            np.mean([readout.logit(one)[0] >= threshold for one in answers(width * times)]) for times in (2, 4, 8)
        ]
    assert alarms[False][-1] > 0.4
    assert max(alarms[True]) < 0.2
    assert all(with_tail < without for with_tail, without in zip(alarms[True], alarms[False], strict=True))


def test_missing_last_score_is_no_flaw() -> None:
    assert signals([1.0, NAN]).fault() is None


def test_extreme_logits_do_not_overflow() -> None:
    assert Readout(4, STACK, (1e9, 0.0), STACK).risk(signals([1e9]))[0] == pytest.approx(1.0)


@pytest.mark.parametrize("target", [0.01, 0.05, 0.1, 0.5])
def test_conformal_threshold_keeps_its_promise(target: float) -> None:
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(400):
        right = np.sort(rng.beta(2, 5, 199).astype(np.float32))
        alarms.append(np.mean(rng.beta(2, 5, 200) >= conformal.threshold(right, target)))
    assert np.mean(alarms) <= target + 3 * np.std(alarms) / math.sqrt(len(alarms))
    assert np.mean(alarms) >= target - 0.02


def test_conformal_rate_too_small_for_the_sample() -> None:
    with pytest.raises(RequestError, match=r"takes 99 right ones; the smallest rate is 0\.02"):
        conformal.threshold(np.linspace(0, 1, 49, dtype=np.float32), 0.01)


def test_a_probe_of_neurons_alone_needs_no_entropy() -> None:
    alone = stack_of((0.0, 5.0, 5.0), (1.0, 1.0, 1.0), (2.0, 0.0, 0.0), -1.0)
    readout = Readout(4, alone, (1.0, 0.0), alone)
    assert not readout.uses_draws
    assert Readout(4, STACK, (1.0, 0.0), alone).uses_draws
    bare = token_signals(1.0, np.array([2.0, 3.0], np.float32), *(np.full(2, NAN, np.float32),) * 2)
    assert bare.fault() is not None
    assert bare.fault(readout.used) is None
    assert readout.risk(bare)[0] == pytest.approx(1 / (1 + math.exp(-3)))
    assert readout.token_risks(bare) == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-5))])


@pytest.mark.parametrize(("target", "needed"), [(0.001, 999), (0.005, 199), (0.01, 99), (0.05, 19), (0.10, 9)])
def test_how_many_right_answers_a_rate_takes(target: float, needed: int) -> None:
    risks = np.linspace(0, 1, needed, dtype=np.float32)
    assert conformal.needed(target) == needed
    assert list(conformal.thresholds(risks, [target])) == [conformal.name_of(target)]
    assert conformal.thresholds(risks[1:], [target]) == {}
    assert float(conformal.name_of(target)) == target
