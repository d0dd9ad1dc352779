"""The ASGI layer around vLLM's generating routes: options in, verdict out.

It reads the request's ``hallucination`` object, makes the policy current for the engine client, and writes the verdict
into the JSON or the stream that vLLM produced. The text itself was already let go or withheld by the engine client.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import errors
from app.ingress import body
from app.ingress.scope import route_path
from app.protocols.adapters.base import BROKEN
from app.protocols.adapters.registry import ADAPTERS, NATIVE, ResponseContext
from app.protocols.adapters.sse import FrameEditor
from app.protocols.options import FIELD, PolicyResolver
from app.protocols.validation import fault_of
from app.protocols.wire import Writer
from app.telemetry.metrics import Metrics
from app.telemetry.record import log_line
from guard.engine.context import RequestContext, use_context
from guard.errors import RequestError
from guard.policy import Policy
from guard.probe.bundle import Bundle

GUARDED = frozenset(ADAPTERS)
REWRITTEN = GUARDED - {adapter.path for adapter in NATIVE}

log = logging.getLogger("hguard")


class GuardMiddleware:
    """Pure ASGI; wraps the routes in REWRITTEN and leaves the others alone."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        bundle: Bundle,
        resolver: PolicyResolver,
        writer: Writer,
        metrics: Metrics,
        refusal: str,
        fallback: str,
    ) -> None:
        self.app = app
        self._bundle, self._resolver, self._writer, self._metrics = bundle, resolver, writer, metrics
        self._refusal, self._fallback = refusal, fallback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if path not in REWRITTEN:
            await self.app(scope, receive, send)
            return
        adapter = ADAPTERS[path]
        try:
            raw = await body.read(receive)
            parsed = scope.get("state", {}).get(body.PARSED)
            request = body.as_object(body.parse(raw) if parsed is None else parsed)
            policy = self._policy(path, adapter, request)
        except RequestError as error:
            await errors.of(error, path)(scope, receive, send)
            return
        unshown = adapter.shows_nothing(request)
        if adapter.prepare(request) or FIELD in request:
            request.pop(FIELD, None)
            raw = json.dumps(request).encode()
        with use_context(RequestContext(policy, unshown=unshown, as_one=not adapter.separates_thoughts)) as call:
            reply = Reply(adapter, ResponseContext(call, self._writer, self._refusal, self._fallback), send)
            began = time.perf_counter()
            try:
                await self.app(scope, body.replay(raw, _watched(receive, call)), reply.send)
            except Exception as error:
                if not await reply.broke(error):
                    raise
                log.exception("a stream broke")
            finally:
                await call.aclose()
                self._metrics.observe(call)
                log_line(path, call, time.perf_counter() - began)

    def _policy(self, path: str, adapter: Any, request: dict[str, Any]) -> Policy:
        if request.get("use_beam_search"):
            raise RequestError("beam search is not guarded; use n instead", param="use_beam_search")
        if request.get("messages") == []:
            raise RequestError("messages must hold at least one message", param="messages")
        return self._resolver.resolve(request.get(FIELD), adapter.wants_token_risk(request))


def _watched(receive: Receive, call: RequestContext) -> Receive:
    """``receive``, which leaves in the call that the caller has hung up."""

    async def watched() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect":
            call.hung_up = True
        return message

    return watched


class Reply:
    """Edits one response on its way out."""

    def __init__(self, adapter: Any, context: ResponseContext, send: Send) -> None:
        self._adapter, self._context, self._send = adapter, context, send
        self._start: Message | None = None
        self._buffer: list[bytes] = []
        self._stream: Any = None
        self._editor: FrameEditor | None = None
        self._ended = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif self._editor is not None:
            await self._send_frames(self._editor, message)
        elif self._start is not None:
            await self._send_json(self._start, message)
        else:
            await self._send(message)

    async def broke(self, error: Exception) -> bool:
        """End a stream that broke with an error frame; False when it is none, or has ended."""
        if self._stream is None or self._ended:
            return False
        self._ended = True
        fault = fault_of(error)
        last = (
            self._stream.error(BROKEN)
            if fault is None
            else self._stream.error(errors.shortened(str(fault)), errors.status_of(fault))
        )
        await self._send({"type": "http.response.body", "body": last, "more_body": False})
        return True

    async def _begin(self, message: Message) -> None:
        headers = MutableHeaders(raw=message["headers"])
        if message["status"] == 200 and not headers.get("content-type", "").startswith("text/event-stream"):
            self._start = message
            return
        if message["status"] == 200:
            self._stream = self._adapter.stream(self._context)
            self._editor = FrameEditor(self._stream.edit, self._stream.untouched)
        await self._send(message)

    async def _send_frames(self, editor: FrameEditor, message: Message) -> None:
        more = message.get("more_body", False)
        edited = editor.feed(message.get("body", b"")) + (b"" if more else editor.flush())
        self._ended = not more
        if edited or not more:
            await self._send({**message, "body": edited})

    async def _send_json(self, start: Message, message: Message) -> None:
        self._buffer.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        content = json.loads(b"".join(self._buffer))
        if content is not None:  # what vLLM's routes answer to a caller who has hung up
            self._adapter.write(content, self._context)
        answer = body.written(content)
        MutableHeaders(raw=start["headers"])["content-length"] = str(len(answer))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": answer})
