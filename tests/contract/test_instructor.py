"""``instructor``: it minds a refusal where it asks by tools, its default; where it asks by JSON it asks again."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from tests.contract.callers.instructor import CALLERS, TRIES
from tests.contract.checks import EVERY_OUTCOME, check, check_rows, every_call
from tests.contract.conftest import Observed
from tests.contract.house import REFUSAL
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

TOOL, TOOL_PARTS, SCHEMA, SCHEMA_PARTS = CALLERS
WHOLE, PARTS = (TOOL, SCHEMA), (TOOL_PARTS, SCHEMA_PARTS)


@EVERY_OUTCOME
@every_call(CALLERS)
def test_every_outcome(observed: Observed, caller: Caller, outcome: Outcome, stream: bool) -> None:
    seen = observed(caller, outcome, stream)
    check(seen, caller, outcome)
    refused = caller is TOOL and outcome in (REFUSED, WITHHELD)  # raises before it hands anything over
    told = caller in WHOLE and outcome in (*ANSWERED, *ABSTAINED) and not refused
    assert (seen.verdict is not None) is told, "it has come to keep the verdict, or to drop it: say so in the matrix"


@every_call(CALLERS)
def test_what_passes(observed: Observed, caller: Caller, stream: bool) -> None:
    for outcome in ANSWERED:
        assert observed(caller, outcome, stream).facts[-1] == "`result` set"


@pytest.mark.parametrize("outcome", [REFUSED, WITHHELD], ids=lambda outcome: outcome.name)
def test_a_refusal(observed: Observed, outcome: Outcome) -> None:
    from instructor.core import InstructorRetryException

    by_tool: Any = observed(TOOL, outcome, False).error
    assert isinstance(by_tool, InstructorRetryException)
    assert (by_tool.n_attempts, REFUSAL in str(by_tool)) == (1, True)
    by_schema: Any = observed(SCHEMA, outcome, False).error
    assert isinstance(by_schema, InstructorRetryException)
    assert by_schema.n_attempts == TRIES
    assert by_schema.last_completion.choices[0].message.refusal == REFUSAL
    for caller in PARTS:  # neither an answer nor an error
        assert observed(caller, outcome, True).facts == ["`result` never comes"]


def test_a_message_is_no_structure(observed: Observed) -> None:
    """So programs that parse want the refusal."""
    from instructor.core import InstructorRetryException, ResponseParsingError

    for caller, cause in ((TOOL, ResponseParsingError), (SCHEMA, pydantic.ValidationError)):
        error: Any = observed(caller, REPLACED, False).error
        assert isinstance(error, InstructorRetryException)
        assert (error.n_attempts, type(error.__cause__)) == (TRIES, cause)
    assert observed(TOOL_PARTS, REPLACED, True).facts == ["`result` never comes"]
    assert isinstance(observed(SCHEMA_PARTS, REPLACED, True).error, InstructorRetryException)


@every_call(CALLERS)
def test_errors(observed: Observed, caller: Caller, stream: bool) -> None:
    import openai

    for outcome, expected in (
        (INVALID, openai.BadRequestError),
        (STRANGER, openai.AuthenticationError),
        (DEATH, openai.APIError),
    ):
        error: Any = observed(caller, outcome, stream).error
        assert isinstance(error.__cause__, expected)


def test_the_document_says_what_it_sees(observed: Observed) -> None:
    check_rows(observed, CALLERS)
