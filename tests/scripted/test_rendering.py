"""Text that is only read is work, too: it is bounded, has a place, and keeps nobody else from being answered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.protocols.tokenizer import Detokenizer
from app.settings import Settings
from tests.scripted.server import over, scripted_app
from tests.scripted.test_scripted import CHAT, asking

TURN = {"role": "user", "content": "Where is Kandy?"}
RISK = {"model": "atlas", "messages": [TURN], "response": "It is in Japan."}
TOKENIZE, DETOKENIZE, COUNT = "/tokenize", "/detokenize", "/v1/messages/count_tokens"
GOOD: dict[str, Any] = {
    "/risk": RISK,
    "/v1/risk": [RISK, RISK],
    TOKENIZE: {"model": "atlas", "messages": [TURN]},
    DETOKENIZE: {"model": "atlas", "tokens": [5, 6]},
    COUNT: {"model": "atlas", "messages": [TURN]},
}


@pytest.fixture
async def app() -> AsyncIterator[FastAPI]:
    async with scripted_app(Settings(max_concurrent_requests=2)) as made:
        yield made
        assert made.state.admission.requests == 0


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with over(app) as client:
        yield client


@pytest.mark.parametrize("path", ["/risk", TOKENIZE, COUNT])
async def test_more_messages_than_allowed(http: httpx.AsyncClient, path: str) -> None:
    response = await http.post(path, json={**GOOD[path], "messages": [TURN] * 20_000})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"


async def test_more_messages_over_all_items(http: httpx.AsyncClient) -> None:
    response = await http.post("/risk", json=[{**RISK, "messages": [TURN] * 1025}] * 2)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")


@pytest.mark.parametrize("path", list(GOOD))
async def test_it_needs_a_place(app: FastAPI, http: httpx.AsyncClient, path: str) -> None:
    assert (await http.post(path, json=GOOD[path])).status_code == 200
    with app.state.admission.admit(None), app.state.admission.admit(None):
        response = await http.post(path, json=GOOD[path])
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert (await http.post(path, json=GOOD[path])).status_code == 200


async def test_the_loop_goes_on_while_a_text_is_rendered(
    app: FastAPI, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, inner = asyncio.Event(), threading.Event(), Detokenizer.messages
    loop = asyncio.get_running_loop()

    def slow(*arguments: Any) -> list[int]:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(60)
        return inner(*arguments)

    monkeypatch.setattr(Detokenizer, "messages", slow)
    asked = asyncio.create_task(http.post("/risk", json=RISK))
    try:
        await begun.wait()
        assert app.state.admission.requests == 1
        assert (await http.get("/live")).status_code == 200
        assert (await http.post(CHAT, json=asking("safe"))).status_code == 200
    finally:
        go_on.set()
    assert (await asked).json()["hallucination"]["type"] == "hallucination_results"


async def test_many_at_once(http: httpx.AsyncClient) -> None:
    """A tokenizer that two threads use at once says "Already borrowed"."""
    replies = await asyncio.gather(
        http.post("/risk", json=[RISK] * 16), http.post(CHAT, json=asking("long", hallucination={"tokens": True}))
    )
    assert [reply.status_code for reply in replies] == [200, 200]
    assert len(replies[0].json()["data"]) == 16


async def test_the_item_that_is_wrong_is_named(http: httpx.AsyncClient) -> None:
    response = await http.post("/risk", json=[RISK, {**RISK, "model": "other"}])
    assert (response.status_code, response.json()["error"]["param"]) == (404, "1.model")


async def test_risk_takes_what_chat_takes(http: httpx.AsyncClient) -> None:
    """No model, where there is one only; and the refusals of earlier turns as clients send them back."""
    part = {"type": "refusal", "refusal": "I do not know that."}
    turns = [TURN, {"role": "assistant", "content": [part]}, TURN]
    plain = [TURN, {"role": "assistant", "content": part["refusal"]}, TURN]
    risks = []
    for messages in (turns, plain):
        reply = await http.post("/risk", json={"messages": messages, "response": RISK["response"]})
        assert reply.status_code == 200, reply.text
        risks.append(reply.json()["hallucination"]["results"][0]["risk"])
    assert risks[0] == risks[1]
    wrong = {**TURN, "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}
    reply = await http.post("/risk", json={"messages": [wrong], "response": "x"})
    assert reply.status_code == 400
