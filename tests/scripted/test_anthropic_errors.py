"""Errors on Anthropic's routes have its shape and its names for them, whoever found the fault."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.ingress.auth import ApiKeys
from app.settings import Settings
from tests.scripted.server import over, scripted_app
from tests.scripted.test_scripted import CHAT, asking

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
GOOD = {**asking("safe"), "max_tokens": 8}
NAMELESS = {key: value for key, value in GOOD.items() if key != "model"}


def require_error(response: httpx.Response, status: int, kind: str, names: str = "") -> Any:
    assert response.status_code == status, response.text
    assert response.headers["content-length"] == str(len(response.content))
    content = response.json()
    assert content["type"] == "error"
    assert content["error"]["type"] == kind
    assert isinstance(content["error"]["message"], str)
    assert names in content["error"]["message"]
    return content


WRONG: list[tuple[dict[str, Any], int, str, str]] = [
    ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
    ({"max_tokens": -1}, 400, "invalid_request_error", "max_tokens must be positive"),
    ({"max_tokens": 99_999}, 400, "invalid_request_error", "more than the"),
    ({"messages": [{"role": "banana", "content": "a"}]}, 400, "invalid_request_error", "role"),
    ({"messages": []}, 400, "invalid_request_error", "at least one"),
    ({"tools": 3}, 400, "invalid_request_error", "tools"),
    ({"hallucination": {"mode": "x"}}, 400, "invalid_request_error", "hallucination.mode"),
    ({"model": "other"}, 404, "not_found_error", "other"),
    ({"messages": [{"role": "user", "content": "safe " * 3000}]}, 400, "invalid_request_error", "maximum context"),
    ({"messages": [{"role": "user", "content": "boom"}]}, 500, "api_error", "Internal server error"),
    ({"messages": [{"role": "user", "content": "rejected"}]}, 500, "api_error", ""),
]


@pytest.mark.parametrize(("more", "status", "kind", "names"), WRONG, ids=[str(number) for number in range(len(WRONG))])
async def test_of_a_request(http: httpx.AsyncClient, more: Any, status: int, kind: str, names: str) -> None:
    require_error(await http.post(MESSAGES, json={**GOOD, **more}), status, kind, names)


async def test_what_is_wrong_is_still_named(http: httpx.AsyncClient) -> None:
    response = await http.post(MESSAGES, json={**GOOD, "hallucination": {"mode": "x"}})
    assert response.json()["error"]["param"] == "hallucination.mode"
    response = await http.post(MESSAGES, json={"model": "atlas", "messages": GOOD["messages"]})
    assert response.json()["error"]["param"] == "body.max_tokens"


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
async def test_of_a_body_and_of_a_method(http: httpx.AsyncClient, path: str) -> None:
    require_error(await http.post(path, content=b"{"), 400, "invalid_request_error", "JSON")
    text = {"content-type": "text/plain"}
    require_error(await http.post(path, content=json.dumps(GOOD).encode(), headers=text), 400, "invalid_request_error")
    require_error(await http.post(path, json={"model": "atlas", "messages": "x"}), 400, "invalid_request_error")
    gone = await http.get(path)
    require_error(gone, 405, "invalid_request_error")
    assert gone.headers["allow"] == "POST"
    require_error(await http.get(f"{path}/x"), 404, "not_found_error")


async def test_at_the_door() -> None:
    settings = Settings(api_keys=ApiKeys.parse("secret"), max_body_bytes=2000, max_concurrent_requests=1)
    async with scripted_app(settings) as app, over(app) as http:
        require_error(await http.post(MESSAGES, json=GOOD), 401, "authentication_error")
        key = {"x-api-key": "secret"}
        large = {**GOOD, "system": "x" * 2000}
        require_error(await http.post(MESSAGES, json=large, headers=key), 413, "request_too_large")
        with app.state.admission.admit(0):
            busy = await http.post(MESSAGES, json=GOOD, headers=key)
            require_error(busy, 429, "rate_limit_error")
            assert busy.headers["retry-after"] == "1"
        app.state.admission.close("draining")
        require_error(await http.post(MESSAGES, json=GOOD, headers=key), 503, "overloaded_error")


async def test_of_a_dead_engine(app: FastAPI, http: httpx.AsyncClient) -> None:
    died = await http.post(MESSAGES, json={**GOOD, "messages": asking("dies")["messages"]})
    require_error(died, 500, "api_error")


@pytest.mark.parametrize("words", ["boom", "dies"])
async def test_of_a_stream(app: FastAPI, http: httpx.AsyncClient, words: str) -> None:
    response = await http.post(MESSAGES, json={**GOOD, "messages": asking(words)["messages"], "stream": True})
    *_, name, data = [line for line in response.text.split("\n") if line]
    assert name == "event: error"
    content = json.loads(data.removeprefix("data: "))
    assert (content["type"], content["error"]["type"]) == ("error", "api_error")
    assert app.state.engine_client.pool.in_use == 0, "vLLM's converter has dropped its stream halfway"


async def test_answers_and_other_routes_are_left_alone(http: httpx.AsyncClient) -> None:
    answer = (await http.post(MESSAGES, json=GOOD)).json()
    assert answer["type"] == "message"
    other = (await http.post(CHAT, json=NAMELESS | {"n": 0})).json()
    assert set(other) == {"error"}


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
@pytest.mark.parametrize("source", [5, "x"])
async def test_a_block_that_vllm_falls_over(http: httpx.AsyncClient, path: str, source: Any) -> None:
    block = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image", "source": source}]}
    asked = {**GOOD, "messages": [{"role": "user", "content": [block]}]}
    require_error(await http.post(path, json=asked), 400, "invalid_request_error", "wrong kind")


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
async def test_head(http: httpx.AsyncClient, path: str) -> None:
    response = await http.head(path)
    assert (response.status_code, response.content) == (405, b"")
