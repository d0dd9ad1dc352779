"""``POST /risk``: score text that exists already. One forward pass over prompt and response; nothing is generated."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.responses import JSONResponse
from vllm.exceptions import GracefulHTTPError

from app import errors
from app.guarding import read_body
from app.metrics import Metrics
from app.options import Defaults, parse
from app.spelling import Speller
from app.wire import Writer
from guard.engine.call import GuardCall
from guard.engine.client import GuardedEngine
from guard.errors import RequestError
from guard.policy import Mode


class Part(BaseModel):
    """A text part of a message; other kinds cannot be scored."""

    type: Annotated[str, Field(pattern="^text$")]
    text: str


class ChatMessage(BaseModel):
    """One message of the chat that the response answers."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(min_length=1)]
    content: str | list[Part] | None = None

    def plain(self) -> dict[str, Any]:
        content = self.content
        text = "".join(part.text for part in content) if isinstance(content, list) else content
        return {**self.model_dump(exclude={"content"}), "content": text}


class RiskItem(BaseModel):
    """A response to score, with the messages or the prompt that it answers."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(description="the served model's name")]
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None
    response: Annotated[str, Field(min_length=1, description="the answer to score")]
    hallucination: dict[str, Any] | None = Field(None, description="options, as for chat; `tokens` defaults to true")


_ITEM = TypeAdapter(RiskItem)
_ITEMS = TypeAdapter(Annotated[list[RiskItem], Field(min_length=1)])


class RiskScorer:
    """Scores items for one guarded engine."""

    def __init__(
        self,
        engine: GuardedEngine,
        model: str,
        defaults: Defaults,
        speller: Speller,
        writer: Writer,
        metrics: Metrics,
        max_items: int,
    ) -> None:
        self._engine, self._model, self._defaults = engine, model, defaults
        self._speller, self._writer, self._metrics = speller, writer, metrics
        self.max_items = max_items

    async def score(self, item: RiskItem, index: int, where: str = "") -> dict[str, Any]:
        """The response object for one item. Raises RequestError with a field below ``where``."""
        if item.model != self._model:
            raise RequestError(
                f"the model {item.model!r} does not exist; this server has {self._model!r}", f"{where}model", 404
            )
        if (item.messages is None) == (item.prompt is None):
            raise RequestError("give either messages or prompt", param=f"{where}messages")
        policy = parse({"tokens": True, **(item.hallucination or {})}, self._defaults, self._engine.bundle)
        if policy.mode is Mode.OFF:
            raise RequestError("mode off leaves nothing to do here", param=f"{where}hallucination.mode")
        if item.messages is not None:
            prompt = self._speller.messages([message.plain() for message in item.messages])
        else:
            prompt = self._speller.prompt(item.prompt or "")
        response, spelled = self._speller.response(item.response)
        if not prompt or not response:
            raise RequestError("prompt and response must have at least one token each", param=f"{where}response")
        room = self._engine.model_config.max_model_len - 1
        if len(prompt) + len(response) > room:
            raise RequestError(
                f"prompt and response have {len(prompt) + len(response)} tokens, more than the {room} that fit",
                param=f"{where}response",
                status=413,
            )
        request_id = f"risk-{uuid.uuid4().hex}"
        call = GuardCall(policy, choices=1)
        try:
            verdict = await self._engine.score(prompt, response, policy, request_id)
        except GracefulHTTPError as refusal:
            raise RequestError(refusal.message, status=int(refusal.http_status)) from None
        call.verdicts[0] = verdict
        self._metrics.observe(call)
        return {
            "id": request_id,
            "object": "hallucination.risk",
            "created": int(time.time()),
            "index": index,
            "model": self._model,
            "hallucination": self._writer.write([verdict], spelled),
            "usage": {"prompt_tokens": len(prompt), "response_tokens": len(response)},
        }


def router(scorer: RiskScorer, max_body_bytes: int) -> APIRouter:
    """The routes ``/risk`` and ``/v1/risk``."""
    routes = APIRouter(tags=["hallucination"])
    schema = {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "anyOf": [
                            RiskItem.model_json_schema(ref_template="#/components/schemas/{model}"),
                            {"type": "array", "maxItems": scorer.max_items},
                        ]
                    }
                }
            },
        }
    }

    @routes.post("/risk", openapi_extra=schema)
    @routes.post("/v1/risk", openapi_extra=schema)
    async def risk(request: Request) -> JSONResponse:
        """The risk of a given answer, or of each of a list of them."""
        try:
            items, single = _parse(await read_body(request.scope, request.receive, max_body_bytes), scorer.max_items)
            where = [""] if single else [f"{i}." for i in range(len(items))]
            scored = await asyncio.gather(*(scorer.score(item, i, where[i]) for i, item in enumerate(items)))
        except RequestError as error:
            return errors.of(error)
        return JSONResponse(scored[0] if single else {"object": "list", "data": scored})

    return routes


def _parse(body: bytes, max_items: int) -> tuple[list[RiskItem], bool]:
    try:
        if body.lstrip()[:1] != b"[":
            return [_ITEM.validate_json(body)], True
        items = _ITEMS.validate_json(body)
    except ValidationError as error:
        raise errors.from_validation(error) from None
    if len(items) > max_items:
        raise RequestError(f"{len(items)} items, more than the {max_items} allowed in one request", status=413)
    return items, False
