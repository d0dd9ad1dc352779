"""Completions of several prompts, several times each, with the raw ``openai`` client."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.callers.openai import client
from tests.contract.house import KEY, MODEL, TEXT, House

PROMPTS = ["Is it safe?", "Is it risky?", "Is the second risky?"]
FINISHES = ["stop", "stop", "content_filter", "content_filter", "stop", "content_filter"]


@pytest.fixture
def complete(house: House) -> Any:
    return client(house.url, KEY).completions.create


def test_prompts_times_n(complete: Any) -> None:
    reply = complete(model=MODEL, prompt=PROMPTS, n=2, extra_body={"hallucination": {"mode": "abstain"}})
    assert [choice.index for choice in reply.choices] == list(range(6))
    assert [choice.finish_reason for choice in reply.choices] == FINISHES
    assert [choice.text for choice in reply.choices] == [TEXT if end == "stop" else "" for end in FINISHES]
    results = reply.model_extra["hallucination"]["results"]
    assert [one["index"] for one in results] == list(range(6))
    assert [one["action"] for one in results] == ["pass" if end == "stop" else "abstained" for end in FINISHES]
    assert reply.usage.completion_tokens == sum(8 if end == "stop" else 16 for end in FINISHES)


def test_prompts_times_n_streamed(complete: Any) -> None:
    texts, ends, verdicts = [""] * 6, [None] * 6, {}
    for chunk in complete(
        model=MODEL, prompt=PROMPTS, n=2, stream=True, extra_body={"hallucination": {"mode": "abstain"}}
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason or ends[choice.index]
        for one in (chunk.model_extra or {}).get("hallucination", {}).get("results", []):
            verdicts[one["index"]] = one["action"]
    assert ends == FINISHES
    assert texts == [TEXT if end == "stop" else "" for end in FINISHES]
    assert [verdicts[index] for index in range(6)] == ["pass" if end == "stop" else "abstained" for end in FINISHES]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("logprobs", [None, 1])
def test_echo(complete: Any, logprobs: int | None, stream: bool) -> None:
    """The prompt is the caller's own: it may be shown beside a withheld answer, the answer may not."""
    for prompt in PROMPTS[:2]:
        reply = complete(
            model=MODEL,
            prompt=prompt,
            echo=True,
            logprobs=logprobs,
            stream=stream,
            extra_body={"hallucination": {"mode": "abstain"}},
        )
        parts = list(reply) if stream else [reply]
        choices = [choice for part in parts for choice in part.choices]
        shown = "".join(choice.text for choice in choices)
        if prompt == PROMPTS[0]:
            assert shown == prompt + TEXT
        else:
            assert choices[-1].finish_reason == "content_filter"
            assert shown in ("", prompt)
            assert "Lanka" not in str(parts)


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids(complete: Any, stream: bool) -> None:
    for prompt, count in ((PROMPTS[0], 8), (PROMPTS[1], 0)):
        reply = complete(
            model=MODEL,
            prompt=prompt,
            stream=stream,
            extra_body={"hallucination": {"mode": "abstain"}, "return_token_ids": True},
        )
        choices = [choice for part in (reply if stream else [reply]) for choice in part.choices]
        assert sum(len(choice.model_extra.get("token_ids") or []) for choice in choices) == count
