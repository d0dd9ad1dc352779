"""Errors of Anthropic's routes as its clients read them, whoever made them: vLLM, FastAPI, the door or the guard."""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

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


class Translated:
    """Sends a response on, an error of it in Anthropic's words."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None  # of an error
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            if message["status"] >= 400 and headers.get("content-type", "").startswith("application/json"):
                self._start = message
                return
        elif self._start is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._end(self._start)
            return
        await self._send(message)

    async def _end(self, start: Message) -> None:
        self._start = None
        content = json.loads(self._body)
        error = content.get("error", content) if isinstance(content, dict) else content
        body = json.dumps(written(error, start["status"])).encode()
        MutableHeaders(raw=start["headers"])["content-length"] = str(len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})
