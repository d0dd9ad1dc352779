"""``/risk`` of JSON lines: any number of items in one body, scored as fast as their lines are taken."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.ingress.auth import ApiKeys
from app.settings import Settings
from tests.scripted.server import listening, over, scripted_app

HEADERS = {"content-type": "application/x-ndjson"}


def item(answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Where is it?"}], "response": answer, **more}


def lines(*items: Any) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in items)


def replies(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in response.text.splitlines()]


async def test_each_line_has_its_reply_in_order(http: httpx.AsyncClient) -> None:
    many = [item("risky" if i % 3 else "safe", hallucination={"tokens": i == 1}) for i in range(100)]
    found = replies(await http.post("/risk", content=lines(*many) + b"\n  \n", headers=HEADERS))
    assert [one["index"] for one in found] == list(range(100))
    results = [one["hallucination"]["results"][0] for one in found]
    assert [result["flagged"] for result in results] == [bool(i % 3) for i in range(100)]
    assert [i for i, result in enumerate(results) if "tokens" in result] == [1]
    (alone,) = replies(
        await http.post(
            "/risk", content=lines(many[2]), headers={"content-type": "Application/X-NDJSON; charset=utf-8"}
        )
    )
    (single,) = (await http.post("/risk", json=many[2])).json()["hallucination"]["results"]
    assert alone["hallucination"]["results"] == [single]


async def test_a_line_that_cannot_be_scored_says_so_and_the_others_go_on(http: httpx.AsyncClient) -> None:
    long = item("It is in Sri Lanka. " * 2000)
    first, second, third = replies(
        await http.post("/risk", content=lines(long, item("safe"), item("safe", model="other")), headers=HEADERS)
    )
    assert (first["object"], first["index"], first["error"]["code"]) == ("error", 0, 413)
    assert second["hallucination"]["results"][0]["flagged"] is False
    assert (third["index"], third["error"]["code"], third["error"]["param"]) == (2, 404, "model")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "the body is empty"),
        (b" \n\n", 400, "a line for each item"),
        (lines(item("safe")) + b"{\n", 400, "line 2: the body is not valid JSON"),
        (lines(item("safe"), {"response": "safe", "prompt": 3}), 400, "1.prompt"),
        (lines(item("safe"), 7), 400, "1"),
    ],
)
async def test_a_body_with_a_wrong_line_is_refused_before_anything_is_scored(
    http: httpx.AsyncClient, app: FastAPI, body: bytes, status: int, said: str
) -> None:
    response = await http.post("/risk", content=body, headers=HEADERS)
    assert response.status_code == status, response.text
    assert said in response.json()["error"]["message"]
    assert not any("risk-" in name for name in app.state.engine_client.engine_core.seen)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/tokenize"])
async def test_no_other_route_takes_lines(http: httpx.AsyncClient, path: str) -> None:
    response = await http.post(path, content=lines({"messages": []}), headers=HEADERS)
    assert response.status_code == 415
    assert "only /risk takes JSON lines" in response.text


async def test_no_more_are_read_at_once_than_the_operator_allows() -> None:
    """A caller who takes no replies holds up his own texts, and takes no more places than a list might."""
    settings = Settings(max_risk_items=4)
    async with scripted_app(settings) as app, listening(app) as address, httpx.AsyncClient(base_url=address) as client:
        core, admission = app.state.engine_client.engine_core, app.state.admission
        body = lines(*(item("slow and safe " * 8) for _ in range(400)))
        async with client.stream("POST", "/risk", content=body, headers=HEADERS, timeout=60) as response:
            taken = response.aiter_lines()
            for _ in range(6):
                assert json.loads(await anext(taken))["object"] == "hallucination.risk"
            assert admission.answers == 4
            assert len([name for name in core.seen if "risk-" in name]) <= 6 + 2 * 4
        for _ in range(100):
            if admission.answers == 0 and app.state.engine_client.pool.in_use == 0:
                break
            await asyncio.sleep(0.05)
        assert admission.answers == 0, "the caller has hung up"
        assert app.state.engine_client.pool.in_use == 0


async def test_keys_and_bounds_hold_for_lines() -> None:
    async with scripted_app(Settings(api_keys=ApiKeys.parse("secret"), max_body_bytes=2000)) as app, over(app) as http:
        body = lines(item("safe"))
        assert (await http.post("/risk", content=body, headers=HEADERS)).status_code == 401
        keyed = {**HEADERS, "authorization": "Bearer secret"}
        assert len(replies(await http.post("/v1/risk", content=body, headers=keyed))) == 1
        assert (await http.post("/risk", content=body * 100, headers=keyed)).status_code == 413
