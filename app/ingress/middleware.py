"""The ASGI layer that every request passes first. Who asks, is there room, is the body within bounds.

What it refuses costs the engine nothing: a key is checked and a full house noticed before the body is read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import errors
from app.errors import Reason, RefusedError
from app.ingress.admission import Admission, Pacer, Permit
from app.ingress.auth import ApiKeys
from app.ingress.body import LINES, PARSED, parse, parse_lines, replay
from app.ingress.outgoing import ErrorResponses
from app.ingress.scope import CALLER, route_path
from guard.errors import RequestError

# Reachable without a key, by GET: probes of whoever runs the server, and pages, which hold no secret and ask for a key.
_PAGES = frozenset({"/", "/docs", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js"})
PUBLIC = _PAGES | {"/live", "/ready", "/health", "/ping", "/metrics"}

_READ_OUT_SECONDS = 1.0
_FOR_LOAD = frozenset({Reason.TOO_MANY_REQUESTS, Reason.QUEUE_FULL})
_READING = frozenset({"GET", "HEAD"})


class RequestLimits(Protocol):
    """What the operator lets one request ask for."""

    def check(self, path: str, body: Any) -> None:
        """Raises RequestError for a parsed body that asks for too much."""

    def answers(self, path: str, body: Any) -> int:
        """How many answers the engine will work on for it."""


class IngressMiddleware:
    """Pure ASGI; stands before the routes. ``working``: the routes whose requests take a place.

    ``refused`` is told the reason of each refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: ApiKeys,
        limits: RequestLimits,
        admission: Admission,
        refused: Callable[[Reason], None],
        working: frozenset[str],
        max_body_bytes: int,
        body_seconds: float,
    ) -> None:
        self.app = app
        self._keys, self._limits, self._admission, self._refused = keys, limits, admission, refused
        self._pacer, self._working = Pacer(), working
        self._max_body_bytes, self._body_seconds = max_body_bytes, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "WebSocket connections are not supported"})
        elif scope["type"] != "http" or _is_public(scope):
            await self.app(scope, receive, send)
        else:
            await self._enter(scope, receive, send)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, permit = route_path(scope), None
        reply = _Reply(ErrorResponses(send, path))
        try:
            self._identify(scope, path)
            if scope["method"] == "POST":  # no route reads the body of any other: they get their 405 without it
                if path in self._working:
                    permit = self._admission.admit(scope["state"][CALLER])
                body = await self._read(scope, receive)
                if body is None:  # the caller has hung up
                    return
                receive = replay(body, receive)
                if permit is not None:
                    self._measure(scope, path, body, permit)
            await self.app(scope, receive, reply.send)
        except RequestError as error:
            if isinstance(error, RefusedError):
                self._refused(error.reason)
                await self._before_refusal(error.reason, receive)
            await reply.fail(error, path, scope, receive)
        except asyncio.CancelledError:
            if permit is None or not permit.cut:
                raise
            _uncancel()
            ended = RefusedError(Reason.DRAINING, "the server ended before the answer was complete")
            await reply.fail(ended, path, scope, receive)
        finally:
            if permit is not None:
                permit.release()

    def _identify(self, scope: Scope, path: str) -> None:
        """Leave the caller in the scope's state. Raises RequestError for one that may not come in."""
        caller = self._keys.holder(scope["headers"]) if self._keys else None
        if self._keys and caller is None:
            raise RefusedError(
                Reason.UNAUTHORIZED,
                "a valid API key is needed: send it as `Authorization: Bearer <key>` or `x-api-key: <key>`",
            )
        scope.setdefault("state", {})[CALLER] = caller
        self._admission.require_open()
        if not path.isprintable():
            # The router's patterns end in `$`, which matches before a newline: it would find a route by a path that is
            # not among the working ones, and so has no limits.
            raise errors.ApiError("invalid character in path", status=404)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None when the caller hangs up. Raises RequestError (413, 408, 415) for one that is too
        large, too slow, or compressed."""
        limit, headers = self._max_body_bytes, Headers(scope=scope)
        if (encoding := headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
            raise errors.ApiError(
                f"Content-Encoding {encoding[:20]} is not supported; send the body uncompressed", "body", 415
            )
        declared = headers.get("content-length", "")
        size, parts = int(declared[:18]) if declared.isdecimal() else 0, bytearray()
        try:
            async with asyncio.timeout(self._body_seconds):
                more = size <= limit
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts += message.get("body", b"")
                    size = max(size, len(parts))
                    more = message.get("more_body", False) and size <= limit
        except TimeoutError:
            raise RefusedError(
                Reason.SLOW_BODY, f"the body did not arrive within {self._body_seconds:g} seconds", "body"
            ) from None
        if size > limit:
            raise RefusedError(Reason.TOO_LARGE, f"the body is larger than {limit} bytes", "body")
        return bytes(parts)

    async def _before_refusal(self, reason: Reason, receive: Receive) -> None:
        if reason is Reason.DRAINING:
            await self._read_out(receive)
        elif reason in _FOR_LOAD and (delay := self._pacer.delay(asyncio.get_running_loop().time())):
            await asyncio.sleep(delay)

    async def _read_out(self, receive: Receive) -> None:
        """Take in a body that nobody wants: closing a connection with bytes unread would reset it under our answer."""
        size, more = 0, True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READ_OUT_SECONDS):
                while more and size <= self._max_body_bytes:
                    message = await receive()
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False)

    def _measure(self, scope: Scope, path: str, body: bytes, permit: Permit) -> None:
        """Check what the body asks for, take its places, leave it parsed for the routes. Raises RequestError."""
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        content = parse_lines(body) if kind == LINES else parse(body)
        self._limits.check(path, content)
        permit.widen(self._limits.answers(path, content))
        scope["state"][PARSED] = content


class _Reply:
    """One response on its way out; knows whether it has begun, and as what."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._ended = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        else:
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def fail(self, error: RequestError, path: str, scope: Scope, receive: Receive) -> None:
        """Answer with the error; a stream that has begun ends with it, any other response is broken off by uvicorn."""
        if self._start is None:
            await errors.of(error, path)(scope, receive, self._send)
        elif not self._ended and _streams(self._start):
            await self._send({"type": "http.response.body", "body": errors.frame(error, path), "more_body": False})


def _streams(start: Message) -> bool:
    return Headers(raw=start["headers"]).get("content-type", "").startswith("text/event-stream")


def _is_public(scope: Scope) -> bool:
    path = route_path(scope)
    # The router sends who adds a slash to the route without it, and the metrics are there with one, too.
    return scope["method"] in _READING and (path in PUBLIC or (path.endswith("/") and path[:-1] in PUBLIC - {"/"}))


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
