"""Tools: what passes is called as ever; of an answer that is withheld there is no call, not even a part of one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.contract.callers.anthropic import client as anthropic_client
from tests.contract.callers.openai import client
from tests.contract.house import KEY, MODEL, REFUSAL, House

SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
LOCATE: Any = {"type": "function", "function": {"name": "locate", "description": "Locates.", "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "locate"}}
# With a parser, vLLM asks the model for its format whichever way a tool is chosen.
CHOICES = pytest.mark.parametrize("choice", ["auto", NAMED, "required"], ids=["auto", "named", "required"])
WHOLE_AND_STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def called(reply: Any, stream: bool) -> tuple[Any, str, str, list[Any]]:
    """The last choice, the name and the arguments of what is called, and everything that was said of calls."""
    if not stream:
        choice = reply.choices[0]
        calls = choice.message.tool_calls or []
        return choice, *(("", "") if not calls else (calls[0].function.name, calls[0].function.arguments)), calls
    choices = [choice for chunk in reply for choice in chunk.choices]
    calls = [call for choice in choices for call in choice.delta.tool_calls or []]
    name = "".join(call.function.name or "" for call in calls)
    return choices[-1], name, "".join(call.function.arguments or "" for call in calls), calls


@CHOICES
@WHOLE_AND_STREAMED
def test_a_call_that_passes(house: House, choice: Any, stream: bool) -> None:
    reply = _ask(house, "Is it safe? hermes", choice, stream)
    last, name, arguments, _ = called(reply, stream)
    assert (name, json.loads(arguments)) == ("locate", {"place": "Kandy"})
    assert last.finish_reason == ("stop" if choice is NAMED else "tool_calls")


@CHOICES
@WHOLE_AND_STREAMED
@pytest.mark.parametrize("fallback", ["refusal", "message"])
def test_a_call_that_is_withheld(house: House, choice: Any, stream: bool, fallback: str) -> None:
    reply = _ask(house, "Is it risky? hermes", choice, stream, fallback=fallback)
    last, _, _, calls = called(reply, stream)
    assert calls == []
    assert last.finish_reason == ("content_filter" if fallback == "refusal" else "stop")
    said = last.delta if stream else last.message
    assert (said.refusal == REFUSAL) is (fallback == "refusal")
    assert not any(leak in str(reply) for leak in ("Kandy", "locate"))


@pytest.mark.parametrize("hold", ["none", "window"])
def test_a_call_that_is_half_shown(house: House, hold: str) -> None:
    """It ends in an abstention, so that a client that minds the finish reason does not call it."""
    chunks = _ask(house, "What rises? hermes", "auto", True, hold=hold)
    last, _, arguments, _ = called(chunks, True)
    assert last.finish_reason == "content_filter"
    assert arguments != '{"place": "Kandy"}'


@WHOLE_AND_STREAMED
@pytest.mark.parametrize(("question", "stop"), [("Is it safe? hermes", "tool_use"), ("Is it risky? hermes", "refusal")])
def test_messages(house: House, question: str, stop: str, stream: bool) -> None:
    given: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": question}],
        "tools": [{"name": "locate", "description": "Locates.", "input_schema": SCHEMA}],
        "extra_body": {"hallucination": {"mode": "abstain"}},
    }
    messages = anthropic_client(house.url, KEY).messages
    if stream:
        with messages.stream(**given) as events:
            reply = events.get_final_message()
    else:
        reply = messages.create(**given)
    assert reply.stop_reason == stop
    uses = [block for block in reply.content if block.type == "tool_use"]
    assert [use.input for use in uses] == ([{"place": "Kandy"}] if stop == "tool_use" else [])
    assert ("Kandy" in str(reply)) is (stop == "tool_use")


@WHOLE_AND_STREAMED
@pytest.mark.parametrize(("question", "called"), [("Is it safe? hermes", True), ("Is it risky? hermes", False)])
def test_responses(house: House, question: str, called: bool, stream: bool) -> None:
    tool: Any = {"type": "function", "name": "locate", "description": "Locates.", "parameters": SCHEMA, "strict": False}
    reply = client(house.url, KEY).responses.create(
        model=MODEL, input=question, tools=[tool], stream=stream, extra_body={"hallucination": {"mode": "abstain"}}
    )
    events = list(reply) if stream else []
    last = events[-1].response if stream else reply
    assert last.status == "completed"
    calls = [item for item in last.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == ([{"place": "Kandy"}] if called else [])
    shown = [*events, last]
    assert any("Kandy" in str(one.output if one is last else one) for one in shown) is called


def _ask(house: House, question: str, choice: Any, stream: bool, **options: Any) -> Any:
    reply = client(house.url, KEY).chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        tools=[LOCATE],
        tool_choice=choice,
        stream=stream,
        extra_body={"hallucination": {"mode": "abstain", **options}},
    )
    return list(reply) if stream else reply
