"""``litellm``: it keeps the verdict, whole and streamed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.callers.litellm import CALLERS, library
from tests.contract.checks import EVERY_OUTCOME, check, check_rows, every_call
from tests.contract.conftest import Observed
from tests.contract.house import KEY, MODEL, House
from tests.contract.outcomes import (
    ABSTAINED,
    ANSWERED,
    DEATH,
    INVALID,
    PASS,
    REFUSED,
    REPLACED,
    STRANGER,
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
    for outcome in (PASS, REPLACED):
        assert observed(caller, outcome, stream).facts == ["`finish_reason` stop"]
    assert observed(caller, REFUSED, stream).facts[0] == "`finish_reason` content_filter"


@every_call(CALLERS)
def test_errors(observed: Observed, caller: Caller, stream: bool) -> None:
    litellm = library()
    assert isinstance(observed(caller, INVALID, stream).error, litellm.BadRequestError)
    assert isinstance(observed(caller, STRANGER, stream).error, litellm.AuthenticationError)
    died = observed(caller, DEATH, stream).error
    assert isinstance(died, litellm.exceptions.MidStreamFallbackError if stream else litellm.InternalServerError)


@pytest.mark.parametrize("stream", [False, True])
def test_the_risk_of_tokens_survives(house: House, stream: bool) -> None:
    reply: Any = library().completion(
        model=f"openai/{MODEL}",
        api_base=f"{house.url}/v1",
        api_key=KEY,
        messages=[{"role": "user", "content": "Is it risky?"}],
        logprobs=True,
        stream=stream,
    )
    items: list[Any] = []
    for choice in [choice for part in (reply if stream else [reply]) for choice in part.choices]:
        held = getattr(choice, "logprobs", None)
        items += (held if isinstance(held, dict) else held.model_dump())["content"] if held else []
    risks = [item["risk"] if isinstance(item, dict) else item.model_extra["risk"] for item in items]
    assert len(risks) == 8
    assert min(risks[:-1]) > 0.5
    assert risks[-1] is None


def test_the_document_says_what_it_sees(observed: Observed) -> None:
    check_rows(observed, CALLERS)
