"""Chat completions beside each of the things that they can be asked for, with the raw ``openai`` client."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.callers.openai import client
from tests.contract.house import JSON, KEY, MODEL, REFUSAL, TEXT, House
from tests.scripted.script import HIGH, LOW

ABSTAIN = {"mode": "abstain"}
RISKY, SAFE, RISES = "Is it risky?", "Is it safe?", "What rises?"
WHOLE_AND_STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@pytest.fixture
def chat(house: House) -> Any:
    return client(house.url, KEY).chat.completions.create


def ask(chat: Any, question: str, options: Any = None, **more: Any) -> Any:
    """The whole reply, or the list of chunks."""
    messages = more.pop("messages", [{"role": "user", "content": question}])
    reply = chat(model=MODEL, messages=messages, extra_body={"hallucination": options, **more.pop("extra", {})}, **more)
    return list(reply) if more.get("stream") else reply


def said(chunks: list[Any], index: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)


def ends(chunks: list[Any]) -> dict[int, Any]:
    """The last choice of each index."""
    return {c.index: c for chunk in chunks for c in chunk.choices if c.finish_reason}


def results(reply: Any) -> list[Any]:
    """Of a whole reply or of all chunks, by index."""
    parts = reply if isinstance(reply, list) else [reply]
    blocks = [
        part.model_extra["hallucination"] for part in parts if part.choices and "hallucination" in part.model_extra
    ]
    return sorted((one for block in blocks for one in block["results"]), key=lambda one: one["index"])


def test_one_of_several_answers_is_withheld(chat: Any) -> None:
    reply = ask(chat, "Is the second risky?", ABSTAIN, n=3)
    assert [choice.finish_reason for choice in reply.choices] == ["stop", "content_filter", "stop"]
    assert [choice.message.content for choice in reply.choices] == [TEXT, None, TEXT]
    assert [choice.message.refusal for choice in reply.choices] == [None, REFUSAL, None]
    assert [one["risk"] for one in results(reply)] == pytest.approx([LOW, HIGH, LOW], abs=1e-6)
    assert reply.usage.completion_tokens == 8 + 16 + 8, "the length of what was withheld is rounded up"


def test_one_of_several_streamed_answers_is_withheld(chat: Any) -> None:
    chunks = ask(chat, "Is the second risky?", ABSTAIN, n=3, stream=True)
    assert [said(chunks, index) for index in range(3)] == [TEXT, "", TEXT]
    assert [ends(chunks)[index].finish_reason for index in range(3)] == ["stop", "content_filter", "stop"]
    assert ends(chunks)[1].delta.refusal == REFUSAL
    assert [one["action"] for one in results(chunks)] == ["pass", "abstained", "pass"]


@WHOLE_AND_STREAMED
@pytest.mark.parametrize("question", [SAFE, RISKY])
def test_each_token_has_its_risk(chat: Any, question: str, stream: bool) -> None:
    reply = ask(chat, question, logprobs=True, top_logprobs=2, stream=stream)
    choices = [c for chunk in reply for c in chunk.choices] if stream else reply.choices
    items = [item for choice in choices if choice.logprobs for item in choice.logprobs.content]
    assert "".join(item.token for item in items[:-1]) == TEXT
    assert all(len(item.top_logprobs) == 2 for item in items)
    risks = [item.model_extra["risk"] for item in items]
    assert all((risk > 0.5) is (question == RISKY) for risk in risks[:-1])
    assert risks[-1] is None, "the end of the sequence is never fed back"


@WHOLE_AND_STREAMED
def test_a_withheld_answer_has_no_logprobs(chat: Any, stream: bool) -> None:
    extra = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    reply = ask(chat, RISKY, ABSTAIN, logprobs=True, stream=stream, extra=extra)
    for choice in [c for chunk in reply for c in chunk.choices] if stream else reply.choices:
        assert choice.logprobs is None
        assert not (choice.model_extra or {}).get("token_ids")


@WHOLE_AND_STREAMED
def test_token_ids_of_what_passes(chat: Any, stream: bool) -> None:
    reply = ask(chat, SAFE, ABSTAIN, stream=stream, extra={"return_token_ids": True})
    choices = [c for chunk in reply for c in chunk.choices] if stream else reply.choices
    assert sum(len((choice.model_extra or {}).get("token_ids") or []) for choice in choices) == 8


@WHOLE_AND_STREAMED
@pytest.mark.parametrize(
    ("options", "finish", "text"), [(None, "stop", "It is in Sri "), (ABSTAIN, "content_filter", "")]
)
def test_stop_strings(chat: Any, options: Any, finish: str, text: str, stream: bool) -> None:
    reply = ask(chat, "Is it long and risky?", options, stop=["Lanka. It"], stream=stream)
    last = ends(reply)[0] if stream else reply.choices[0]
    assert (said(reply) if stream else last.message.content or "") == text
    assert last.finish_reason == finish
    assert last.model_extra["stop_reason"] == ("Lanka. It" if options is None else None)


def test_the_longest_answer(chat: Any) -> None:
    cut = ask(chat, "Is it safe and long?", ABSTAIN, max_completion_tokens=4)
    assert (cut.choices[0].finish_reason, cut.choices[0].message.content) == ("length", "It is in")
    withheld = ask(chat, "Is it risky and long?", ABSTAIN, max_completion_tokens=4)
    assert withheld.choices[0].finish_reason == "content_filter"


@WHOLE_AND_STREAMED
@pytest.mark.parametrize(("last", "finish"), [(SAFE, "stop"), (RISKY, "content_filter")])
def test_several_turns(chat: Any, last: str, finish: str, stream: bool) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": RISKY if last == SAFE else SAFE},
        {"role": "assistant", "content": TEXT},
        {"role": "user", "content": last},
    ]
    reply = ask(chat, "", ABSTAIN, messages=messages, stream=stream)
    assert (ends(reply)[0] if stream else reply.choices[0]).finish_reason == finish


@pytest.mark.parametrize(
    "stream_options", [None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}]
)
def test_the_verdict_stands_once_in_the_chunks_and_once_in_usage(chat: Any, stream_options: Any) -> None:
    chunks = ask(chat, SAFE, stream=True, stream_options=stream_options)
    told = [chunk for chunk in chunks if "hallucination" in (chunk.model_extra or {})]
    assert len(told) == 1
    assert told[0].choices[0].finish_reason == "stop"
    in_usage = [chunk.usage for chunk in chunks if chunk.usage and "hallucination" in chunk.usage.model_extra]
    assert len(in_usage) == (0 if stream_options is None else 1)
    for usage in in_usage:
        assert usage.model_extra["hallucination"] == told[0].model_extra["hallucination"]
        assert usage.completion_tokens == 8


@pytest.mark.parametrize("fallback", ["refusal", "message"])
@pytest.mark.parametrize("logprobs", [None, True])
def test_how_much_is_held(chat: Any, logprobs: bool | None, fallback: str) -> None:
    shown = {}
    for hold in ("none", "window", "answer"):
        options = {"mode": "abstain", "hold": hold, "fallback": fallback}
        chunks = ask(chat, RISES, options, stream=True, logprobs=logprobs)
        end = ends(chunks)[0]
        assert end.finish_reason == ("content_filter" if fallback == "refusal" else "stop")
        assert results(chunks)[0]["action"] == "abstained"
        pieces = [c.delta.content for chunk in chunks for c in chunk.choices if c.delta.content and c is not end]
        assert TEXT.startswith("".join(pieces)[: len(TEXT)])
        shown[hold] = len(pieces)
    assert 12 <= shown["none"] < 32, "flows until a window of it reaches the threshold"
    assert 0 < shown["window"] < shown["none"], "nothing of a window that does not pass"
    assert shown["answer"] == 0


def test_a_second_try(chat: Any) -> None:
    for stream in (False, True):
        reply = ask(
            chat,
            RISKY,
            {**ABSTAIN, "retry_scale": 0},
            stream=stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
        )
        last = ends(reply)[0] if stream else reply.choices[0]
        assert last.finish_reason == "stop"
        assert (said(reply) if stream else last.message.content) == TEXT
        (one,) = results(reply)
        assert (one["action"], one["first_risk"]) == ("pass", pytest.approx(HIGH, abs=1e-6))
        usage = (reply[-1] if stream else reply).usage
        assert (usage.completion_tokens, usage.total_tokens - usage.prompt_tokens) == (24, 24), "both tries"


@pytest.mark.parametrize("n", [1, 3])
def test_what_is_foreseen_costs_a_token(chat: Any, n: int) -> None:
    for stream in (False, True):
        more = {"stream_options": {"include_usage": True}} if stream else {}
        reply = ask(chat, "Is it prompt_risk?", {**ABSTAIN, "prompt_check": True}, n=n, stream=stream, **more)
        finished = ends(reply) if stream else dict(enumerate(reply.choices))
        assert [finished[index].finish_reason for index in range(n)] == ["content_filter"] * n
        assert all(one["prompt_refused"] for one in results(reply))
        usage = (reply[-1] if stream else reply).usage
        assert usage.completion_tokens == 1
        passed = ask(chat, SAFE, {**ABSTAIN, "prompt_check": True}, n=n, stream=stream, **more)
        assert (passed[-1] if stream else passed).usage.completion_tokens == 8 * n + 1


def test_the_tokens_of_what_passes_and_of_nothing_else(chat: Any) -> None:
    passed, withheld = (results(ask(chat, question, {**ABSTAIN, "tokens": True}))[0] for question in (SAFE, RISKY))
    assert "".join(token["token"] for token in passed["tokens"]) == TEXT
    assert "tokens" not in withheld


@WHOLE_AND_STREAMED
def test_structured_outputs(chat: Any, stream: bool) -> None:
    schema = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
    shape: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    passed = ask(chat, "Is it safe as json?", ABSTAIN, response_format=shape, stream=stream)
    assert (said(passed) if stream else passed.choices[0].message.content) == JSON
    withheld = ask(chat, "Is it risky as json?", ABSTAIN, response_format=shape, stream=stream)
    last = ends(withheld)[0] if stream else withheld.choices[0]
    assert last.finish_reason == "content_filter"
    assert "Kandy" not in str(withheld)


def test_a_refusal_is_not_tried_again_where_an_error_is(house: House) -> None:
    """So that what is counted elsewhere counts: this client does try again."""
    import openai

    with openai.OpenAI(base_url=f"{house.url}/v1", api_key=KEY, max_retries=1) as own:
        before = house.asked
        with pytest.raises(openai.InternalServerError):
            own.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "boom"}])
        assert house.asked == before + 2
