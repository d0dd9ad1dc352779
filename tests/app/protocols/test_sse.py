"""The frames of a stream: those that are JSON change, all others pass as they are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from app.protocols.adapters.sse import FrameStream, frame

FRAMES = [
    'data: {"choices":[{"text":"Żary\\n\\n"}]}\n\n',
    ": keep-alive\n\n",
    'data: {"choices":[]}\n\n',
    "event: other\ndata: x\n\n",
    'event: named\ndata: {"text":"data: {}\\ndata: x"}\n\n',
    'data: {"spared":1}\n\n',
    "data: {not json\n\n",
    "data: [DONE]\n\n",
]


class Seen(FrameStream):
    """Marks what it is shown, and doubles what has a name."""

    def untouched(self, frame: str) -> bool:
        return "spared" in frame

    def edit(self, content: dict[str, Any], event: str | None) -> Iterable[bytes]:
        return [*([frame({"before": event}, event)] if event else []), frame({**content, "seen": True}, event)]

    def error(self, message: str, status: int = 500) -> bytes:
        raise AssertionError("none of these streams breaks")


def test_only_json_frames_change() -> None:
    fed = [Seen().feed(one) for one in FRAMES]
    first, comment, second, other, named, *rest = fed
    assert json.loads(bytes(first, "utf-8")[6:] if isinstance(first, str) else first[6:]) == {
        "choices": [{"text": "Żary\n\n"}],
        "seen": True,
    }
    assert (comment, other, rest) == (FRAMES[1], FRAMES[3], FRAMES[5:])
    assert second == b'data: {"choices":[],"seen":true}\n\n'
    assert named == (
        b'event: named\ndata: {"before":"named"}\n\nevent: named\ndata: {"text":"data: {}\\ndata: x","seen":true}\n\n'
    )
