"""What of a body is costly to read is counted, and counting it is not costly itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocols import sizes

MOST = 10**9
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ANY_JSON = st.recursive(SCALAR, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@pytest.mark.parametrize(
    ("messages", "count"),
    [
        ([], 0),
        ([{"role": "user", "content": "Hello"}], 0),
        (["no message", 5, None], 0),
        ([{"content": []}], 0),
        ([{"content": ["a", "b"]}], 2),
        ([{"content": [{"type": "text", "text": "a"}]}] * 3, 3),
        ([{"tool_calls": [{"type": "function", "function": {"name": "f"}}]}], 2),
        ([{"content": [{"type": "tool_result", "content": [{"type": "text"}, {"type": "text"}]}]}], 3),
        ([{"content": [{"type": "image_url", "image_url": {"url": ""}}]}], 2),
        ([{"content": [[["a"]]]}], 3),
        ([{"content": {"a": {"b": {}}}}], 3),
        ([["a", "b"]], 2),
    ],
)
def test_parts(messages: list[Any], count: int) -> None:
    assert sizes.parts(messages, MOST) == count
    assert count == 0 or sizes.parts(messages, count - 1) > count - 1


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ({}, 1),
        ([], 1),
        ({"choice": ["yes", "no"]}, 4),
        ({"choice": ["x" * 160]}, 13),
        ({"regex": "x" * 100}, 202),
        ({"grammar": "x" * 100}, 202),
        ({"json": json.dumps({"type": "string"})}, 4),
        ({"json": '{"type"'}, 2),
        ({"structural_tag": json.dumps({"format": {"type": "regex", "pattern": "x" * 9}})}, 24),
        ({"type": "string", "description": "x" * 999}, 3),
        ({"const": {"description": "x" * 160}}, 13),
        ({"enum": [{"title": "x" * 160}]}, 14),
        ({"patternProperties": {"x" * 100: {}}}, 204),
        ({"properties": {"x" * 160: {"type": "string"}}}, 14),
        ({"properties": {str(i): 0 for i in range(1024)}}, 1026 + 32768),
        ({"properties": {"pattern": {"type": "string"}}}, 4),
    ],
)
def test_grammar(value: Any, count: int) -> None:
    assert sizes.grammar(value, MOST) == count
    assert sizes.grammar(value, count) == count
    assert sizes.grammar(value, count - 1) > count - 1


@given(ANY_JSON, st.integers(0, 20))
def test_any_json_is_counted_up_to_a_bound(value: Any, most: int) -> None:
    for count in (sizes.grammar, sizes.parts):
        given_ = [value] if count is sizes.parts else value
        assert (count(given_, most) > most) is (count(given_, MOST) > most)
