"""Errors of Anthropic's routes as its clients read them, whoever made them: vLLM, FastAPI, the ingress or the guard."""

from __future__ import annotations

from typing import Any

_ROUTES = "/v1/messages"
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def asked(path: str) -> bool:
    """Whether a route's clients are Anthropic's."""
    return path == _ROUTES or path.startswith(f"{_ROUTES}/")


def kind_of(status: int) -> str:
    """Anthropic's name for an error of this status."""
    return _KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")


def written(error: Any, status: int) -> dict[str, Any]:
    """The body of an error, made of OpenAI's ``error`` object; ``param`` and ``code`` stay in it."""
    fields = error if isinstance(error, dict) else {"message": str(error)}
    return {"type": "error", "error": {**fields, "type": kind_of(status)}}
