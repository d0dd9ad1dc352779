"""The frame editor: whatever way the bytes are cut, the frames are the same."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.protocols.adapters.sse import FrameEditor, frame

STREAM = (
    'data: {"choices":[{"text":"Żary\\n\\n"}]}\n\n'
    ": keep-alive\n\n"
    'data: {"choices":[]}\n\n'
    "event: other\ndata: x\n\n"
    'event: named\ndata: {"text":"data: {}\\ndata: x"}\n\n'
    'data: {"spared":1}\n\n'
    "data: {not json\n\n"
    "data: [DONE]\n\n"
).encode()


def edited(chunks: list[bytes]) -> bytes:
    def edit(content: dict[str, Any], event: str | None) -> list[bytes]:
        twice = [frame({"before": event}, event)] if event else []
        return [*twice, frame({**content, "seen": True}, event)]

    editor = FrameEditor(edit, lambda payload: b"spared" in payload)
    return b"".join(editor.feed(chunk) for chunk in chunks) + editor.flush()


def test_only_json_frames_change() -> None:
    frames = edited([STREAM]).split(b"\n\n")
    assert json.loads(frames[0].removeprefix(b"data: ")) == {"choices": [{"text": "Żary\n\n"}], "seen": True}
    assert frames[1] == b": keep-alive"
    assert json.loads(frames[2].removeprefix(b"data: ")) == {"choices": [], "seen": True}
    assert frames[3:] == [
        b"event: other\ndata: x",
        b'event: named\ndata: {"before":"named"}',
        b'event: named\ndata: {"text":"data: {}\\ndata: x","seen":true}',
        b'data: {"spared":1}',
        b"data: {not json",
        b"data: [DONE]",
        b"",
    ]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_cuts_do_not_matter(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[a:b] for a, b in itertools.pairwise(bounds)]
    assert edited(chunks) == edited([STREAM])


def test_an_incomplete_frame_passes_unchanged() -> None:
    assert edited([b'data: {"a":1}\n\ndata: {"b"']).endswith(b'data: {"b"')
