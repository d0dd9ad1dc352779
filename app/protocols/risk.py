"""``POST /risk``: score text that exists already. One forward pass over prompt and response; nothing is generated."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from starlette.responses import JSONResponse, Response, StreamingResponse
from typing_extensions import TypedDict  # typing's own, before 3.12, hides from pydantic what is not required
from vllm.entrypoints.serve.utils.api_utils import with_cancellation

from app import errors
from app.ingress.body import LINES, Lines, written
from app.protocols.options import HallucinationOptions, given
from app.protocols.routes import Current, Guard, ParsedRoute
from app.protocols.tokenizer import Detokenizer
from app.protocols.wire import Hallucination, Offset, Token
from app.telemetry.record import RequestRecord
from guard.compat import RefusalError
from guard.engine.client import GuardedEngine
from guard.engine.context import RequestContext, use_context
from guard.errors import RequestError
from guard.policy import Action, Decision, Mode, Policy

T = TypeVar("T")


class Part(BaseModel):
    """A text part of a message; but for refusals, other kinds cannot be scored."""

    type: Literal["text"]
    text: str


class RefusalPart(BaseModel):
    """What an assistant refused with, as chat completions have it; a text like any other here."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class ChatMessage(BaseModel):
    """One message of the chat that the response answers."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(min_length=1)]
    content: str | list[Annotated[Part | RefusalPart, Field(discriminator="type")]] | None = None

    def plain(self) -> dict[str, Any]:
        """With the parts of its content in one string, a line each, as vLLM's chat route joins them."""
        content = self.content
        text = "\n".join(part.text for part in content) if isinstance(content, list) else content
        return {**self.model_dump(exclude={"content"}), "content": text}


class RiskItem(BaseModel):
    """A response to score, with the messages or the prompt that it answers."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"oneOf": [given("messages"), given("prompt")]})

    model: Annotated[str | None, Field(description="the served model's name; the only one, if left out")] = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None
    response: Annotated[str, Field(min_length=1, description="the answer to score")]
    hallucination: HallucinationOptions | None = Field(
        None, description="options, as for chat; `tokens` defaults to true"
    )


_ITEM = TypeAdapter(RiskItem)
_ITEMS = TypeAdapter(Annotated[list[RiskItem], Field(min_length=1)])


def body_of(max_items: int) -> Any:
    """The type of a request's body."""
    return RiskItem | Annotated[list[RiskItem], Field(min_length=1, max_length=max_items)]


@with_config(ConfigDict(extra="forbid"))
class RiskUsage(TypedDict):
    """Tokens that went through the model."""

    prompt_tokens: Offset
    response_tokens: Offset


@with_config(ConfigDict(extra="forbid"))
class RiskReply(TypedDict):
    """The risk of one given answer."""

    id: str
    object: Literal["hallucination.risk"]
    created: int
    index: Offset
    model: str
    hallucination: Hallucination
    usage: RiskUsage


@with_config(ConfigDict(extra="forbid"))
class RiskReplies(TypedDict):
    """The risks of a list of given answers, in its order."""

    object: Literal["list"]
    data: list[RiskReply]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One item as tokens, ready for the engine; text: the response's."""

    guard: Guard
    policy: Policy
    prompt: list[int]
    response: list[int]
    spelled: list[Token]
    text: str


class RiskScorer:
    """Scores items for one guarded engine."""

    def __init__(
        self,
        engine: GuardedEngine,
        model: str,
        current: Current,
        speller: Detokenizer,
        seconds: float | None,
        at_once: int,
    ) -> None:
        """``seconds``: how long the engine may take for one text. ``at_once``: how many of a stream it has to read."""
        self._engine, self._model, self._current = engine, model, current
        self._speller, self._seconds, self.at_once = speller, seconds, at_once
        # One thread: a tokenizer may be lent to no other while it works, and texts take their turns.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hguard-risk")

    async def prepared(self, items: Sequence[RiskItem], single: bool) -> list[Prepared]:
        """All of them, or RequestError for the first that is wrong; rendered and tokenized off the event loop."""
        loop, guard = asyncio.get_running_loop(), await self._current()
        made = []
        for index, item in enumerate(items):  # one at a time: who comes later waits for an item, not for a list
            made.append(
                await loop.run_in_executor(self._thread, _located, self, guard, item, None if single else index)
            )
        return made

    def prepare(self, guard: Guard, item: RiskItem) -> Prepared:
        """Check one item and turn it into tokens. Raises RequestError naming the field."""
        if item.model not in (None, self._model):
            raise errors.ApiError(
                f"the model {item.model!r} does not exist; this server has {self._model!r}", "model", 404
            )
        if (item.messages is None) == (item.prompt is None):
            raise RequestError("give either messages or prompt", param="messages")
        asked: dict[str, Any] = {"tokens": True}
        if item.hallucination is not None:
            asked |= item.hallucination.model_dump(exclude_unset=True)
        if guard.resolver.settings.mode is Mode.OFF:
            asked.setdefault("mode", Mode.SCORE)  # who asks here wants a score, whatever chats get by default
        policy = guard.resolver.resolve(asked)
        if policy.mode is Mode.OFF:
            raise RequestError("mode off leaves nothing to do here", param="hallucination.mode")
        if item.messages is not None:
            prompt = self._speller.messages([message.plain() for message in item.messages])
        else:
            prompt = self._speller.prompt(item.prompt or "")
        response, spelled = self._speller.response(item.response)
        if not prompt or not response:
            raise RequestError("prompt and response must have at least one token each", param="response")
        room = self._engine.model_config.max_model_len - 1
        if len(prompt) + len(response) > room:
            length = len(prompt) + len(response)
            raise errors.ApiError(
                f"prompt and response have {length} tokens, more than the {room} that fit", "response", 413
            )
        return Prepared(guard, policy, prompt, response, spelled, item.response)

    @with_cancellation
    async def answer(self, request: Request) -> Response:
        """All items of a body, of which none is scored before all are checked; of JSON lines, a line as each is."""
        content = await request.json()
        if isinstance(content, Lines):
            return StreamingResponse(self._lines(items_of(content)), media_type=LINES)
        work = await self.prepared(items_of(content), isinstance(content, dict))
        scored = await asyncio.gather(*(self.score(one, i) for i, one in enumerate(work)))
        return JSONResponse(scored[0] if isinstance(content, dict) else {"object": "list", "data": scored})

    async def _lines(self, items: Sequence[RiskItem]) -> AsyncGenerator[bytes, None]:
        """A line for each item, in their order, as fast as they are taken; an error for one that cannot be scored."""

        async def line(index: int, item: RiskItem) -> dict[str, Any]:
            try:
                return dict(await self.score_item(item, index))
            except RequestError as error:
                said = errors.body(errors.status_of(error), str(error), error.param)
                return {"object": "error", "index": index, **said}

        async for one in in_order(line, enumerate(items), self.at_once):
            yield written(one) + b"\n"

    async def score_item(self, item: RiskItem, index: int) -> RiskReply:
        """Check an item and score it. Raises RequestError."""
        (work,) = await self.prepared([item], single=True)
        return await self.score(work, index)

    async def score(self, work: Prepared, index: int) -> RiskReply:
        """The response object for one item."""
        request_id = f"risk-{uuid.uuid4().hex}"
        bundle = work.guard.resolver.bundle
        call = RequestContext(work.policy, choices=1, bundle=bundle)
        began = time.perf_counter()
        try:
            with use_context(call):
                verdict = await self._engine.score(
                    work.prompt,
                    work.response,
                    work.policy,
                    request_id,
                    within=self._seconds,
                    bundle=bundle,
                    text=work.text,
                )
        except RefusalError as refusal:
            raise errors.ApiError(refusal.message, status=int(refusal.http_status)) from None
        if verdict.decision.action is Action.ABSTAINED:  # who asks has the text: it is marked, and not withheld
            verdict.decision = Decision(verdict.decision.flagged, Action.FLAGGED)
        call.verdicts[0] = verdict
        work.guard.exporters.observe(RequestRecord("/risk", call, time.perf_counter() - began))
        return {
            "id": request_id,
            "object": "hallucination.risk",
            "created": int(time.time()),
            "index": index,
            "model": self._model,
            "hallucination": work.guard.writer.write([verdict], work.spelled),
            "usage": {"prompt_tokens": len(work.prompt), "response_tokens": len(work.response)},
        }


def router(scorer: RiskScorer) -> APIRouter:
    """The routes ``/risk`` and ``/v1/risk``."""
    routes = APIRouter(tags=["hallucination"], route_class=ParsedRoute)

    @routes.post("/risk", response_model=RiskReply | RiskReplies)
    @routes.post("/v1/risk", response_model=RiskReply | RiskReplies)
    async def risk(request: Request) -> Response:
        """The risk of a given answer, or of each of a list of them."""
        return await scorer.answer(request) or JSONResponse(None)  # to nobody: the caller has hung up

    return routes


async def in_order(
    work: Callable[..., Coroutine[Any, Any, T]], arguments: Iterable[tuple[Any, ...]], at_once: int
) -> AsyncGenerator[T, None]:
    """What ``work`` makes of each, in their order. So many are begun beyond the one that is waited for, and no more
    before somebody has taken that."""
    running: deque[asyncio.Task[T]] = deque()
    left = iter(arguments)
    try:
        while True:
            while len(running) < at_once and (given := next(left, None)) is not None:
                running.append(asyncio.create_task(work(*given)))
            if not running:
                return
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def items_of(content: Any) -> list[RiskItem]:
    """Those of a body. Raises RequestError naming the field that is wrong."""
    try:
        return _ITEMS.validate_python(content) if isinstance(content, list) else [_ITEM.validate_python(content)]
    except ValidationError as error:
        raise errors.from_validation(error) from None


def _located(scorer: RiskScorer, guard: Guard, item: RiskItem, index: int | None) -> Prepared:
    """``scorer.prepare``; in a list, a complaint names the item too."""
    try:
        return scorer.prepare(guard, item)
    except RequestError as error:
        if index is None:
            raise
        status = errors.status_of(error)
        raise errors.ApiError(f"item {index}: {error}", f"{index}.{error.param}", status) from None
