"""``openai``: chat completions three ways, completions, responses two ways."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from tests.contract.house import MODEL
from tests.contract.outcomes import Ask, Caller, Seen

if TYPE_CHECKING:
    import openai

IN_EXTRA, IN_CHUNK = "`model_extra`", "`model_extra` of the last chunk"


class Place(BaseModel):
    place: str


@cache
def client(url: str, key: str, retries: int | None = None) -> openai.OpenAI:
    import openai

    more = {} if retries is None else {"max_retries": retries}
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, timeout=30, **more)


def _client(ask: Ask) -> openai.OpenAI:
    return client(ask.url, ask.outcome.key, ask.retries)


def chat(ask: Ask, stream: bool, seen: Seen) -> None:
    create = _client(ask).chat.completions.create
    if not stream:
        _whole(create(model=MODEL, messages=ask.messages, extra_body=ask.body), seen)
        return
    options: Any = {"include_usage": True}
    for chunk in create(model=MODEL, messages=ask.messages, extra_body=ask.body, stream=True, stream_options=options):
        _chunk(chunk, seen)


def _whole(reply: Any, seen: Seen) -> None:
    seen.got(reply)
    seen.found(IN_EXTRA, reply.model_extra)
    (choice,) = reply.choices
    seen.text = choice.message.content or ""
    seen.ended(finish_reason=choice.finish_reason, message__refusal=choice.message.refusal and "set")
    seen.usage = (reply.usage.prompt_tokens, reply.usage.completion_tokens)


def _chunk(chunk: Any, seen: Seen) -> None:
    seen.got(chunk)
    for choice in chunk.choices:
        seen.text += choice.delta.content or ""
        seen.ended(finish_reason=choice.finish_reason, delta__refusal=choice.delta.refusal and "set")
    if chunk.choices:
        seen.found(IN_CHUNK, chunk.model_extra)
    if chunk.usage:
        seen.usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)


def chat_stream(ask: Ask, stream: bool, seen: Seen) -> None:
    """The helper that gathers a stream; its final completion is what programs use."""
    options: Any = {"include_usage": True}
    with _client(ask).chat.completions.stream(
        model=MODEL, messages=ask.messages, extra_body=ask.body, stream_options=options
    ) as events:
        for event in events:
            seen.got(event)
            if event.type == "chunk" and event.chunk.choices:
                seen.found("a `chunk` event", event.chunk.model_extra)
        reply = events.get_final_completion()
    _whole(reply, seen)
    seen.found("`usage.model_extra`", reply.usage.model_extra)


def chat_parse(ask: Ask, stream: bool, seen: Seen) -> None:
    reply = _client(ask).chat.completions.parse(
        model=MODEL, messages=ask.messages, extra_body=ask.body, response_format=Place
    )
    _whole(reply, seen)
    seen.ended(message__parsed=reply.choices[0].message.parsed and "set")


def completions(ask: Ask, stream: bool, seen: Seen) -> None:
    create = _client(ask).completions.create
    if not stream:
        replies = [create(model=MODEL, prompt=ask.question, extra_body=ask.body)]
    else:
        options: Any = {"include_usage": True}
        replies = create(model=MODEL, prompt=ask.question, extra_body=ask.body, stream=True, stream_options=options)
    for reply in replies:
        seen.got(reply)
        for choice in reply.choices:
            seen.text += choice.text
            seen.ended(finish_reason=choice.finish_reason)
        if reply.choices:
            seen.found(IN_CHUNK if stream else IN_EXTRA, reply.model_extra)
        if reply.usage:
            seen.usage = (reply.usage.prompt_tokens, reply.usage.completion_tokens)


def responses(ask: Ask, stream: bool, seen: Seen) -> None:
    create = _client(ask).responses.create
    if not stream:
        _response(create(model=MODEL, input=ask.question, extra_body=ask.body), seen)
        seen.where = seen.where and IN_EXTRA
        return
    for event in create(model=MODEL, input=ask.question, extra_body=ask.body, stream=True):
        _event(event, seen)


def responses_stream(ask: Ask, stream: bool, seen: Seen) -> None:
    """The helper that gathers a stream; programs use its final response where there is one."""
    with _client(ask).responses.stream(model=MODEL, input=ask.question, extra_body=ask.body) as events:
        for event in events:
            _event(event, seen)
        final = _final(events)
    if final is not None:
        seen.ended(get_final_response="works")
        seen.got(final)


def _final(events: Any) -> Any:
    try:
        return events.get_final_response()
    except RuntimeError:  # only for a response that is complete
        return None


def _event(event: Any, seen: Seen) -> None:
    seen.got(event)
    if event.type == "response.output_text.delta":
        seen.text += event.delta
    elif event.type == "error":
        seen.ended(error="event")
    elif event.type in ("response.completed", "response.incomplete", "response.failed"):
        shown, seen.text = seen.text, ""
        _response(event.response, seen)
        assert seen.text == shown, "the last event repeats what was shown"


def _response(reply: Any, seen: Seen) -> None:
    seen.got(reply)
    seen.found("`response.model_extra` of the last event", reply.model_extra)
    seen.text = reply.output_text
    details = reply.incomplete_details
    refused = [
        part for item in reply.output if item.type == "message" for part in item.content if part.type == "refusal"
    ]
    seen.ended(
        status=reply.status,
        incomplete_details__reason=details and details.reason,
        output=f"{len(refused)} refusal" if refused else None,
    )
    seen.usage = (reply.usage.input_tokens, reply.usage.output_tokens)


CALLERS = [
    Caller("openai", "chat.completions.create", chat),
    Caller("openai", "chat.completions.stream", chat_stream, (True,)),
    Caller("openai", "chat.completions.parse", chat_parse, (False,), structured="json"),
    Caller("openai", "completions.create", completions),
    Caller("openai", "responses.create", responses),
    Caller("openai", "responses.stream", responses_stream, (True,)),
]
