"""What would take the event loop or the engine from other callers is refused before either has seen it."""

from __future__ import annotations

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
