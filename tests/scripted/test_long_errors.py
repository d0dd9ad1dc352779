"""What an error repeats of a request is bounded: on every API, for answers and streams, whoever found the fault."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.scripted.test_scripted import CHAT, asking

COMPLETIONS, RESPONSES, MESSAGES = "/v1/completions", "/v1/responses", "/v1/messages"
MANY = {"stop_token_ids": list(range(10**9, 10**9 + 10_000))}
LONG = "x" * 100_000


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        (CHAT, asking("safe", **MANY), "stop_token_ids"),
        (COMPLETIONS, {"model": "atlas", "prompt": "safe", **MANY}, "stop_token_ids"),
        (RESPONSES, {"model": "atlas", "input": "safe", "hallucination": {"mode": LONG}}, "hallucination.mode"),
        (COMPLETIONS, {"model": LONG, "prompt": "safe"}, "xxx"),
        (MESSAGES, {**asking("safe"), "model": LONG, "max_tokens": 8}, "xxx"),
    ],
    ids=["chat", "completions", "responses", "model", "messages"],
)
async def test_of_a_long_value(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], named: str, stream: bool
) -> None:
    response = await http.post(path, json={**body, "stream": stream})
    assert response.status_code in (400, 404), response.text[:1000]
    assert response.headers["content-length"] == str(len(response.content))
    assert len(response.content) < 2000
    message = response.json()["error"]["message"]
    assert named in message
    if path != RESPONSES:  # whose error says what may be, not what is
        assert "characters left out" in message


async def test_a_short_one_is_whole(http: httpx.AsyncClient) -> None:
    few = list(range(10**9, 10**9 + 10))
    response = await http.post(CHAT, json=asking("safe", stop_token_ids=few))
    message = response.json()["error"]["message"]
    assert str(few) in message
    assert "left out" not in message
