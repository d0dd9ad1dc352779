"""``anthropic``: messages, whole, as events, and gathered by its helper."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from tests.contract.house import MODEL
from tests.contract.outcomes import Ask, Caller, Seen

if TYPE_CHECKING:
    import anthropic


@cache
def client(url: str, key: str, retries: int | None = None) -> anthropic.Anthropic:
    import anthropic

    more = {} if retries is None else {"max_retries": retries}
    return anthropic.Anthropic(base_url=url, api_key=key, timeout=30, **more)


def _client(ask: Ask) -> anthropic.Anthropic:
    return client(ask.url, ask.outcome.key, ask.retries)


def messages(ask: Ask, stream: bool, seen: Seen) -> None:
    create = _client(ask).messages.create
    given: dict[str, Any] = {"model": MODEL, "max_tokens": 64, "messages": ask.messages, "extra_body": ask.body}
    if not stream:
        reply = create(**given)
        _message(reply, seen)
        seen.found("`model_extra`", reply.model_extra)
        return
    for event in create(**given, stream=True):
        seen.got(event)
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            seen.text += event.delta.text
        elif event.type == "message_delta":
            _ended(event.delta, seen)
            seen.usage = (event.usage.input_tokens or 0, event.usage.output_tokens)
            seen.found("`model_extra` of `message_delta`", event.model_extra)


def messages_stream(ask: Ask, stream: bool, seen: Seen) -> None:
    with _client(ask).messages.stream(model=MODEL, max_tokens=64, messages=ask.messages, extra_body=ask.body) as events:
        for event in events:
            seen.got(event)
            if event.type == "message_delta":
                seen.found("a `message_delta` event", event.model_extra)
        final = events.get_final_message()
    _message(final, seen)
    seen.found("`model_extra`", final.model_extra)


def _message(reply: Any, seen: Seen) -> None:
    seen.got(reply)
    seen.text = "".join(block.text for block in reply.content if block.type == "text")
    seen.usage = (reply.usage.input_tokens, reply.usage.output_tokens)
    _ended(reply, seen)


def _ended(holder: Any, seen: Seen) -> None:
    details = holder.stop_details
    seen.ended(stop_reason=holder.stop_reason, stop_details__explanation=details and details.explanation and "set")


CALLERS = [
    Caller("anthropic", "messages.create", messages),
    Caller("anthropic", "messages.stream", messages_stream, (True,)),
]
