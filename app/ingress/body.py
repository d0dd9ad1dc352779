"""Bodies: a request's is parsed once, and given to the next layer as it came; an answer's is written."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from starlette.types import Message, Receive

from app.errors import MalformedError
from guard.errors import RequestError

PARSED = "hguard_body"  # in scope["state"]: the body of a working route, parsed by the ingress
LINES = "application/x-ndjson"

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\0")  # an escape in UTF-8, or another encoding, whose escapes hide


def parse(body: bytes) -> Any:
    """Its JSON. Raises RequestError for what is none, and for strings that are no text."""
    if not body:
        raise MalformedError("the body is empty; a JSON object is required")
    try:
        content = json.loads(body)
        if not _whole(body):
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # JSON can spell it, UTF-8 cannot: vLLM fails on it wherever it goes, tokenizing, sending or answering.
        raise RequestError("invalid Unicode: unpaired surrogate in a string", param="body") from None
    except json.JSONDecodeError as error:
        raise MalformedError(f"the body is not valid JSON: {error}", error.pos) from None
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"the body is not valid JSON: {error}") from None
    return content


class Lines(list[Any]):
    """A body of JSON lines: what each holds."""


def parse_lines(body: bytes) -> Lines:
    """As ``parse``, of each line that is not empty; what is wrong names the line."""
    found = Lines()
    for number, line in enumerate(body.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(parse(line))
        except RequestError as error:
            raise RequestError(f"line {number}: {error}", error.param) from None
    if not found:
        raise MalformedError("the body is empty; a line for each item is required")
    return found


def _whole(body: bytes) -> bool:
    """Whether no string of it can hold half of a surrogate pair: UTF-8 without an escape for one."""
    try:
        return _SURROGATE.search(body) is None and bool(body.decode())
    except UnicodeDecodeError:  # the JSON parser is laxer
        return False


def as_object(content: Any) -> dict[str, Any]:
    """Raises RequestError for JSON that is no object."""
    if not isinstance(content, dict):
        raise MalformedError("the body must be a JSON object")
    return content


def replay(body: bytes, receive: Receive) -> Receive:
    """``receive`` for an inner app: this body, then whatever the server says (a disconnect)."""
    left: bytes | None = body

    async def replayed() -> Message:
        nonlocal left
        if left is None:
            return await receive()
        message: Message = {"type": "http.request", "body": left, "more_body": False}
        left = None
        return message

    return replayed


def written(content: Any) -> bytes:
    """``content`` as compact JSON in UTF-8; what UTF-8 cannot carry, half of a surrogate pair, as an escape."""
    try:
        return msgspec.json.encode(content)
    except (UnicodeError, TypeError):  # TypeError: a number of numpy's, which is one of Python's as well
        return json.dumps(content, separators=(",", ":")).encode()
