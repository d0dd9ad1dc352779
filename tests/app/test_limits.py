"""What one request may ask for: every limit at its edge, and any JSON in any field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.dialects import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from app.limits import RISK, Limits, answers
from guard.errors import RequestError

LIMITS = Limits(max_messages=3, max_tokens=100, max_choices=4, max_risk_items=2)
PATHS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, *sorted(RISK), "/tokenize")
HELLO = {"role": "user", "content": "Hello"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [HELLO] * 3, "n": 4, "max_tokens": 100, "max_completion_tokens": 100}),
        (CHAT, {"messages": [HELLO], "n": None, "max_tokens": None}),
        (CHAT, {"prompt": ["not a field of chats"] * 9, "max_output_tokens": 900}),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 2}),
        (COMPLETIONS, {"prompt": "a" * 999, "n": 4}),
        (COMPLETIONS, {"prompt": list(range(99))}),
        (COMPLETIONS, {"prompt": [[1, 2], [3, 4, 5, 6, 7]], "n": 2}),
        (COMPLETIONS, {"prompt": []}),
        (COMPLETIONS, {"": [0] * 9}),
        (RESPONSES, {"input": [HELLO] * 3, "max_output_tokens": 100}),
        (RESPONSES, {"input": "a" * 999}),
        (MESSAGES, {"messages": [HELLO] * 3, "max_tokens": 100}),
        ("/risk", [{}, {}]),
        ("/risk", {"messages": [HELLO] * 9}),
        ("/tokenize", {"messages": [HELLO] * 9, "n": 99}),
    ],
)
def test_within_bounds(path: str, body: Any) -> None:
    LIMITS.check(path, body)


@pytest.mark.parametrize(
    ("path", "body", "param", "status"),
    [
        (CHAT, {"messages": [HELLO] * 4}, "messages", 400),
        (CHAT, {"max_tokens": 101}, "max_tokens", 400),
        (CHAT, {"max_completion_tokens": 101, "max_tokens": 1}, "max_completion_tokens", 400),
        (CHAT, {"n": 5}, "n", 400),
        (CHAT, {"n": "5"}, "n", 400),
        (CHAT, {"n": 5.0}, "n", 400),
        (CHAT, {"max_tokens": " 101 "}, "max_tokens", 400),
        (CHAT, {"max_tokens": 10**30}, "max_tokens", 400),
        (COMPLETIONS, {"max_tokens": 101}, "max_tokens", 400),
        (COMPLETIONS, {"prompt": ["a"] * 5}, "prompt", 400),
        (COMPLETIONS, {"prompt": ["a", "b", "c"], "n": 2}, "n", 400),
        (COMPLETIONS, {"prompt": "a", "n": 1, "best_of": 5}, "best_of", 400),
        (COMPLETIONS, {"prompt": [[1], [2], [3], [4], [5]]}, "prompt", 400),
        (RESPONSES, {"input": [HELLO] * 4}, "input", 400),
        (RESPONSES, {"max_output_tokens": 101}, "max_output_tokens", 400),
        (MESSAGES, {"messages": [HELLO] * 4}, "messages", 400),
        (MESSAGES, {"max_tokens": 101}, "max_tokens", 400),
        ("/risk", [{}] * 3, None, 413),
        ("/v1/risk", [{}] * 3, None, 413),
    ],
)
def test_beyond(path: str, body: Any, param: str | None, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        LIMITS.check(path, body)
    assert (caught.value.param, caught.value.status) == (param, status)


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        (CHAT, {}, 1),
        (CHAT, {"n": 3}, 3),
        (CHAT, {"n": 0}, 1),
        (CHAT, {"n": -7}, 1),
        (CHAT, {"n": "three"}, 1),
        (CHAT, {"n": True}, 1),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 3}, 6),
        (COMPLETIONS, {"prompt": [1, 2, 3], "n": 2, "best_of": 3}, 3),
        (COMPLETIONS, {"prompt": {"a": 1}}, 1),
        (RESPONSES, {"n": 5}, 1),
        (MESSAGES, {"n": 5}, 1),
        ("/risk", {}, 1),
        ("/risk", [{}, {}], 2),
        ("/risk", [], 1),
        (CHAT, None, 1),
    ],
)
def test_answers(path: str, body: Any, count: int) -> None:
    assert answers(path, body) == count


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ANY_JSON = st.recursive(SCALAR, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
FIELDS = ("n", "best_of", "prompt", "messages", "input", "max_tokens", "max_completion_tokens", "max_output_tokens")


@settings(deadline=None)
@given(st.sampled_from(PATHS), ANY_JSON | st.dictionaries(st.sampled_from(FIELDS), ANY_JSON))
def test_any_json_is_checked_or_left_to_the_route(path: str, body: Any) -> None:
    try:
        LIMITS.check(path, body)
    except RequestError:
        return
    assert 1 <= answers(path, body) <= 4 or isinstance(body, list)
