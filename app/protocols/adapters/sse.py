"""Server-sent events, as far as the guarded routes use them: a ``data`` line, and perhaps an ``event`` line before."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import msgspec

from app.ingress.body import written

DONE = b"data: [DONE]\n\n"
_DATA, _EVENT = "data: ", "event: "


def frame(content: dict[str, Any], event: str | None = None) -> bytes:
    """One frame with its empty line."""
    name = b"" if event is None else f"event: {event}\n".encode()
    return name + b"data: " + written(content) + b"\n\n"


def _read(text: str) -> Any:
    """Its JSON; Python's own module reads what the fast one does not: half of a surrogate pair."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        return json.loads(text)


class Stream(ABC):
    """Edits one stream, frame by frame, as vLLM yields them."""

    @abstractmethod
    def feed(self, frame: Any) -> str | bytes:
        """What leaves in the place of one frame."""

    @abstractmethod
    def error(self, message: str, status: int = 500) -> bytes:
        """Frames that end the stream with an error; ``status`` is what it would have been before the stream began."""


class FrameStream(Stream):
    """One whose frames are texts. Comments, ``[DONE]`` and what is not JSON pass as they are."""

    def feed(self, frame: str) -> str | bytes:
        if self.untouched(frame):
            return frame
        event, data = None, frame
        if frame.startswith(_EVENT):
            name, _, data = frame.partition("\n")
            event = name.removeprefix(_EVENT)
        if not data.startswith(_DATA + "{"):
            return frame
        try:
            content = _read(data.removeprefix(_DATA))
        except ValueError:
            return frame
        return b"".join(self.edit(content, event))

    @abstractmethod
    def untouched(self, frame: str) -> bool:
        """Whether a frame passes as it is, found out without reading it."""

    @abstractmethod
    def edit(self, content: dict[str, Any], event: str | None) -> Iterable[bytes]:
        """The frames in the place of this one."""
