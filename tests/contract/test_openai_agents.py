"""``openai-agents``: an abstention raises its refusal, over either API; it drops the verdict but for raw events."""

from __future__ import annotations

from typing import Any

from tests.contract.callers.openai_agents import CALLERS
from tests.contract.checks import EVERY_OUTCOME, check, check_rows, every_call
from tests.contract.conftest import Observed
from tests.contract.house import MESSAGE, REFUSAL
from tests.contract.outcomes import (
    ABSTAINED,
    ANSWERED,
    DEATH,
    INVALID,
    REFUSED,
    REPLACED,
    STRANGER,
    WITHHELD,
    Caller,
    Outcome,
)

CHAT, RESPONSES = CALLERS


@EVERY_OUTCOME
@every_call(CALLERS)
def test_every_outcome(observed: Observed, caller: Caller, outcome: Outcome, stream: bool) -> None:
    seen = observed(caller, outcome, stream)
    check(seen, caller, outcome)
    told = caller is RESPONSES and stream and outcome in (*ANSWERED, *ABSTAINED)
    assert (seen.verdict is not None) is told, "it has come to keep the verdict, or to drop it: say so in the matrix"


@every_call(CALLERS)
def test_how_it_ends(observed: Observed, caller: Caller, stream: bool) -> None:
    import agents

    for outcome in (*ANSWERED, REPLACED):
        assert observed(caller, outcome, stream).facts == ["`final_output` set"]
    assert observed(caller, REPLACED, stream).text == MESSAGE
    for outcome in (REFUSED, WITHHELD):
        error = observed(caller, outcome, stream).error
        assert isinstance(error, agents.ModelRefusalError)
        assert error.refusal == REFUSAL


@every_call(CALLERS)
def test_errors(observed: Observed, caller: Caller, stream: bool) -> None:
    import agents
    import openai

    invalid: Any = observed(caller, INVALID, stream).error
    assert isinstance(invalid, openai.BadRequestError)
    assert invalid.param == "hallucination.mode"
    assert isinstance(observed(caller, STRANGER, stream).error, openai.AuthenticationError)
    died = observed(caller, DEATH, stream).error
    if caller is RESPONSES and stream:
        assert isinstance(died, agents.ModelBehaviorError)
    else:
        assert isinstance(died, openai.APIError)


def test_the_document_says_what_it_sees(observed: Observed) -> None:
    check_rows(observed, CALLERS)
