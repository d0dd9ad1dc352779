"""Errors in OpenAI's shape, ``{"error": {message, type, param, code}}``, and in Anthropic's where its clients ask."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from app import anthropic_errors
from guard.errors import CapacityError, RequestError

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    413: "BadRequestError",
    422: "BadRequestError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}
# vLLM's errors repeat the value that is wrong, which may be as long as a request, and several times.
LONGEST_TEXT = 500
_LONG_LIST = re.compile(r"\[[^\[\]]{121,}\]")  # shortened by itself: what stands between two of them says what is wrong


class Reason(StrEnum):
    """Why the ingress refuses a request; the label of ``hguard_refused_total``."""

    UNAUTHORIZED = "unauthorized"
    TOO_LARGE = "too_large"
    SLOW_BODY = "slow_body"
    INVALID_LIMITS = "invalid_limits"
    TOO_MANY_REQUESTS = "too_many_requests"
    QUEUE_FULL = "queue_full"
    DRAINING = "draining"

    @property
    def status(self) -> int:
        return _STATUS[self]


_STATUS = {
    Reason.UNAUTHORIZED: 401,
    Reason.TOO_LARGE: 413,
    Reason.SLOW_BODY: 408,
    Reason.INVALID_LIMITS: 400,
    Reason.TOO_MANY_REQUESTS: 429,
    Reason.QUEUE_FULL: 503,
    Reason.DRAINING: 503,
}
# What makes a connection useless to its caller: a body half read, a server about to end.
_CLOSING = frozenset({Reason.SLOW_BODY, Reason.DRAINING})


class ApiError(RequestError):
    """A request that is answered with an HTTP status of its own."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message, param)
        self.status = status


class RefusedError(ApiError):
    """A request that the ingress turns away."""

    def __init__(self, reason: Reason, message: str, param: str | None = None, status: int | None = None) -> None:
        super().__init__(message, param, status or reason.status)
        self.reason = reason


class MalformedError(ApiError):
    """A body that is no JSON, or no object: with the type and ``param`` of vLLM, which lets FastAPI say so."""

    kind = HTTPStatus.BAD_REQUEST.phrase

    def __init__(self, message: str, position: int | None = None) -> None:
        """``position``: of the character that is wrong, where one is."""
        super().__init__(message, "body" if position is None else f"body.{position}")


def shortened(value: Any) -> Any:
    """``value`` of JSON, each text in it of at most LONGEST_TEXT characters and notes of how many were left out."""
    if isinstance(value, dict):
        return {name: shortened(one) for name, one in value.items()}
    if isinstance(value, list):
        return [shortened(one) for one in value]
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return _cut(_LONG_LIST.sub(lambda found: _cut(found[0], 60), value), LONGEST_TEXT)
    return value


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    head, tail = most * 2 // 3, most // 3
    return f"{text[:head]} ... ({len(text) - head - tail} characters left out) ... {text[-tail:]}"


def status_of(error: RequestError) -> int:
    """The HTTP status to answer with."""
    if isinstance(error, ApiError):
        return error.status
    return 503 if isinstance(error, CapacityError) else 400


def body(
    status: int, message: str, param: str | None = None, path: str = "", kind: str | None = None
) -> dict[str, Any]:
    """The error object as the clients of ``path`` read it; ``code`` is the status, as vLLM's own errors have it."""
    kind = kind or _TYPES.get(status, HTTPStatus(status).phrase.replace(" ", "") + "Error")
    error = {"error": shortened({"message": message, "type": kind, "param": param, "code": status})}
    return anthropic_errors.written(error["error"], status) if anthropic_errors.asked(path) else error


def response(
    status: int, message: str, param: str | None = None, path: str = "", kind: str | None = None
) -> JSONResponse:
    """The error as a response; a refusal for load tells the client when to come back."""
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        headers["Retry-After"] = "1"
    return JSONResponse(body(status, message, param, path, kind), status, headers)


def of(error: RequestError, path: str = "") -> JSONResponse:
    kind = error.kind if isinstance(error, MalformedError) else None
    made = response(status_of(error), str(error), error.param, path, kind)
    if isinstance(error, RefusedError) and error.reason in _CLOSING:
        made.headers["Connection"] = "close"
    return made


async def of_http(request: Request, error: Exception) -> JSONResponse:
    """Of what Starlette raises itself (no such route, no such method, a body that is no text)."""
    assert isinstance(error, HTTPException)
    made = response(error.status_code, str(error.detail), path=request.scope["path"])
    made.headers.update(error.headers or {})
    return made


def frame(error: RequestError, path: str = "") -> bytes:
    """The error as the last event of a stream that has begun."""
    data = b"data: " + json.dumps(body(status_of(error), str(error), error.param, path)).encode() + b"\n\n"
    return b"event: error\n" + data if anthropic_errors.asked(path) else data


def from_validation(error: ValidationError, prefix: str = "") -> RequestError:
    """The first complaint of a pydantic validation, as a 400 that names the field."""
    first = error.errors(include_url=False)[0]
    # A union reports the branch it tried; only names and positions of the body mean something to the caller.
    names = [str(part) for part in first["loc"] if not (isinstance(part, str) and "[" in part)]
    field = ".".join(([prefix] if prefix else []) + names)
    what = "Input should be an object" if first["type"] == "model_type" else first["msg"]  # names a class of ours
    return RequestError(f"{field or 'body'}: {what}", param=field or None)
