"""The request's options: what is accepted, what is refused and under which name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from app.protocols.options import Defaults, parse, resolve
from guard.errors import GuardError, RequestError
from guard.policy import Fail, Fallback, Hold, Mode, Policy
from guard.probe.bundle import Bundle

DEFAULTS = Defaults(Mode.SCORE, 0.7)


def test_nothing_asked_is_the_operators_default(bundle: Bundle) -> None:
    assert parse(None, DEFAULTS, bundle) == Policy(Mode.SCORE, 0.7)


def test_everything_asked(bundle: Bundle) -> None:
    asked = {
        "mode": "abstain",
        "threshold": 0.25,
        "damp": 0.5,
        "tokens": True,
        "hold": "window",
        "fallback": "message",
        "retry": 0,
    }
    expected = Policy(Mode.ABSTAIN, 0.25, 0.5, True, Fallback.MESSAGE, hold=Hold.WINDOW, retry=0)
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
        ({"hold": "sentence"}, "hallucination.hold"),
        ({"fallback": "shrug"}, "hallucination.fallback"),
        ({"preempt": "yes", "mode": "abstain"}, "hallucination.preempt"),
        ({"preempt": True}, "hallucination.preempt"),
        ({"preempt": True, "mode": "abstain"}, "hallucination.preempt"),  # this probe foresees nothing
        ({"retry": 0.0}, "hallucination.retry"),  # score mode withholds nothing
        ({"retry": 4, "mode": "abstain"}, "hallucination.retry"),
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
    defaults = resolve(
        foreseeing,
        mode=Mode.ABSTAIN,
        threshold=None,
        target_fpr=0.05,
        preempt=True,
        loosest_mode=Mode.SCORE,
        highest_threshold=1.0,
    )
    assert parse(None, defaults, foreseeing).preempt == pytest.approx(0.95, abs=1e-6)
    assert parse({"target_fpr": 0.1}, defaults, foreseeing).preempt == pytest.approx(0.9, abs=1e-6)
    assert parse({"threshold": 0.4}, defaults, foreseeing).preempt == 0.4
    assert parse({"preempt": False}, defaults, foreseeing).preempt is None
    assert parse({"mode": "score"}, defaults, foreseeing).preempt is None, "the operator's default is no error"
    plain = resolve(foreseeing, mode=Mode.SCORE, threshold=0.3, target_fpr=0.05)
    assert parse({"mode": "abstain"}, plain, foreseeing).preempt is None
    assert parse({"mode": "abstain", "preempt": True}, plain, foreseeing).preempt == 0.3
    assert (
        resolve(
            foreseeing,
            mode=Mode.ABSTAIN,
            threshold=None,
            target_fpr=0.05,
            preempt=True,
            loosest_mode=Mode.SCORE,
            highest_threshold=1.0,
        ).policy.preempt
        is not None
    )


def test_an_operator_cannot_ask_for_what_the_probe_does_not_give(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="no risk before generation"):
        resolve(bundle, mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05, preempt=True)


def test_a_threshold_of_ones_own_needs_no_calibration_answers(foreseeing: Bundle) -> None:
    few = replace(foreseeing, right_risks=foreseeing.right_risks[:3], right_foreseen=foreseeing.right_risks[:3])
    assert resolve(few, mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05, preempt=True).policy.preempt == 0.5
    with pytest.raises(RequestError, match="below what this probe's 3 calibration answers"):
        resolve(few, mode=Mode.ABSTAIN, threshold=None, target_fpr=0.05)


def test_a_caller_may_be_stricter_and_not_looser(bundle: Bundle) -> None:
    strict = resolve(bundle, mode=Mode.FLAG, threshold=0.5, target_fpr=0.05, fail=Fail.CLOSED)
    for asked in ({"mode": "abstain"}, {"threshold": 0.2}, {"mode": "abstain", "hold": "none"}, {"target_fpr": 0.9}):
        assert parse(asked, strict, bundle).fail is Fail.CLOSED
    for field, asked in (
        ("mode", {"mode": "score"}),
        ("threshold", {"threshold": 0.51}),
        ("target_fpr", {"target_fpr": 0.1}),
    ):
        with pytest.raises(RequestError, match="operator can allow") as caught:
            parse(asked, strict, bundle)
        assert caught.value.param == f"hallucination.{field}"
    stricter = resolve(bundle, mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05, hold=Hold.WINDOW)
    assert parse({"hold": "answer"}, stricter, bundle).hold is Hold.ANSWER
    with pytest.raises(RequestError, match="HGUARD_LOOSEST_HOLD"):
        parse({"hold": "none"}, stricter, bundle)


def test_an_operator_who_only_watches_leaves_thresholds_free(bundle: Bundle) -> None:
    watching = resolve(bundle, mode=Mode.SCORE, threshold=0.5, target_fpr=0.05)
    assert parse({"mode": "abstain", "threshold": 1.0, "hold": "none"}, watching, bundle).threshold == 1.0
    with pytest.raises(RequestError, match="HGUARD_LOOSEST_MODE"):
        parse({"mode": "off"}, watching, bundle)


def test_what_the_operator_allows_is_allowed(bundle: Bundle) -> None:
    allowing = resolve(
        bundle,
        mode=Mode.ABSTAIN,
        threshold=0.5,
        target_fpr=0.05,
        loosest_mode=Mode.OFF,
        highest_threshold=0.8,
        loosest_hold=Hold.NONE,
    )
    assert parse({"mode": "off"}, allowing, bundle).mode is Mode.OFF
    assert parse({"threshold": 0.8, "hold": "none"}, allowing, bundle).hold is Hold.NONE
    with pytest.raises(RequestError):
        parse({"threshold": 0.81}, allowing, bundle)


def test_no_threshold_loosens_a_look_that_cannot_be_switched_off(foreseeing: Bundle) -> None:
    """The answers' threshold may lie far over the one that the prompt's risk is held to."""
    assert foreseeing.right_foreseen is not None
    few = replace(foreseeing, right_foreseen=foreseeing.right_foreseen[:60])
    strict = resolve(few, mode=Mode.ABSTAIN, threshold=None, target_fpr=0.05, preempt=True)
    own = strict.policy.preempt
    assert own is not None
    assert own < strict.threshold
    for asked in ({}, {"threshold": strict.threshold}, {"threshold": (own + strict.threshold) / 2}):
        assert parse(asked, strict, few).preempt == own
    assert parse({"threshold": own / 2}, strict, few).preempt == own / 2
    assert parse({"target_fpr": 0.2}, strict, few).preempt < own
    allowing = resolve(few, mode=Mode.ABSTAIN, threshold=None, target_fpr=0.05, preempt=True, highest_threshold=1.0)
    assert parse({"threshold": 1.0}, allowing, few).preempt == own, "only answers may be let through"
    assert parse({"target_fpr": 0.02}, allowing, few).preempt == own


@pytest.mark.parametrize("field", ["damp", "retry"])
def test_weaker_neurons_are_no_way_round_the_operator(bundle: Bundle, field: str) -> None:
    strict = resolve(bundle, mode=Mode.FLAG, threshold=0.5, target_fpr=0.05)
    assert parse({field: 1.0, "mode": "abstain"}, strict, bundle)
    with pytest.raises(RequestError, match=r"by 1 at least, not by 0\.5; .*HGUARD_LOWEST_DAMP") as refused:
        parse({field: 0.5, "mode": "abstain"}, strict, bundle)
    assert refused.value.param == f"hallucination.{field}"
    allowing = resolve(bundle, mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05, lowest_damp=0.25)
    assert parse({field: 0.25}, allowing, bundle)
    with pytest.raises(RequestError, match=r"by 0\.25 at least, not by 0;"):
        parse({field: 0.0}, allowing, bundle)
    free = resolve(bundle, mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05, loosest_mode=Mode.SCORE)
    assert parse({field: 0.0}, free, bundle)


@pytest.mark.parametrize("field", ["damp", "retry"])
def test_stronger_neurons_are_no_way_round_the_operator(bundle: Bundle, field: str) -> None:
    strict = resolve(bundle, mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05)
    with pytest.raises(RequestError, match=r"by 1 at most, not by 1\.5; .*HGUARD_HIGHEST_DAMP") as refused:
        parse({field: 1.5}, strict, bundle)
    assert refused.value.param == f"hallucination.{field}"
    allowing = resolve(bundle, mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05, highest_damp=2.0)
    assert parse({field: 1.5}, allowing, bundle)
    free = resolve(bundle, mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05, loosest_mode=Mode.SCORE)
    assert parse({field: 3.0}, free, bundle)


@pytest.mark.parametrize(
    ("ceilings", "named"),
    [
        ({"loosest_mode": Mode.ABSTAIN}, "--loosest-mode"),
        ({"highest_threshold": 0.4}, "--highest-threshold"),
        ({"hold": Hold.NONE, "loosest_hold": Hold.ANSWER}, "--loosest-hold"),
    ],
)
def test_a_default_over_its_own_ceiling_is_refused(bundle: Bundle, ceilings: dict[str, Any], named: str) -> None:
    with pytest.raises(GuardError, match=named):
        resolve(bundle, mode=Mode.FLAG, threshold=0.5, target_fpr=0.05, **ceilings)
