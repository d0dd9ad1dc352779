"""``openai``: where its programs find how an answer ended, and the verdict."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from tests.contract.callers.openai import CALLERS
from tests.contract.checks import EVERY_OUTCOME, check, check_rows, every_call
from tests.contract.conftest import Observed
from tests.contract.house import MESSAGE
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

CHAT, HELPER, PARSE, COMPLETIONS, RESPONSES, GATHERED = CALLERS
# What ends an answer, and an abstention, for the calls that raise nothing then.
FILTERED = "`finish_reason` content_filter"
WORKS = "`get_final_response` works"
REFUSAL_PART = ["`status` completed", "`output` 1 refusal"]
ENDS: list[tuple[Caller, bool, list[str], list[str]]] = [
    (CHAT, False, ["`finish_reason` stop"], [FILTERED, "`message.refusal` set"]),
    (CHAT, True, ["`finish_reason` stop"], [FILTERED, "`delta.refusal` set"]),
    (COMPLETIONS, False, ["`finish_reason` stop"], [FILTERED]),
    (COMPLETIONS, True, ["`finish_reason` stop"], [FILTERED]),
    (RESPONSES, False, ["`status` completed"], REFUSAL_PART),
    (RESPONSES, True, ["`status` completed"], REFUSAL_PART),
    (GATHERED, True, ["`status` completed", WORKS], [*REFUSAL_PART, WORKS]),
]


@EVERY_OUTCOME
@every_call(CALLERS)
def test_every_outcome(observed: Observed, caller: Caller, outcome: Outcome, stream: bool) -> None:
    check(observed(caller, outcome, stream), caller, outcome)


@pytest.mark.parametrize("outcome", [*ANSWERED, *ABSTAINED], ids=lambda outcome: outcome.name)
@every_call(CALLERS)
def test_the_verdict_reaches_the_program(observed: Observed, caller: Caller, outcome: Outcome, stream: bool) -> None:
    seen = observed(caller, outcome, stream)
    # .parse() raises before it hands anything over.
    assert (seen.verdict is None) is (caller is PARSE and outcome in ABSTAINED)


@pytest.mark.parametrize(("caller", "stream", "passed", "withheld"), ENDS)
def test_how_it_ends(observed: Observed, caller: Caller, stream: bool, passed: list[str], withheld: list[str]) -> None:
    assert observed(caller, PASS, stream).facts == passed
    for outcome in (REFUSED, WITHHELD):
        assert observed(caller, outcome, stream).facts == withheld
    replaced = observed(caller, REPLACED, stream)
    assert (replaced.facts, replaced.text) == (passed, MESSAGE)


@pytest.mark.parametrize(("caller", "stream"), [(HELPER, True), (PARSE, False)])
def test_structured_calls_raise(observed: Observed, caller: Caller, stream: bool) -> None:
    import openai

    for outcome in (REFUSED, WITHHELD):
        assert isinstance(observed(caller, outcome, stream).error, openai.ContentFilterFinishReasonError)


def test_a_message_is_no_structure(observed: Observed) -> None:
    """So programs that parse want the refusal."""
    assert isinstance(observed(PARSE, REPLACED, False).error, pydantic.ValidationError)


@every_call(CALLERS)
def test_errors(observed: Observed, caller: Caller, stream: bool) -> None:
    import openai

    invalid: Any = observed(caller, INVALID, stream).error
    assert isinstance(invalid, openai.BadRequestError)
    assert (invalid.param, invalid.type, str(invalid.code)) == ("hallucination.mode", "BadRequestError", "400")
    assert isinstance(observed(caller, STRANGER, stream).error, openai.AuthenticationError)
    died = observed(caller, DEATH, stream)
    if not stream:
        assert isinstance(died.error, openai.InternalServerError)
    elif caller in (RESPONSES, GATHERED):
        assert died.facts == ["`error` event"]  # this client raises nothing for it
    else:
        assert isinstance(died.error, openai.APIError)


def test_the_document_says_what_it_sees(observed: Observed) -> None:
    check_rows(observed, CALLERS)
