"""What the adapters write, over any text, any further fields and verdicts in any order."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, TypeAdapter

from app.protocols.adapters.registry import ADAPTERS, CHAT, COMPLETIONS, MESSAGES, RESPONSES, ResponseContext
from app.protocols.wire import Hallucination, Token, Writer
from guard.engine.context import RequestContext, Unscored, Verdict
from guard.policy import Action, Decision, Fallback, Mode, Policy
from guard.probe.bundle import Bundle
from guard.probe.readout import Peak
from tests.fuzz.values import any_json, many, texts
from tests.measured import token_signals

HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair
SECRET = "SECRET"  # in every text that a withheld answer would have had
REFUSAL, MESSAGE = "I would rather not say.", "Something else."
BLOCK: TypeAdapter[Any] = TypeAdapter(Hallucination)
FOREIGN = [b": keep-alive", b"data: [DONE]", b"data: {not json", b"event: other\ndata: x", b"", b"id: 7", b"data: [1]"]
OWN_FIELDS = {"choices", "usage", "error", "hallucination", "index", "finish_reason", "logprobs", "delta", "text"}
OWN_FIELDS |= {"message", "type", "response", "output", "content", "content_block", "sequence_number", "stop_reason"}
OWN_FIELDS |= {"token_ids", "status", "incomplete_details", "role", "id"}

risks = st.floats(0, 1)
names = texts(max_size=8) | st.just("half \ud800")
further = st.dictionaries(names.filter(lambda name: name not in OWN_FIELDS), any_json(3), max_size=2).map(
    lambda value: json.loads(json.dumps(value), parse_constant=lambda _: None)  # vLLM writes no NaN, and neither do we
)


@dataclass
class Made:
    """One answer of a stream: pieces of text, and the verdict, if there is one when it ends."""

    index: int
    pieces: list[str]
    verdict: Verdict | None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def withheld(self) -> bool:
        return self.verdict is not None and self.verdict.decision.action is Action.ABSTAINED

    @property
    def said(self) -> str:
        return "".join(self.pieces)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    return Policy(
        draw(st.sampled_from(Mode)),
        draw(st.floats(0, 1.5)),
        tokens=draw(st.booleans()),
        fallback=draw(st.sampled_from(Fallback)),
        token_risk_in_stream=draw(st.booleans()),
        prompt_threshold=draw(st.none() | risks),
    )


@st.composite
def verdicts(draw: st.DrawFn, policy: Policy, index: int) -> Verdict:
    ids = draw(st.lists(st.integers(0, 9), max_size=4))
    action = draw(st.sampled_from(Action))
    if draw(st.booleans()):
        reason = draw(st.sampled_from(Unscored))
        return Verdict(index, policy, Decision(False, action), None, None, ids, reason)
    measured = np.zeros(len(ids), np.float32)
    told = Verdict(index, policy, Decision(draw(st.booleans()), action), draw(risks), Peak(0, len(ids)), ids)
    told.signals = token_signals(0.0, measured, measured, measured) if draw(st.booleans()) else None
    told.prompt_risk = draw(st.none() | risks)
    told.prompt_refused = policy.prompt_threshold is not None and draw(st.booleans())
    told.first_risk = draw(st.none() | risks)
    told.sent_tokens = draw(st.integers(0, 3))
    return told


@st.composite
def answers(draw: st.DrawFn, count: int) -> tuple[RequestContext, list[Made]]:
    adjustment = Counter({index: draw(st.integers(-2, 9)) for index in range(count)})
    call = RequestContext(draw(policies()), choices=count, usage_adjustment=adjustment)
    made = []
    for index in range(count):
        verdict = draw(verdicts(call.policy, index)) if draw(st.integers(0, 5)) else None
        one = Made(index, draw(st.lists(texts(max_size=6), max_size=3)), verdict, draw(further))
        if verdict is not None:
            call.verdicts[index] = verdict
        call.token_risks[index] = draw(st.lists(st.none() | risks, max_size=4))
        made.append(one)
    return call, made


def spell(verdict: Verdict) -> list[Token]:
    return [(f"t{i}", 2 * at, 2 * at + 2) for at, i in enumerate(verdict.token_ids)]


def context(call: RequestContext, bundle: Bundle) -> ResponseContext:
    return ResponseContext(call, Writer(bundle, spell), REFUSAL, MESSAGE)


def as_frame(content: Any, event: str | None, draw: st.DrawFn) -> bytes:
    """As vLLM writes it, with or without spaces, in UTF-8 or escaped; what UTF-8 cannot carry is always escaped."""
    ascii_only, spaced = draw(st.booleans()), draw(st.booleans())
    separators = None if spaced else (",", ":")
    text = json.dumps(content, ensure_ascii=ascii_only, separators=separators)
    if HALF.search(text):
        text = json.dumps(content, separators=separators)
    return (b"" if event is None else f"event: {event}\n".encode()) + b"data: " + text.encode()


def mixed(draw: st.DrawFn, frames: list[bytes]) -> list[bytes]:
    """With frames between that are no business of ours."""
    out = []
    for one in frames:
        out += draw(st.lists(st.sampled_from(FOREIGN), max_size=2))
        out.append(one)
    return out


def edited(path: str, told: ResponseContext, frames: list[bytes]) -> list[bytes]:
    """The frames that leave."""
    stream = ADAPTERS[path].stream(told)
    fed = (stream.feed(f"{one.decode()}\n\n") for one in frames)
    *left, rest = b"".join(one.encode() if isinstance(one, str) else one for one in fed).split(b"\n\n")
    assert rest == b""
    return left


def parsed(frames: list[bytes]) -> list[tuple[str | None, Any]]:
    """(event, content) of those with a JSON object, in order; the others must be as they came."""
    found: list[tuple[str | None, Any]] = []
    for one in frames:
        if one in FOREIGN:
            continue
        event, data = re.fullmatch(rb"(?:event: (.*)\n)?data: (.*)", one).groups()  # type: ignore[union-attr]
        found.append((event.decode() if event else None, json.loads(data)))
    return found


def require_foreign(before: list[bytes], after: list[bytes]) -> None:
    assert [one for one in after if one in FOREIGN] == [one for one in before if one in FOREIGN]


def require_block(content: dict[str, Any]) -> None:
    BLOCK.validate_python(content["hallucination"], strict=False)


def chunks(made: list[Made], chat: bool, draw: st.DrawFn) -> list[dict[str, Any]]:
    """Those of all answers, each answer's in its order, one answer's among the other's."""
    queues: list[list[dict[str, Any]]] = []
    for one in made:
        last = SECRET if one.withheld else "end"
        queue = []
        for piece in [*one.pieces, last]:
            said: dict[str, Any] = {"delta": {"content": piece}} if chat else {"text": piece}
            choice = {"index": one.index, **said, "finish_reason": None, **one.extra}
            if draw(st.booleans()):
                choice["logprobs"] = {"content": [{"token": piece}]} if chat else {"tokens": [piece]}
                choice["token_ids"] = [7]
            queue.append({"id": "x", "choices": [choice], **one.extra})
        queue[-1]["choices"][0]["finish_reason"] = "stop"
        queue[-1]["choices"][0]["stop_reason"] = SECRET if one.withheld else None
        queues.append(queue)
    mixed_up = []
    while any(queues):
        mixed_up.append(draw(st.sampled_from([queue for queue in queues if queue])).pop(0))
    if draw(st.booleans()):
        mixed_up.append({"id": "x", "choices": [], "usage": {"completion_tokens": 3, "total_tokens": 4}})
    return mixed_up


@many(60)
@given(st.data(), st.sampled_from([CHAT, COMPLETIONS]), st.integers(1, 3))
def test_a_stream_of_choices(bundle_once: Bundle, data: st.DataObject, path: str, count: int) -> None:
    call, made = data.draw(answers(count))
    sent = chunks(made, path == CHAT, data.draw)
    before = mixed(data.draw, [as_frame(one, None, data.draw) for one in sent])
    after = edited(path, context(call, bundle_once), before)
    require_foreign(before, after)
    found = [content for _, content in parsed(after)]
    assert len(found) == len(sent)
    for was, now in zip(sent, found, strict=True):
        if not was["choices"]:
            require_block(now["usage"])
            assert now["usage"]["completion_tokens"] == 3 + call.usage_adjustment.total()
            continue
        (old,), (new,) = was["choices"], now["choices"]
        one = made[old["index"]]
        assert new["index"] == old["index"]
        ends = old["finish_reason"] is not None
        assert {name: new[name] for name in one.extra} == (
            dict.fromkeys(one.extra) if ends and one.withheld else one.extra
        )
        if not ends:
            assert (new.get("delta"), new.get("text")) == (old.get("delta"), old.get("text"))
            continue
        require_block(now)
        if one.withheld:
            assert SECRET not in json.dumps(now)
            assert not new.get("token_ids")
            assert not new.get("logprobs")
        else:
            assert (new.get("delta"), new.get("text")) == (old.get("delta"), old.get("text"))


@many(40)
@given(st.data(), st.sampled_from([CHAT, COMPLETIONS]), st.integers(1, 3))
def test_whole_choices(bundle_once: Bundle, data: st.DataObject, path: str, count: int) -> None:
    call, made = data.draw(answers(count))
    choices = []
    for one in data.draw(st.permutations(made)):
        text = SECRET + one.said if one.withheld else one.said
        choice: dict[str, Any] = {"index": one.index, "finish_reason": "stop", **one.extra}
        choice |= {"message": {"role": "assistant", "content": text}} if path == CHAT else {"text": text}
        if data.draw(st.booleans()):
            choice["logprobs"] = {"content": [{"token": SECRET}]} if path == CHAT else {"tokens": [SECRET]}
        choices.append(choice)
    content: dict[str, Any] = {
        "choices": choices,
        "usage": data.draw(st.sampled_from([None, {"completion_tokens": 1}])),
    }
    ADAPTERS[path].write(content, context(call, bundle_once))
    require_block(content)
    for choice, one in zip(content["choices"], (made[choice["index"]] for choice in choices), strict=True):
        if one.withheld:
            assert SECRET not in json.dumps(choice)
        else:
            assert (choice["message"]["content"] if path == CHAT else choice["text"]) == one.said


@many(60)
@given(st.data())
def test_a_stream_of_messages(bundle_once: Bundle, data: st.DataObject) -> None:
    call, (one,) = data.draw(answers(1))
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"content": [], **one.extra}}]
    if one.pieces:
        events.append({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
        events += [
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
            for piece in one.pieces
        ]
        events.append({"type": "content_block_stop", "index": 0})
    ending = {"stop_reason": "stop_sequence", "stop_sequence": SECRET if one.withheld else "x"}
    events.append({"type": "message_delta", "delta": ending, "usage": {"output_tokens": 3}, **one.extra})
    events.append({"type": "message_stop"})
    before = mixed(data.draw, [as_frame(event, event["type"], data.draw) for event in events])
    after = edited(MESSAGES, context(call, bundle_once), before)
    require_foreign(before, after)
    found = parsed(after)
    assert all(event == content["type"] for event, content in found)
    require_block(found[-2][1])
    assert [content for _, content in found[: len(events) - 2]] == events[:-2]
    assert found[-1][1] == events[-1]
    if one.withheld:
        assert SECRET not in str(found)
    open_block = -1
    for event, content in found:  # a client that follows the blocks never loses its way
        if event == "content_block_start":
            assert content["index"] == open_block + 1
            open_block = content["index"]
        elif event and event.startswith("content_block"):
            assert content["index"] == open_block


class Event(BaseModel):
    """As vLLM yields them there."""

    model_config = ConfigDict(extra="allow")

    type: str
    sequence_number: int = -1


@many(60)
@given(st.data())
def test_a_stream_of_responses(bundle_once: Bundle, data: st.DataObject) -> None:
    call, (one,) = data.draw(answers(1))
    item = {"id": "msg_1", "type": "message", "content": [{"type": "output_text", "text": one.said}]}
    hidden = one.withheld and not (one.verdict and one.verdict.sent_tokens)
    if hidden:
        item["content"] = [{"type": "output_text", "text": SECRET}]
    events: list[tuple[str, dict[str, Any]]] = [("response.created", {"response": {"output": [], **one.extra}})]
    if one.pieces and not hidden:
        events.append(("response.output_item.added", {"output_index": 0, "item": item}))
        events += [("response.output_text.delta", {"delta": piece, **one.extra}) for piece in one.pieces]
        events.append(("response.output_item.done", {"output_index": 0, "item": item}))
    usage = data.draw(st.sampled_from([None, {"output_tokens": 3, "total_tokens": 5}]))
    last = data.draw(st.sampled_from(["response.completed", "response.incomplete", "response.failed"]))
    events.append((last, {"response": {"status": "completed", "output": [item], "usage": usage, **one.extra}}))
    sent = [{"type": name, "sequence_number": i, **content} for i, (name, content) in enumerate(events)]
    assume(not HALF.search(json.dumps(sent, ensure_ascii=False)))  # which pydantic would not dump, nor ever did
    stream = ADAPTERS[RESPONSES].stream(context(call, bundle_once))
    left = b"".join(stream.feed(Event.model_validate(content)) for content in sent)
    found = parsed(left.removesuffix(b"\n\n").split(b"\n\n"))
    assert [content["sequence_number"] for _, content in found] == list(range(len(found)))
    assert [content for _, content in found[: len(sent) - 1]] == sent[:-1]
    assert all(event == content["type"] for event, content in found)
    require_block(found[-1][1]["response"])
    if hidden:
        assert SECRET not in str(found)


@many(40)
@given(st.data(), st.sampled_from([MESSAGES, RESPONSES]))
def test_a_whole_message(bundle_once: Bundle, data: st.DataObject, path: str) -> None:
    call, (one,) = data.draw(answers(1))
    hidden = one.withheld and not (one.verdict and one.verdict.sent_tokens)
    text = SECRET if hidden else one.said
    content: dict[str, Any] = {"usage": {"output_tokens": 3}, **one.extra}
    if path == MESSAGES:
        content["content"] = [{"type": "text", "text": text}]
    else:
        content["output"] = [{"type": "message", "content": [{"type": "output_text", "text": text}]}]
    ADAPTERS[path].write(content, context(call, bundle_once))
    require_block(content)
    # Of what is beside a withheld answer, only what is known to say nothing of it stays.
    assert {name: content[name] for name in one.extra} == (dict.fromkeys(one.extra) if one.withheld else one.extra)
    assert (SECRET in json.dumps(content)) is False
    if not one.withheld:
        assert json.dumps(one.said) in json.dumps(content)


@many(150)
@given(st.data())
def test_any_text_is_a_frame(bundle_once: Bundle, data: st.DataObject) -> None:
    """Whatever comes, nothing breaks."""
    call, _ = data.draw(answers(2))
    lines = ["data: ", "event: ", "\n", "\n\n", "{", "}", "null", "[]", '"', "\ufffd", "\r\n", ": ", "data:{}"]
    junk = "".join(data.draw(st.lists(st.sampled_from(lines) | st.text(max_size=6), max_size=12)))
    for path in set(ADAPTERS) - {RESPONSES}:
        ADAPTERS[path].stream(context(call, bundle_once)).feed(junk)
