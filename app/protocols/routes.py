"""The guarded routes: vLLM's serving objects answer, and the verdict is written into what they answer.

The text itself was already let go or withheld by the engine client, which reads the request's context. The context is
current from before vLLM is asked until the last byte has left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, validate_json_request, with_cancellation
from vllm.entrypoints.serve.utils.orca_metrics import metrics_header

from app import errors
from app.ingress.body import PARSED
from app.protocols.adapters.base import BROKEN, Adapter, GuardedRequest, ResponseContext
from app.protocols.adapters.registry import ADAPTERS
from app.protocols.options import PolicyResolver
from app.protocols.validation import fault_of, first_complaints, require_right_items
from app.protocols.wire import Writer
from app.telemetry.record import Exporters, RequestRecord
from guard.compat import ErrorResponse, with_sse_keep_alive
from guard.engine.context import RequestContext, use_context

_LOAD_FORMAT = "endpoint-load-metrics-format"  # a header: in which format a load balancer wants the load with an answer

log = logging.getLogger("hguard")


@dataclass(frozen=True, slots=True)
class Guard:
    """What all guarded routes share, for one probe. refusal, fallback: the texts in the place of what is withheld."""

    resolver: PolicyResolver
    writer: Writer
    exporters: Exporters
    refusal: str
    fallback: str


Current = Callable[[], Awaitable[Guard]]  # that of a request which begins now; it keeps it to its end


def router(current: Current) -> APIRouter:
    """A route for each API."""
    routes = APIRouter(route_class=ParsedRoute)
    for adapter in ADAPTERS.values():
        routes.add_api_route(
            adapter.path,
            _endpoint(current, adapter),
            methods=["POST"],
            name=adapter.method,
            response_model=adapter.response,
            dependencies=[Depends(validate_json_request)],
        )
    return routes


def _endpoint(current: Current, adapter: Adapter) -> Callable[..., Awaitable[Response]]:
    async def endpoint(asked: GuardedRequest, request: Request) -> Response:
        return GuardedResponse(await current(), adapter, asked)

    endpoint.__annotations__["asked"] = adapter.request
    return endpoint


class ParsedRoute(APIRoute):
    """A route that takes the body as the ingress has parsed it."""

    @classmethod
    def of(cls, route: APIRoute, endpoint: Callable[..., Any] | None = None) -> ParsedRoute:
        """One of vLLM's routes, so that its body is parsed once, too; ``endpoint`` in the place of its own."""
        return cls(
            route.path,
            endpoint or route.endpoint,
            methods=route.methods,
            name=route.name,
            response_model=route.response_model,
            responses=route.responses,
            dependencies=route.dependencies,
        )

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        read = self.body_field and self.body_field.field_info.annotation
        reader = first_complaints(TypeAdapter(read)) if read else None

        async def parsed(request: Request) -> Response:
            if reader is not None:
                require_right_items(reader, request.scope["state"].get(PARSED))
            return await handle(ParsedRequest(request.scope, request.receive))

        return parsed


class ParsedRequest(Request):
    async def json(self) -> Any:
        return self.scope["state"][PARSED]


class GuardedResponse(Response):
    """One answer. It is made when it is sent, so that one context holds for all of it."""

    def __init__(self, guard: Guard, adapter: Adapter, asked: GuardedRequest) -> None:
        """Raises RequestError for options that are not allowed."""
        super().__init__()
        policy = guard.resolver.resolve(asked.hallucination, adapter.wants_token_risk(asked))
        self._call = RequestContext(
            policy,
            unshown=adapter.shows_nothing(asked),
            as_one=not adapter.separates_thoughts,
            bundle=guard.resolver.bundle,
        )
        self._guard, self._adapter, self._asked = guard, adapter, asked
        self._context = ResponseContext(self._call, guard.writer, guard.refusal, guard.fallback)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call, began = self._call, time.perf_counter()
        request = Request(scope, _watched(receive, call))
        with use_context(call):
            try:
                answer = await self._answer(request) or JSONResponse(None)  # to nobody: the caller has hung up
                await answer(scope, request.receive, send)
            finally:
                await call.aclose()
                record = RequestRecord(self._adapter.path, call, time.perf_counter() - began)
                self._guard.exporters.observe(record)

    @with_cancellation
    @load_aware_call
    async def _answer(self, request: Request) -> Response:
        """What vLLM answers, with the verdict."""
        adapter = self._adapter
        answer = await adapter.ask(self._asked, request)
        if isinstance(answer, ErrorResponse):
            return adapter.error(answer)
        if isinstance(answer, BaseModel):
            content = adapter.content(answer)
            adapter.write(content, self._context)
            return JSONResponse(content, headers=metrics_header(request.headers.get(_LOAD_FORMAT, "")))
        interval = getattr(request.app.state.args, "sse_keep_alive_interval", 0)
        frames = with_sse_keep_alive(self._frames(answer), float(interval))
        return StreamingResponse(frames, media_type="text/event-stream")

    async def _frames(self, frames: AsyncGenerator[Any, None]) -> AsyncGenerator[str | bytes, None]:
        """The frames of a stream with the verdict in them; one that breaks ends with an error."""
        stream = self._adapter.stream(self._context)
        try:
            async for frame in frames:
                yield stream.feed(frame)
        except Exception as error:
            log.exception("a stream broke")
            fault = fault_of(error)
            yield (
                stream.error(BROKEN)
                if fault is None
                else stream.error(errors.shortened(str(fault)), errors.status_of(fault))
            )


def _watched(receive: Receive, call: RequestContext) -> Receive:
    """``receive``, which leaves in the call that the caller has hung up."""

    async def watched() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect":
            call.hung_up = True
        return message

    return watched
