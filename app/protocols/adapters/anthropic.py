"""Anthropic's messages: an answer is a list of content blocks, a stream opens and closes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import BaseModel
from starlette.responses import JSONResponse
from vllm.entrypoints.anthropic import api_router, protocol

from app import anthropic_errors
from app.protocols.adapters.base import (
    BROKEN,
    Adapter,
    GuardedRequest,
    ResponseContext,
    keep_only,
    recount,
    refuses,
    withheld,
)
from app.protocols.adapters.sse import FrameStream, frame
from app.protocols.options import FIELD
from app.protocols.wire import Hallucination
from guard.compat import ErrorResponse
from guard.engine.context import Verdict

# What of a message may stay when its answer is withheld.
_KEPT = frozenset({"id", "type", "role", "model", "usage"})


class AnthropicMessagesRequest(GuardedRequest, protocol.AnthropicMessagesRequest):
    """vLLM's, guarded."""


class AnthropicMessagesResponse(protocol.AnthropicMessagesResponse):
    """vLLM's, with the verdict, and with how a refusal looks."""

    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"] | None = None
    stop_details: dict[str, Any] | None = None
    hallucination: Hallucination


class Messages(Adapter):
    path, serving, method = "/v1/messages", "anthropic_serving_messages", "create_messages"
    request, response = AnthropicMessagesRequest, AnthropicMessagesResponse
    turns, lengths = "messages", ("max_tokens",)

    def content(self, response: BaseModel) -> dict[str, Any]:
        return response.model_dump(exclude_none=True)

    def error(self, error: ErrorResponse) -> JSONResponse:
        return api_router.translate_error_response(error)

    def write(self, content: dict[str, Any], context: ResponseContext) -> None:
        verdict = context.call.verdicts.get(0)
        if verdict is not None and withheld(verdict):
            # An empty block, as vLLM has it for empty answers: clients look at the first one.
            text = "" if refuses(verdict) else context.stand_in(verdict)
            keep_only(content, _KEPT)
            content["content"] = [{"type": "text", "text": text}]
            content.update(stop(verdict, context))
        content[FIELD] = context.block(context.verdicts)
        recount(content.get("usage"), context.call, "output_tokens")

    def stream(self, context: ResponseContext) -> MessageStream:
        return MessageStream(context)


def stop(verdict: Verdict, context: ResponseContext) -> dict[str, Any]:
    """How a withheld answer ends."""
    if not refuses(verdict):
        return {"stop_reason": "end_turn", "stop_sequence": None}
    details = {"type": "refusal", "category": None, "explanation": context.refusal}
    return {"stop_reason": "refusal", "stop_sequence": None, "stop_details": details}


class MessageStream(FrameStream):
    """A stream of events; the verdict stands at the top level of ``message_delta``, which has the stop reason."""

    def __init__(self, context: ResponseContext) -> None:
        self._context = context
        self._blocks = 0  # content blocks so far

    def untouched(self, frame: str) -> bool:
        return frame.startswith("event: content_block_delta\n")

    def edit(self, content: dict[str, Any], event: str | None) -> Iterable[bytes]:
        if event == "error":
            # vLLM's converter stumbles over the error of the chat stream inside it, and would tell how.
            return (self.error(BROKEN),)
        if event == "content_block_start":
            self._blocks += 1
        if event != "message_delta":
            return (frame(content, event),)
        return list(self._last(content))

    def _last(self, content: dict[str, Any]) -> Iterator[bytes]:
        context = self._context
        verdict = context.call.verdicts.get(0)
        if verdict is not None and withheld(verdict):
            if not refuses(verdict):
                yield from self._block(context.stand_in(verdict))
            content["delta"].update(stop(verdict, context))
        content[FIELD] = context.block(context.verdicts)
        recount(content.get("usage"), context.call, "output_tokens")
        yield frame(content, "message_delta")

    def _block(self, text: str) -> Iterator[bytes]:
        """The events that show a whole text block."""
        where = {"index": self._blocks}
        steps: list[tuple[str, dict[str, Any]]] = [
            ("content_block_start", {"content_block": {"type": "text", "text": ""}}),
            ("content_block_delta", {"delta": {"type": "text_delta", "text": text}}),
            ("content_block_stop", {}),
        ]
        for event, fields in steps:
            yield frame({"type": event, **where, **fields}, event)
        self._blocks += 1

    def error(self, message: str, status: int = 500) -> bytes:
        return frame(anthropic_errors.written(message, status), "error")
