"""OpenAI's responses: answers are items of ``output``, streams are typed events with sequence numbers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, model_validator
from vllm.entrypoints.openai.responses import protocol as responses

from app.protocols.adapters.base import (
    Adapter,
    GuardedRequest,
    ResponseContext,
    keep_only,
    recount,
    refuses,
    withheld,
)
from app.protocols.adapters.sse import Stream, frame
from app.protocols.options import FIELD
from app.protocols.wire import Hallucination
from guard.engine.context import Verdict

# What of a response may stay when its answer is withheld: what it says of itself, and what its caller asked.
_KEPT = frozenset(
    {
        "id",
        "object",
        "created_at",
        "model",
        "status",
        "incomplete_details",
        "error",
        "usage",
        "service_tier",
        "background",
    }
    | {
        "instructions",
        "input_messages",
        "metadata",
        "parallel_tool_calls",
        "tool_choice",
        "tools",
        "truncation",
        "user",
    }
    | {"temperature", "top_p", "top_logprobs", "presence_penalty", "frequency_penalty", "text", "prompt", "reasoning"}
    | {"max_output_tokens", "max_tool_calls", "previous_response_id"}
)


_LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})


class ResponsesRequest(GuardedRequest, responses.ResponsesRequest):
    """vLLM's, guarded."""

    @model_validator(mode="before")
    @classmethod
    def _mended(cls, content: Any) -> Any:
        """Mend the caller's history where vLLM (0.32) answers 500.

        It takes an assistant's message to begin with a text: refusals, such as ours, become the texts that they are. It
        takes the output of a function for a list of plain dictionaries: of one that says who made it, it makes objects.
        """
        items = content.get("input") if isinstance(content, dict) else None
        for item in items if isinstance(items, list) else ():
            if not isinstance(item, dict):
                continue
            if item.get("role") == "assistant" and isinstance(item.get("content"), list):
                item["content"] = [_as_text(part) for part in item["content"]] or [_text("")]
            elif item.get("type") == "function_call_output":
                item.pop("created_by", None)
        return content


class ResponsesResponse(responses.ResponsesResponse):
    """vLLM's, with the verdict."""

    hallucination: Hallucination


class Responses(Adapter):
    path, serving, method = "/v1/responses", "openai_serving_responses", "create_responses"
    request, response = ResponsesRequest, ResponsesResponse
    turns, lengths = "input", ("max_output_tokens",)

    def content(self, response: BaseModel) -> dict[str, Any]:
        return response.model_dump(mode="json", by_alias=True)

    def write(self, content: dict[str, Any], context: ResponseContext) -> None:
        verdict = context.call.verdicts.get(0)
        if verdict is not None and withheld(verdict):
            shown = content["output"] if verdict.sent_tokens else []
            keep_only(content, _KEPT)
            content["output"] = [*shown, stand_in(verdict, context)]
            # As OpenAI's own refusals: clients take an incomplete response for a failure, and some show nothing of it.
            content["status"], content["incomplete_details"] = "completed", None
        content[FIELD] = context.block(context.verdicts)
        usage = content.get("usage")
        recount(usage, context.call, "output_tokens", "total_tokens")

    def stream(self, context: ResponseContext) -> ResponseStream:
        return ResponseStream(self, context)


def stand_in(verdict: Verdict, context: ResponseContext) -> dict[str, Any]:
    """The message item in the place of a withheld answer."""
    if refuses(verdict):
        content: dict[str, Any] = {"type": "refusal", "refusal": context.refusal}
    else:
        content = _text(context.stand_in(verdict))
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [content],
    }


def _text(text: Any) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _as_text(part: Any) -> Any:
    refuses = isinstance(part, dict) and part.get("type") == "refusal" and "refusal" in part
    return _text(part["refusal"]) if refuses else part


class ResponseStream(Stream):
    """A stream of events; the verdict stands in the ``response`` of the last one."""

    def __init__(self, adapter: Responses, context: ResponseContext) -> None:
        self._adapter, self._context = adapter, context
        self._sequence = 0  # number of the next event
        self._items = 0  # output items so far

    def feed(self, frame: Any) -> bytes:
        """What leaves in the place of one event of vLLM's."""
        if frame.type in _LAST:
            return b"".join(self._last(frame.model_dump(mode="json", by_alias=True), frame.type))
        if frame.type == "response.output_item.added":
            self._items += 1
        frame.sequence_number = self._sequence
        self._sequence += 1
        return f"event: {frame.type}\ndata: {frame.model_dump_json(by_alias=True)}\n\n".encode()

    def _numbered(self, content: dict[str, Any], event: str | None) -> bytes:
        content["sequence_number"] = self._sequence
        self._sequence += 1
        return frame(content, event)

    def _last(self, content: dict[str, Any], event: str) -> Iterator[bytes]:
        response = content["response"]
        verdict = self._context.call.verdicts.get(0)
        self._adapter.write(response, self._context)
        if verdict is not None and withheld(verdict):
            yield from self._item(response["output"][-1])
            event = content["type"] = "response.completed"
        yield self._numbered(content, event)

    def _item(self, item: dict[str, Any]) -> Iterator[bytes]:
        """The events that show a whole message item."""
        part = item["content"][0]
        where = {"item_id": item["id"], "output_index": self._items, "content_index": 0}
        if part["type"] == "refusal":
            kind, field, empty = "response.refusal", "refusal", {"type": "refusal", "refusal": ""}
            more: dict[str, Any] = {}
        else:
            kind, field, empty = "response.output_text", "text", {**part, "text": ""}
            more = {"logprobs": []}
        opened = {**item, "status": "in_progress", "content": []}
        steps: list[tuple[str, dict[str, Any]]] = [
            ("response.output_item.added", {"output_index": self._items, "item": opened}),
            ("response.content_part.added", {**where, "part": empty}),
            (f"{kind}.delta", {**where, "delta": part[field], **more}),
            (f"{kind}.done", {**where, field: part[field], **more}),
            ("response.content_part.done", {**where, "part": part}),
            ("response.output_item.done", {"output_index": self._items, "item": item}),
        ]
        for event, fields in steps:
            yield self._numbered({"type": event, **fields}, event)
        self._items += 1

    def error(self, message: str, status: int = 500) -> bytes:
        code = "server_error" if status >= 500 else "invalid_request_error"
        content = {"type": "error", "code": code, "message": message, "param": None}
        return self._numbered(content, "error")
