"""Server-sent events, as far as the guarded routes use them: a ``data`` line, and perhaps an ``event`` line before."""

from __future__ import annotations

from typing import Any

from app.ingress.body import written

DONE = b"data: [DONE]\n\n"


def frame(content: dict[str, Any], event: str | None = None) -> bytes:
    """One frame with its empty line."""
    name = b"" if event is None else f"event: {event}\n".encode()
    return name + b"data: " + written(content) + b"\n\n"
