"""``pydantic-ai``: an abstention raises, whichever API is underneath, and the exception tells the refusal."""

from __future__ import annotations

from tests.contract.callers.pydantic_ai import CALLERS
from tests.contract.checks import EVERY_OUTCOME, check, check_rows, every_call
from tests.contract.conftest import Observed
from tests.contract.house import REFUSAL
from tests.contract.outcomes import ANSWERED, DEATH, INVALID, REFUSED, REPLACED, STRANGER, WITHHELD, Caller, Outcome


@EVERY_OUTCOME
@every_call(CALLERS)
def test_every_outcome(observed: Observed, caller: Caller, outcome: Outcome, stream: bool) -> None:
    seen = observed(caller, outcome, stream)
    check(seen, caller, outcome)
    assert seen.verdict is None, "it has come to keep the verdict: say so in the matrix"


@every_call(CALLERS)
def test_how_it_ends(observed: Observed, caller: Caller, stream: bool) -> None:
    from pydantic_ai import exceptions

    for outcome in (*ANSWERED, REPLACED):
        assert observed(caller, outcome, stream).facts == ["`response.finish_reason` stop"]
    for outcome in (REFUSED, WITHHELD):
        error = observed(caller, outcome, stream).error
        assert isinstance(error, exceptions.ContentFilterError)
        assert REFUSAL in error.message


@every_call(CALLERS)
def test_errors(observed: Observed, caller: Caller, stream: bool) -> None:
    from pydantic_ai import exceptions

    invalid = observed(caller, INVALID, stream).error
    assert isinstance(invalid, exceptions.ModelHTTPError)
    assert invalid.status_code == 400
    stranger = observed(caller, STRANGER, stream).error
    assert isinstance(stranger, exceptions.ModelHTTPError)
    assert stranger.status_code == 401
    assert isinstance(observed(caller, DEATH, stream).error, exceptions.ModelAPIError)


def test_the_document_says_what_it_sees(observed: Observed) -> None:
    check_rows(observed, CALLERS)
