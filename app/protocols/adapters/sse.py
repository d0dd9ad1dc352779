"""Server-sent events, as far as the guarded routes use them: a ``data`` line, and perhaps an ``event`` line before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from app.ingress.body import written

_END = b"\n\n"
_DATA, _EVENT = b"data: ", b"event: "
DONE = b"data: [DONE]\n\n"


def frame(content: dict[str, Any], event: str | None = None) -> bytes:
    """One frame with its empty line."""
    name = b"" if event is None else f"event: {event}\n".encode()
    return name + _DATA + written(content) + _END


class FrameEditor:
    """Splits a byte stream into frames and lets ``edit`` put others in the place of each JSON one.

    ``untouched`` is asked first, with the JSON text, and spares frames that are to pass as they are. Comments,
    ``[DONE]`` and what is not JSON pass too.
    """

    def __init__(
        self, edit: Callable[[dict[str, Any], str | None], Iterable[bytes]], untouched: Callable[[bytes], bool]
    ) -> None:
        self._edit, self._untouched = edit, untouched
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """Every frame completed by ``chunk``, edited."""
        *frames, self._rest = (self._rest + chunk).split(_END)
        return b"".join(self._frame(one) for one in frames)

    def flush(self) -> bytes:
        """What is left when the stream ends: an incomplete frame, unchanged."""
        rest, self._rest = self._rest, b""
        return rest

    def _frame(self, one: bytes) -> bytes:
        name, rest = None, one
        if one.startswith(_EVENT):
            line, _, rest = one.partition(b"\n")
            name = line.removeprefix(_EVENT).decode(errors="replace")
        payload = rest.removeprefix(_DATA)
        if not rest.startswith(_DATA) or not payload.startswith(b"{") or self._untouched(payload):
            return one + _END
        try:
            content = json.loads(payload)
        except ValueError:
            return one + _END
        return b"".join(self._edit(content, name))
