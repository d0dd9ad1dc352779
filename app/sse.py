"""Server-sent events, as far as OpenAI's streams use them: ``data: <json>`` frames, comments, ``data: [DONE]``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

_END = b"\n\n"
_DATA = b"data: "


class FrameEditor:
    """Splits a byte stream into frames and lets ``edit`` change each JSON one; everything else passes unchanged."""

    def __init__(self, edit: Callable[[dict[str, Any]], None]) -> None:
        self._edit = edit
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """Every frame completed by ``chunk``, edited."""
        *frames, self._rest = (self._rest + chunk).split(_END)
        return b"".join(self._frame(frame) + _END for frame in frames)

    def flush(self) -> bytes:
        """What is left when the stream ends: an incomplete frame, unchanged."""
        rest, self._rest = self._rest, b""
        return rest

    def _frame(self, frame: bytes) -> bytes:
        if not frame.startswith(_DATA):
            return frame
        payload = frame[len(_DATA) :]
        if payload == b"[DONE]":
            return frame
        content = json.loads(payload)
        self._edit(content)
        return _DATA + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
