"""What would take the event loop or the engine from other callers is refused before either has seen it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.scripted.server import over, scripted_app
from tests.scripted.test_scripted import CHAT, asking

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMPLETIONS, RESPONSES, MESSAGES = "/v1/completions", "/v1/responses", "/v1/messages"
SCHEMA = {"type": "object", "properties": {f"field_{i}": {"type": "string"} for i in range(4000)}}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": {**FUNCTION, "name": f"f{i}"}} for i in range(2000)]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}] * 28}] * 2000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with scripted_app() as app, over(app) as client:
        yield client
        assert app.state.admission.requests == 0


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        (CHAT, {"structured_outputs": {"json": SCHEMA}}, "structured_outputs"),
        (CHAT, {"structured_outputs": {"choice": [f"c{i}" for i in range(150_000)]}}, "structured_outputs"),
        (CHAT, {"structured_outputs": {"regex": "(a|b|c|d|e|f)*" * 500}}, "structured_outputs"),
        # Of 1,100 characters; with 330 of them each step takes over a second, with all of them minutes.
        (CHAT, {"structured_outputs": {"regex": "(a?){1,500}" * 100}}, "structured_outputs"),
        (CHAT, {"tools": TOOLS, "tool_choice": "required"}, "tools"),
        (CHAT, {"messages": PARTS}, "messages"),
        (COMPLETIONS, {"structured_outputs": {"choice": [f"c{i}" for i in range(100_000)]}}, "structured_outputs"),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}}, "text"),
        (RESPONSES, {"tools": [{"type": "function", **FUNCTION}] * 129}, "tools"),
        (RESPONSES, {"background": True}, "background"),
        (MESSAGES, {"tools": [{"name": "f", "input_schema": SCHEMA}]}, "tools"),
    ],
)
async def test_what_is_too_large(http: httpx.AsyncClient, path: str, more: dict[str, Any], param: str) -> None:
    body = asking("safe", max_tokens=8)
    if path in (COMPLETIONS, RESPONSES):
        body["prompt" if path == COMPLETIONS else "input"] = body.pop("messages")[0]["content"]
    response = await http.post(path, json={**body, **more})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert "allowed" in error["message"]


async def test_what_agents_send_passes(http: httpx.AsyncClient) -> None:
    parameters = {
        "type": "object",
        "properties": {f"field_{i}": {"type": "string", "description": "words " * 40} for i in range(8)},
        "required": [f"field_{i}" for i in range(8)],
    }
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": parameters}} for i in range(64)]
    turns = [{"role": "user", "content": [{"type": "text", "text": "safe"}]}] * 4
    response = await http.post("/tokenize", json={"model": "atlas", "messages": turns, "tools": tools})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"bad_words": ["lorem ipsum dolor " * 100_000]}),
        (CHAT, {"stop_token_ids": ["a"] * 400_000}),
        (COMPLETIONS, {"prompt": [1] + ["x"] * 400_000}),
        (RESPONSES, {"input": [{"type": "nope"}] * 2048}),
        (RESPONSES, {"input": "safe", "previous_input_messages": [1] * 400_000}),
        (RESPONSES, {"input": "safe", "include": ["x"] * 400_000}),
        ("/detokenize", {"tokens": ["a"] * 400_000}),
        ("/tokenize", {"prompt": "lorem ipsum dolor " * 100_000, "return_token_strs": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
async def test_none_takes_the_event_loop(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    """Whatever a request of the allowed size gets for an answer, others get theirs meanwhile."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.01)
            longest = max(longest, time.perf_counter() - began)

    ticking = asyncio.create_task(tick())
    asked = asking("safe", max_tokens=8) if path == CHAT else {"model": "atlas"}
    await asyncio.sleep(0.02)
    try:
        response = await http.post(path, json={**asked, **body}, timeout=60)
        await asyncio.sleep(0.02)
    finally:
        ticking.cancel()
    assert response.status_code < 500
    assert longest < 0.5
