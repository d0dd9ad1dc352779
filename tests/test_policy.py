"""Decisions."""

from __future__ import annotations

import pytest

from guard.policy import Action, Decision, Fail, Mode, Policy, decide


@pytest.mark.parametrize(
    ("mode", "risk", "flagged", "action"),
    [
        (Mode.SCORE, 0.4, False, Action.PASS),
        (Mode.SCORE, 0.9, True, Action.PASS),
        (Mode.FLAG, 0.4, False, Action.PASS),
        (Mode.FLAG, 0.5, True, Action.FLAGGED),
        (Mode.ABSTAIN, 0.4, False, Action.PASS),
        (Mode.ABSTAIN, 0.5, True, Action.ABSTAINED),
        (Mode.OFF, None, False, Action.PASS),
        (Mode.SCORE, None, False, Action.PASS),
        (Mode.FLAG, None, False, Action.PASS),
        (Mode.ABSTAIN, None, False, Action.ABSTAINED),
    ],
)
def test_decide(mode: Mode, risk: float | None, flagged: bool, action: Action) -> None:
    assert decide(risk, Policy(mode, 0.5)) == Decision(flagged, action)


def test_only_abstain_withholds_for_a_risk() -> None:
    assert [mode for mode in Mode if Policy(mode, 0.5).withholds] == [Mode.ABSTAIN]


@pytest.mark.parametrize("mode", [Mode.SCORE, Mode.FLAG, Mode.ABSTAIN])
def test_what_becomes_of_an_answer_without_a_score_can_be_said(mode: Mode) -> None:
    assert decide(None, Policy(mode, 0.5, fail=Fail.CLOSED)).action is Action.ABSTAINED
    assert decide(None, Policy(mode, 0.5, fail=Fail.OPEN)).action is Action.PASS


def test_off_has_nothing_that_could_fail() -> None:
    assert not Policy(Mode.OFF, 0.5, fail=Fail.CLOSED).fails_closed


@pytest.mark.parametrize("mode", [Mode.SCORE, Mode.FLAG, Mode.ABSTAIN])
def test_what_declines_passes_whatever_its_risk_but_not_without_one(mode: Mode) -> None:
    assert decide(0.99, Policy(mode, 0.5), declined=True) == Decision(False, Action.PASS)
    closed = decide(None, Policy(mode, 0.5, fail=Fail.CLOSED), declined=True)
    assert closed.action is Action.ABSTAINED
