"""``anthropic``: an abstention is a refusal of its own kind."""

from __future__ import annotations

from typing import Any

from tests.contract.callers.anthropic import CALLERS
from tests.contract.checks import EVERY_OUTCOME, check, check_rows, every_call
from tests.contract.conftest import Observed
from tests.contract.house import MESSAGE, REFUSAL
from tests.contract.outcomes import (
    ABSTAINED,
    ANSWERED,
    DEATH,
    INVALID,
    PASS,
    REFUSED,
    REPLACED,
    STRANGER,
    WITHHELD,
    Caller,
    Outcome,
)


@EVERY_OUTCOME
@every_call(CALLERS)
def test_every_outcome(observed: Observed, caller: Caller, outcome: Outcome, stream: bool) -> None:
    seen = observed(caller, outcome, stream)
    check(seen, caller, outcome)
    assert (seen.verdict is not None) is (outcome in (*ANSWERED, *ABSTAINED))


@every_call(CALLERS)
def test_how_it_ends(observed: Observed, caller: Caller, stream: bool) -> None:
    assert observed(caller, PASS, stream).facts == ["`stop_reason` end_turn"]
    for outcome in (REFUSED, WITHHELD):
        seen = observed(caller, outcome, stream)
        assert seen.facts == ["`stop_reason` refusal", "`stop_details.explanation` set"]
        assert REFUSAL in " ".join(seen.dumps)
    replaced = observed(caller, REPLACED, stream)
    assert (replaced.facts, replaced.text) == (["`stop_reason` end_turn"], MESSAGE)


@every_call(CALLERS)
def test_errors(observed: Observed, caller: Caller, stream: bool) -> None:
    import anthropic

    invalid: Any = observed(caller, INVALID, stream).error
    assert isinstance(invalid, anthropic.BadRequestError)
    assert invalid.body["error"]["param"] == "hallucination.mode"
    assert isinstance(observed(caller, STRANGER, stream).error, anthropic.AuthenticationError)
    died: Any = observed(caller, DEATH, stream).error
    assert isinstance(died, anthropic.APIStatusError if stream else anthropic.InternalServerError)
    if stream:
        assert died.body["error"] == {
            "type": "api_error",
            "message": "engine failed during generation; response is incomplete",
        }


def test_the_document_says_what_it_sees(observed: Observed) -> None:
    check_rows(observed, CALLERS)
