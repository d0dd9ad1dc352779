"""Errors on their way out, whoever made them: vLLM, FastAPI, the ingress or the guard. What they repeat is bounded."""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from app import anthropic_errors, errors


def _is_json(headers: MutableHeaders) -> bool:
    return headers.get("content-type", "").startswith("application/json")


class ErrorResponses:
    """Sends a response on; of an error in JSON with long texts shortened, and in Anthropic's words on its routes."""

    def __init__(self, send: Send, path: str) -> None:
        self._send = send
        self._translates = anthropic_errors.asked(path)
        self._start: Message | None = None  # of an error
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400 and _is_json(MutableHeaders(raw=message["headers"])):
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
        body = self._written(start["status"])
        MutableHeaders(raw=start["headers"])["content-length"] = str(len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})

    def _written(self, status: int) -> bytes:
        if not self._body:  # of a HEAD
            return self._body
        if not self._translates and len(self._body) <= errors.LONGEST_TEXT:
            return self._body
        content: Any = errors.shortened(json.loads(self._body))
        if self._translates:
            error = content.get("error", content) if isinstance(content, dict) else content
            content = anthropic_errors.written(error, status)
        return json.dumps(content).encode()
