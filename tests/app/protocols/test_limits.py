"""What one request may ask for: every limit at its edge, and any JSON in any field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.protocols.adapters.registry import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from app.protocols.limits import RISK, Limits
from app.settings import RequestLimits
from guard.errors import RequestError

LIMITS = Limits(
    RequestLimits(
        max_messages=3, max_parts=6, max_tools=2, max_grammar=40, max_tokens=100, max_choices=4, max_risk_items=2
    ),
    capacity=1 << 20,
)
PATHS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, *sorted(RISK), "/tokenize")
HELLO = {"role": "user", "content": "Hello"}
TEXT = {"type": "text", "text": "Hello"}
DEEP: Any = []
for _ in range(100):
    DEEP = [DEEP]
SCHEMA = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20)}}


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
        (CHAT, {"messages": [{"content": [TEXT] * 2}] * 3, "tools": [{}, {}]}),
        (CHAT, {"messages": [HELLO], "tools": "none", "structured_outputs": "none", "documents": "none"}),
        (CHAT, {"structured_outputs": {"choice": ["a"] * 38}}),
        (CHAT, {"response_format": {"type": "json_object"}, "text": "x" * 999}),
        (RESPONSES, {"input": [HELLO] * 3, "max_output_tokens": 100}),
        (RESPONSES, {"input": "a" * 999}),
        (MESSAGES, {"messages": [HELLO] * 3, "max_tokens": 100}),
        ("/risk", [{}, {}]),
        ("/risk", {"messages": [HELLO] * 3}),
        ("/risk", [{"messages": [HELLO]}, {"messages": "none"}]),
        ("/tokenize", {"messages": [HELLO] * 3, "n": 99}),
        ("/detokenize", {"tokens": [1] * 999}),
        ("/detokenize", {"tokens": [1] * 99_999}),
        (COMPLETIONS, {"prompt": [[1] * 50_000, [2] * 50_000], "bad_words": ["a" * 1000] * 50}),
        (CHAT, {"messages": [HELLO], "request_id": "i" * 256, "bad_words": "none", "stop": ["a"] * 24_000}),
        ("/tokenize", {"prompt": "a" * 400_001}),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": None}], "chat_template_kwargs": {"a": 1}}),
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
        (CHAT, {"messages": [{"content": [TEXT] * 3}, {"content": ["a"] * 4}]}, "messages", 400),
        (CHAT, {"messages": [HELLO], "documents": [{"text": ""}] * 7}, "messages", 400),
        (CHAT, {"messages": [HELLO, {"tool_calls": [{"function": {}}] * 4}]}, "messages", 400),
        (MESSAGES, {"messages": [{"content": [{"content": [TEXT] * 6}]}]}, "messages", 400),
        (MESSAGES, {"messages": [HELLO], "system": [TEXT] * 7}, "messages", 400),
        (RESPONSES, {"input": [{"type": "function_call_output", "output": [TEXT] * 7}]}, "input", 400),
        (CHAT, {"tools": [{}] * 3}, "tools", 400),
        (RESPONSES, {"tools": [{}] * 3}, "tools", 400),
        (MESSAGES, {"tools": [{}] * 3}, "tools", 400),
        (CHAT, {"tools": [{"function": {"parameters": SCHEMA}}]}, "tools", 400),
        (MESSAGES, {"tools": [{"input_schema": SCHEMA}]}, "tools", 400),
        (CHAT, {"structured_outputs": {"json": SCHEMA}}, "structured_outputs", 400),
        (COMPLETIONS, {"structured_outputs": {"json": json.dumps(SCHEMA)}}, "structured_outputs", 400),
        (COMPLETIONS, {"structured_outputs": {"choice": ["a"] * 39}}, "structured_outputs", 400),
        (CHAT, {"structured_outputs": {"regex": "(a|b)*" * 9}}, "structured_outputs", 400),
        (CHAT, {"structured_outputs": {"grammar": "root ::= " + "a" * 99}}, "structured_outputs", 400),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, "response_format", 400),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "schema": SCHEMA}}}, "text", 400),
        (MESSAGES, {"output_config": {"format": {"schema": SCHEMA}}}, "output_config", 400),
        (CHAT, {"structured_outputs": {"choice": ["a"] * 30}, "tools": [{"a": [0] * 9}]}, "tools", 400),
        (COMPLETIONS, {"max_tokens": 101}, "max_tokens", 400),
        (COMPLETIONS, {"prompt": ["a"] * 5}, "prompt", 400),
        (COMPLETIONS, {"prompt": ["a", "b", "c"], "n": 2}, "n", 400),
        (COMPLETIONS, {"prompt": "a", "n": 1, "best_of": 5}, "best_of", 400),
        (COMPLETIONS, {"prompt": [[1], [2], [3], [4], [5]]}, "prompt", 400),
        (RESPONSES, {"input": [HELLO] * 4}, "input", 400),
        (RESPONSES, {"max_output_tokens": 101}, "max_output_tokens", 400),
        (MESSAGES, {"messages": [HELLO] * 4}, "messages", 400),
        (MESSAGES, {"max_tokens": 101}, "max_tokens", 400),
        ("/tokenize", {"messages": [HELLO] * 4}, "messages", 400),
        ("/tokenize", {"messages": [HELLO], "tools": [{}] * 3}, "tools", 400),
        ("/v1/messages/count_tokens", {"messages": [HELLO] * 4}, "messages", 400),
        ("/v1/messages/count_tokens", {"messages": [HELLO], "system": [TEXT] * 7}, "messages", 400),
        ("/risk", {"messages": [HELLO] * 4}, "messages", 400),
        ("/risk", [{"messages": [HELLO] * 2}] * 2, "messages", 400),
        ("/v1/risk", {"messages": [{"content": [TEXT] * 7}]}, "messages", 400),
        (CHAT, {"messages": [HELLO], "request_id": "i" * 257}, "request_id", 400),
        (CHAT, {"messages": [HELLO], "bad_words": ["a" * 100_001]}, "bad_words", 400),
        (COMPLETIONS, {"prompt": ["a"] * 4, "bad_words": ["a" * 1000] * 26}, "bad_words", 400),
        (CHAT, {"stop": ["a"] * 25_001}, "stop", 400),
        (CHAT, {f"f{i}": 1 for i in range(25_001)}, None, 400),
        (COMPLETIONS, {"prompt": [1, "a"] * 12_501}, "prompt", 400),
        (CHAT, {"kv_transfer_params": DEEP}, "kv_transfer_params", 400),
        ("/risk", [{"response": DEEP}], None, 400),
        ("/tokenize", {"prompt": "a" * 400_001, "return_token_strs": True}, "return_token_strs", 400),
        ("/risk", [{}] * 3, None, 413),
        ("/v1/risk", [{}] * 3, None, 413),
    ],
)
def test_beyond(path: str, body: Any, param: str | None, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        LIMITS.check(path, body)
    assert (caught.value.param, caught.value.status) == (param, status)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (CHAT, {"messages": None}, "messages must be a list, not null"),
        (MESSAGES, {"messages": "hello"}, "messages must be a list, not a string"),
        (CHAT, {"messages": [HELLO, {"role": "assistant", "tool_calls": 5}]}, "messages.1.tool_calls must be a list"),
        (CHAT, {"messages": [HELLO], "chat_template_kwargs": {"self": 1}}, "chat_template_kwargs may not have self"),
        (CHAT, {"chat_template_kwargs": {"documents": 1}}, "documents must be a list, not a number"),
        (CHAT, None, "the body is null"),
    ],
)
def test_what_python_would_complain_of(path: str, body: Any, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        LIMITS.check(path, body)


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
        (CHAT, [{}] * 9, 1),
        ("/tokenize", [{}] * 9, 1),
    ],
)
def test_answers(path: str, body: Any, count: int) -> None:
    assert LIMITS.answers(path, body) == count


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ANY_JSON = st.recursive(SCALAR, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
FIELDS = (
    "tools",
    "system",
    "documents",
    "structured_outputs",
    "response_format",
    "n",
    "best_of",
    "prompt",
    "messages",
    "input",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
)


@settings(deadline=None)
@given(st.sampled_from(PATHS), ANY_JSON | st.dictionaries(st.sampled_from(FIELDS), ANY_JSON))
def test_any_json_is_checked_or_left_to_the_route(path: str, body: Any) -> None:
    try:
        LIMITS.check(path, body)
    except RequestError:
        return
    assert 1 <= LIMITS.answers(path, body) <= 4 or isinstance(body, list)
