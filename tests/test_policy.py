"""Decisions."""

from __future__ import annotations

import pytest

from guard.policy import Action, Decision, Mode, Policy, decide


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


def test_only_abstain_holds_the_answer() -> None:
    assert [mode for mode in Mode if Policy(mode, 0.5).holds_answer] == [Mode.ABSTAIN]
