"""``langchain-openai``: it drops the verdict, and keeps how an answer ended and the risk of tokens in ``logprobs``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.callers.langchain import CALLERS, model
from tests.contract.checks import EVERY_OUTCOME, check, check_rows, every_call
from tests.contract.conftest import Observed
from tests.contract.house import KEY, House
from tests.contract.outcomes import DEATH, INVALID, PASS, REFUSED, REPLACED, STRANGER, Caller, Outcome

CHAT, RESPONSES = CALLERS
REFUSAL_PART = ["`response_metadata.status` completed", "`content` a refusal"]


@EVERY_OUTCOME
@every_call(CALLERS)
def test_every_outcome(observed: Observed, caller: Caller, outcome: Outcome, stream: bool) -> None:
    seen = observed(caller, outcome, stream)
    check(seen, caller, outcome)
    assert seen.verdict is None, "it has come to keep the verdict: say so in the matrix"


@pytest.mark.parametrize(
    ("caller", "stream", "passed", "withheld"),
    [
        (
            CHAT,
            False,
            "finish_reason` stop",
            ["`response_metadata.finish_reason` content_filter", "`additional_kwargs.refusal` set"],
        ),
        (
            CHAT,
            True,
            "finish_reason` stop",
            ["`response_metadata.finish_reason` content_filter"],
        ),  # drops delta.refusal
        (RESPONSES, False, "status` completed", REFUSAL_PART),
        (RESPONSES, True, "status` completed", REFUSAL_PART),
    ],
)
def test_how_it_ends(observed: Observed, caller: Caller, stream: bool, passed: str, withheld: list[str]) -> None:
    for outcome in (PASS, REPLACED):
        assert observed(caller, outcome, stream).facts == [f"`response_metadata.{passed}"]
    assert observed(caller, REFUSED, stream).facts == withheld


@every_call(CALLERS)
def test_errors(observed: Observed, caller: Caller, stream: bool) -> None:
    import openai

    assert isinstance(observed(caller, INVALID, stream).error, openai.BadRequestError)
    assert isinstance(observed(caller, STRANGER, stream).error, openai.AuthenticationError)
    died = observed(caller, DEATH, stream).error
    assert isinstance(died, ValueError if caller is RESPONSES and stream else openai.APIError)


@pytest.mark.parametrize("stream", [False, True])
def test_the_risk_of_tokens_survives(house: House, stream: bool) -> None:
    chat: Any = model(house.url, KEY, None, responses=False).bind(logprobs=True)
    if stream:
        reply = None
        for chunk in chat.stream("Is it risky?"):
            reply = chunk if reply is None else reply + chunk
    else:
        reply = chat.invoke("Is it risky?")
    assert reply is not None
    risks = [item["risk"] for item in reply.response_metadata["logprobs"]["content"]]
    assert len(risks) == 8
    assert min(risks[:-1]) > 0.5
    assert risks[-1] is None


def test_the_document_says_what_it_sees(observed: Observed) -> None:
    check_rows(observed, CALLERS)
