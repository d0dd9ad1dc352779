"""Callers may choose their requests' ids, and choose one twice: gateways that try again do. Each keeps its answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.scripted.test_scripted import CHAT, asking, result

COMPLETIONS, RESPONSES, MESSAGES = "/v1/completions", "/v1/responses", "/v1/messages"
SAME = {"x-request-id": "same"}
ABSTAIN = {"mode": "abstain"}


async def ask(http: httpx.AsyncClient, words: str, path: str = CHAT, **more: Any) -> Any:
    body = asking(words, **more)
    if path in (COMPLETIONS, RESPONSES):
        body["prompt" if path == COMPLETIONS else "input"] = body.pop("messages")[0]["content"]
    response = await http.post(path, json={"max_tokens": 200, **body}, headers=SAME)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_one_id_twice_at_once(http: httpx.AsyncClient, path: str, n: int) -> None:
    """One's second answer is ended at its first window, while another request of that id goes on."""
    withheld, whole = await asyncio.gather(
        ask(http, "second long", path, n=2, hallucination=ABSTAIN), ask(http, "long", path, n=n)
    )
    assert [one["action"] for one in withheld["hallucination"]["results"]] == ["pass", "abstained"]
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["length"] * n
    assert whole["usage"]["completion_tokens"] == 200 * n
    assert withheld["id"] == whole["id"], "the answer has the id that its caller chose"
    assert withheld["id"].endswith("-same")


async def test_as_streams(http: httpx.AsyncClient) -> None:
    async def stream(words: str, **more: Any) -> list[Any]:
        response = await http.post(CHAT, json=asking(words, stream=True, max_tokens=200, **more), headers=SAME)
        assert response.status_code == 200
        return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]

    withheld, whole = await asyncio.gather(
        stream("second long", n=2, hallucination={**ABSTAIN, "hold": "none"}), stream("long")
    )
    for frames, reasons in ((withheld, ["content_filter", "length"]), (whole, ["length"])):
        assert not any("error" in frame for frame in frames)
        found = [choice["finish_reason"] for frame in frames for choice in frame["choices"] if choice["finish_reason"]]
        assert sorted(found) == reasons


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
async def test_second_tries_and_looks_ahead_of_one_id(http: httpx.AsyncClient, path: str) -> None:
    options = {**ABSTAIN, "prompt_check": True, "retry_scale": 0}
    replies = await asyncio.gather(
        *(ask(http, "long risky prompt_risk", path, hallucination=options) for _ in range(3))
    )
    retried = {**ABSTAIN, "retry_scale": 0}
    replies += await asyncio.gather(*(ask(http, "long risky", path, hallucination=retried) for _ in range(3)))
    assert [result(reply)["action"] for reply in replies] == ["abstained"] * 3 + ["pass"] * 3


async def test_what_the_engine_is_told_is_short_and_its_own(app: FastAPI, http: httpx.AsyncClient) -> None:
    """Each step's output carries the id: one of a megabyte would cost everyone."""
    core = app.state.engine_client.engine_core
    core.seen.clear()
    for headers, more in (({"x-request-id": "x" * 100_000}, {}), ({}, {"request_id": "y" * 256})):
        response = await http.post(CHAT, json=asking("safe", **more), headers=headers)
        assert response.status_code == 200
    assert len(core.seen) == len(set(core.seen)) == 2
    assert max(map(len, core.seen)) < 100
