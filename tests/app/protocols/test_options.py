"""The request's options: what is accepted, what is refused and under which name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from app.errors import status_of
from app.protocols.options import PolicyResolver
from app.settings import GuardSettings
from guard.errors import GuardError, RequestError
from guard.policy import Fail, Fallback, Hold, Mode, Policy
from guard.probe.bundle import Bundle


@pytest.fixture
def free(bundle: Bundle) -> PolicyResolver:
    """Of an operator who allows everything."""
    return PolicyResolver(GuardSettings(mode=Mode.SCORE, threshold=0.7, loosest_mode=Mode.OFF), bundle)


def test_nothing_asked_is_the_operators_default(free: PolicyResolver) -> None:
    assert free.resolve(None) == Policy(Mode.SCORE, 0.7)


def test_everything_asked(free: PolicyResolver) -> None:
    asked = {
        "mode": "abstain",
        "threshold": 0.25,
        "scale": 0.5,
        "tokens": True,
        "hold": "window",
        "fallback": "message",
        "retry_scale": 0,
        "explain": True,
    }
    expected = Policy(Mode.ABSTAIN, 0.25, 0.5, True, Fallback.MESSAGE, hold=Hold.WINDOW, retry_scale=0, explain=True)
    assert free.resolve(asked) == expected


def test_target_fpr_becomes_the_bundles_threshold(free: PolicyResolver) -> None:
    # 99 right answers with risks .01 to .99: the k-th smallest for 10 % is the 90th.
    assert free.resolve({"target_fpr": 0.1}).threshold == pytest.approx(0.9, abs=1e-6)


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
        ({"scale": -1}, "hallucination.scale"),
        ({"scale": 3.5}, "hallucination.scale"),
        ({"scale": "a lot"}, "hallucination.scale"),
        ({"scale": math.inf}, "hallucination.scale"),
        ({"scale": math.nan}, "hallucination.scale"),
        ({"tokens": "yes"}, "hallucination.tokens"),
        ({"hold": "sentence"}, "hallucination.hold"),
        ({"fallback": "shrug"}, "hallucination.fallback"),
        ({"prompt_check": "yes", "mode": "abstain"}, "hallucination.prompt_check"),
        ({"prompt_check": True}, "hallucination.prompt_check"),
        ({"prompt_check": True, "mode": "abstain"}, "hallucination.prompt_check"),  # this probe has_prompt_risk nothing
        ({"retry_scale": 0.0}, "hallucination.retry_scale"),  # score mode withholds nothing
        ({"retry_scale": 4, "mode": "abstain"}, "hallucination.retry_scale"),
        ({"treshold": 0.5}, "hallucination.treshold"),
        ({"threshold": 0.5, "target_fpr": 0.1}, "hallucination"),
    ],
)
def test_wrong_options_are_named(free: PolicyResolver, asked: Any, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        free.resolve(asked)
    assert caught.value.param == field
    assert status_of(caught.value) == 400
    assert str(caught.value)


def test_refusing_before_generation(foreseeing: Bundle) -> None:
    defaults = PolicyResolver(
        GuardSettings(
            mode=Mode.ABSTAIN,
            threshold=None,
            target_fpr=0.05,
            prompt_check=True,
            loosest_mode=Mode.SCORE,
            max_threshold=1.0,
        ),
        foreseeing,
    )
    assert defaults.resolve(None).prompt_threshold == pytest.approx(0.95, abs=1e-6)
    assert defaults.resolve({"target_fpr": 0.1}).prompt_threshold == pytest.approx(0.9, abs=1e-6)
    assert defaults.resolve({"threshold": 0.4}).prompt_threshold == 0.4
    assert defaults.resolve({"prompt_check": False}).prompt_threshold is None
    assert defaults.resolve({"mode": "score"}).prompt_threshold is None, "the operator's default is no error"
    plain = PolicyResolver(GuardSettings(mode=Mode.SCORE, threshold=0.3, target_fpr=0.05), foreseeing)
    assert plain.resolve({"mode": "abstain"}).prompt_threshold is None
    assert plain.resolve({"mode": "abstain", "prompt_check": True}).prompt_threshold == 0.3
    assert (
        PolicyResolver(
            GuardSettings(
                mode=Mode.ABSTAIN,
                threshold=None,
                target_fpr=0.05,
                prompt_check=True,
                loosest_mode=Mode.SCORE,
                max_threshold=1.0,
            ),
            foreseeing,
        ).policy.prompt_threshold
        is not None
    )


def test_an_operator_cannot_ask_for_what_the_probe_does_not_give(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="no risk before generation"):
        PolicyResolver(GuardSettings(mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05, prompt_check=True), bundle)


def test_a_threshold_of_ones_own_needs_no_calibration_answers(foreseeing: Bundle) -> None:
    few = replace(foreseeing, right_risks=foreseeing.right_risks[:3], right_prompt_risks=foreseeing.right_risks[:3])
    assert (
        PolicyResolver(
            GuardSettings(mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05, prompt_check=True), few
        ).policy.prompt_threshold
        == 0.5
    )
    with pytest.raises(RequestError, match="below what this probe's 3 calibration answers"):
        PolicyResolver(GuardSettings(mode=Mode.ABSTAIN, threshold=None, target_fpr=0.05), few)


def test_a_caller_may_be_stricter_and_not_looser(bundle: Bundle) -> None:
    strict = PolicyResolver(GuardSettings(mode=Mode.FLAG, threshold=0.5, target_fpr=0.05, fail=Fail.CLOSED), bundle)
    for asked in ({"mode": "abstain"}, {"threshold": 0.2}, {"mode": "abstain", "hold": "none"}, {"target_fpr": 0.9}):
        assert strict.resolve(asked).fail is Fail.CLOSED
    for field, asked in (
        ("mode", {"mode": "score"}),
        ("threshold", {"threshold": 0.51}),
        ("target_fpr", {"target_fpr": 0.1}),
    ):
        with pytest.raises(RequestError, match="operator can") as caught:
            strict.resolve(asked)
        assert caught.value.param == f"hallucination.{field}"
    stricter = PolicyResolver(
        GuardSettings(mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05, hold=Hold.WINDOW), bundle
    )
    assert stricter.resolve({"hold": "answer"}).hold is Hold.ANSWER
    with pytest.raises(RequestError, match="HGUARD_LOOSEST_HOLD"):
        stricter.resolve({"hold": "none"})


def test_an_operator_who_only_watches_leaves_thresholds_free(bundle: Bundle) -> None:
    watching = PolicyResolver(GuardSettings(mode=Mode.SCORE, threshold=0.5, target_fpr=0.05), bundle)
    assert watching.resolve({"mode": "abstain", "threshold": 1.0, "hold": "none"}).threshold == 1.0
    with pytest.raises(RequestError, match="HGUARD_LOOSEST_MODE"):
        watching.resolve({"mode": "off"})


def test_what_the_operator_allows_is_allowed(bundle: Bundle) -> None:
    allowing = PolicyResolver(
        GuardSettings(
            mode=Mode.ABSTAIN,
            threshold=0.5,
            target_fpr=0.05,
            loosest_mode=Mode.OFF,
            max_threshold=0.8,
            loosest_hold=Hold.NONE,
        ),
        bundle,
    )
    assert allowing.resolve({"mode": "off"}).mode is Mode.OFF
    assert allowing.resolve({"threshold": 0.8, "hold": "none"}).hold is Hold.NONE
    with pytest.raises(RequestError):
        allowing.resolve({"threshold": 0.81})


def test_no_threshold_loosens_a_look_that_cannot_be_switched_off(foreseeing: Bundle) -> None:
    """The answers' threshold may lie far over the one that the prompt's risk is held to."""
    assert foreseeing.right_prompt_risks is not None
    few = replace(foreseeing, right_prompt_risks=foreseeing.right_prompt_risks[:60])
    strict = PolicyResolver(GuardSettings(mode=Mode.ABSTAIN, threshold=None, target_fpr=0.05, prompt_check=True), few)
    own = strict.policy.prompt_threshold
    assert own is not None
    assert own < strict.threshold
    for asked in ({}, {"threshold": strict.threshold}, {"threshold": (own + strict.threshold) / 2}):
        assert strict.resolve(asked).prompt_threshold == own
    assert strict.resolve({"threshold": own / 2}).prompt_threshold == own / 2
    assert strict.resolve({"target_fpr": 0.2}).prompt_threshold < own
    allowing = PolicyResolver(
        GuardSettings(mode=Mode.ABSTAIN, threshold=None, target_fpr=0.05, prompt_check=True, max_threshold=1.0), few
    )
    assert allowing.resolve({"threshold": 1.0}).prompt_threshold == own, "only answers may be let through"
    assert allowing.resolve({"target_fpr": 0.02}).prompt_threshold == own


@pytest.mark.parametrize("field", ["scale", "retry_scale"])
def test_weaker_neurons_are_no_way_round_the_operator(bundle: Bundle, field: str) -> None:
    strict = PolicyResolver(GuardSettings(mode=Mode.FLAG, threshold=0.5, target_fpr=0.05), bundle)
    assert strict.resolve({field: 1.0, "mode": "abstain"})
    with pytest.raises(RequestError, match=r"0\.5 is below this server's minimum 1; .*HGUARD_MIN_SCALE") as refused:
        strict.resolve({field: 0.5, "mode": "abstain"})
    assert refused.value.param == f"hallucination.{field}"
    allowing = PolicyResolver(GuardSettings(mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05, min_scale=0.25), bundle)
    assert allowing.resolve({field: 0.25})
    with pytest.raises(RequestError, match=r"0 is below this server's minimum 0\.25;"):
        allowing.resolve({field: 0.0})
    free = PolicyResolver(
        GuardSettings(mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05, loosest_mode=Mode.SCORE), bundle
    )
    assert free.resolve({field: 0.0})


@pytest.mark.parametrize("field", ["scale", "retry_scale"])
def test_stronger_neurons_are_no_way_round_the_operator(bundle: Bundle, field: str) -> None:
    strict = PolicyResolver(GuardSettings(mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05), bundle)
    with pytest.raises(RequestError, match=r"1\.5 exceeds this server's maximum 1; .*HGUARD_MAX_SCALE") as refused:
        strict.resolve({field: 1.5})
    assert refused.value.param == f"hallucination.{field}"
    allowing = PolicyResolver(GuardSettings(mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05, max_scale=2.0), bundle)
    assert allowing.resolve({field: 1.5})
    free = PolicyResolver(
        GuardSettings(mode=Mode.ABSTAIN, threshold=0.5, target_fpr=0.05, loosest_mode=Mode.SCORE), bundle
    )
    assert free.resolve({field: 3.0})


@pytest.mark.parametrize(
    ("ceilings", "named"),
    [
        ({"loosest_mode": Mode.ABSTAIN}, "--loosest-mode"),
        ({"max_threshold": 0.4}, "--max-threshold"),
        ({"hold": Hold.NONE, "loosest_hold": Hold.ANSWER}, "--loosest-hold"),
    ],
)
def test_a_default_over_its_own_ceiling_is_refused(bundle: Bundle, ceilings: dict[str, Any], named: str) -> None:
    with pytest.raises(GuardError, match=named):
        PolicyResolver(GuardSettings(mode=Mode.FLAG, threshold=0.5, target_fpr=0.05, **ceilings), bundle)
