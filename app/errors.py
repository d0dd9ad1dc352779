"""Errors in OpenAI's shape: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

from guard.errors import RequestError

_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    413: "BadRequestError",
    422: "BadRequestError",
    503: "ServiceUnavailableError",
}


def body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The error object; ``code`` is the status, as vLLM's own errors have it."""
    kind = _TYPES.get(status, HTTPStatus(status).phrase.replace(" ", "") + "Error")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def response(status: int, message: str, param: str | None = None) -> JSONResponse:
    """The error as a response; a refusal for load tells the client when to come back."""
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse(body(status, message, param), status, headers)


def of(error: RequestError) -> JSONResponse:
    return response(error.status, str(error), error.param)


def from_validation(error: ValidationError, prefix: str = "") -> RequestError:
    """The first complaint of a pydantic validation, as a 400 that names the field."""
    first = error.errors(include_url=False)[0]
    # A union reports the branch it tried; only names and positions of the body mean something to the caller.
    names = [str(part) for part in first["loc"] if not (isinstance(part, str) and "[" in part)]
    field = ".".join(([prefix] if prefix else []) + names)
    return RequestError(f"{field or 'body'}: {first['msg']}", param=field or None)
