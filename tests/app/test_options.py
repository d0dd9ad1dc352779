"""The request's options: what is accepted, what is refused and under which name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from app.options import Defaults, parse
from guard.errors import RequestError
from guard.policy import Fallback, Mode, Policy
from guard.probe.bundle import Bundle

DEFAULTS = Defaults(Mode.SCORE, 0.7)


def test_nothing_asked_is_the_operators_default(bundle: Bundle) -> None:
    assert parse(None, DEFAULTS, bundle) == Policy(Mode.SCORE, 0.7)


def test_everything_asked(bundle: Bundle) -> None:
    asked = {"mode": "abstain", "threshold": 0.25, "damp": 0.5, "tokens": True, "hold": "answer", "fallback": "message"}
    expected = Policy(Mode.ABSTAIN, 0.25, 0.5, True, Fallback.MESSAGE)
    assert parse(asked, DEFAULTS, bundle) == expected


def test_target_fpr_becomes_the_bundles_threshold(bundle: Bundle) -> None:
    # 99 right answers with risks .01 to .99: the k-th smallest for 10 % is the 90th.
    assert parse({"target_fpr": 0.1}, DEFAULTS, bundle).threshold == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ([], "hallucination"),
        ("flag", "hallucination"),
        ({"mode": "panic"}, "hallucination.mode"),
        ({"mode": 3}, "hallucination.mode"),
        ({"threshold": -0.1}, "hallucination.threshold"),
        ({"threshold": 1.01}, "hallucination.threshold"),
        ({"threshold": "0.5"}, "hallucination.threshold"),
        ({"threshold": True}, "hallucination.threshold"),
        ({"threshold": math.nan}, "hallucination.threshold"),
        ({"target_fpr": 0}, "hallucination.target_fpr"),
        ({"target_fpr": 1}, "hallucination.target_fpr"),
        ({"target_fpr": 0.001}, "hallucination.target_fpr"),
        ({"damp": -1}, "hallucination.damp"),
        ({"damp": 3.5}, "hallucination.damp"),
        ({"damp": "a lot"}, "hallucination.damp"),
        ({"damp": math.inf}, "hallucination.damp"),
        ({"damp": math.nan}, "hallucination.damp"),
        ({"tokens": "yes"}, "hallucination.tokens"),
        ({"hold": "window"}, "hallucination.hold"),
        ({"fallback": "shrug"}, "hallucination.fallback"),
        ({"preempt": "yes", "mode": "abstain"}, "hallucination.preempt"),
        ({"preempt": True}, "hallucination.preempt"),
        ({"preempt": True, "mode": "abstain"}, "hallucination.preempt"),  # this probe foresees nothing
        ({"treshold": 0.5}, "hallucination.treshold"),
        ({"threshold": 0.5, "target_fpr": 0.1}, "hallucination"),
    ],
)
def test_wrong_options_are_named(bundle: Bundle, asked: Any, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(asked, DEFAULTS, bundle)
    assert caught.value.param == field
    assert caught.value.status == 400
    assert str(caught.value)


def test_refusing_before_generation(foreseeing: Bundle) -> None:
    defaults = Defaults.resolve(Mode.ABSTAIN, None, 0.05, foreseeing, preempt=True)
    assert parse(None, defaults, foreseeing).preempt == pytest.approx(0.95, abs=1e-6)
    assert parse({"target_fpr": 0.1}, defaults, foreseeing).preempt == pytest.approx(0.9, abs=1e-6)
    assert parse({"threshold": 0.4}, defaults, foreseeing).preempt == 0.4
    assert parse({"preempt": False}, defaults, foreseeing).preempt is None
    assert parse({"mode": "score"}, defaults, foreseeing).preempt is None, "the operator's default is no error"
    plain = Defaults.resolve(Mode.SCORE, 0.3, 0.05, foreseeing)
    assert parse({"mode": "abstain"}, plain, foreseeing).preempt is None
    assert parse({"mode": "abstain", "preempt": True}, plain, foreseeing).preempt == 0.3
    assert Defaults.resolve(Mode.ABSTAIN, None, 0.05, foreseeing, preempt=True).policy.preempt is not None


def test_an_operator_cannot_ask_for_what_the_probe_does_not_give(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="no risk before generation"):
        Defaults.resolve(Mode.ABSTAIN, 0.5, 0.05, bundle, preempt=True)


def test_a_threshold_of_ones_own_needs_no_calibration_answers(foreseeing: Bundle) -> None:
    few = replace(foreseeing, right_risks=foreseeing.right_risks[:3], right_foreseen=foreseeing.right_risks[:3])
    assert Defaults.resolve(Mode.ABSTAIN, 0.5, 0.05, few, preempt=True).policy.preempt == 0.5
    with pytest.raises(RequestError, match="below what this probe's 3 calibration answers"):
        Defaults.resolve(Mode.ABSTAIN, None, 0.05, few)
