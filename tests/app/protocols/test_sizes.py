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


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"a": 1, "b": [1, 2]}, (4, 2)),
        ({"prompt": [1] * 99, "a": 1}, (2, 2)),
        ({"prompt": [[1] * 99, [2] * 99]}, (3, 3)),
        ({"prompt": [1, "a"]}, (3, 2)),
        ({"stop": ["a"] * 99}, (100, 2)),
        ([[[[1]]]], (4, 4)),
        ("text", (0, 1)),
    ],
)
def test_values(body: Any, found: tuple[int, int]) -> None:
    assert sizes.values(body, 1000, 100) == found


def test_values_are_counted_up_to_a_bound() -> None:
    assert sizes.values(["a"] * 10**6, 50, 9)[0] > 50
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert sizes.values(deep, 50_000, 9)[1] > 9


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("a{1,500}", 16),  # of what is something: its characters alone
        ("(a?){1,500}", 22 + 3000),
        ("(a?){500}", 18 + 3000),
        ("((a?){1,9}){1,500}", 36 + 2 * (27 + 500 * 32)),
        ("(a?)*", 10 + 2 * 48),
        ("root ::= (a?){1,500})", 42 + 998),  # of another dialect: all of them, within each other
    ],
)
def test_repetitions_of_what_may_be_nothing_count(pattern: str, count: int) -> None:
    assert sizes.grammar({"regex": pattern}, 10**6) == 2 + count
