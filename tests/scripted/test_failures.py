"""What goes wrong with the guard or the engine is said, counted, and passes or is refused as the operator says."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.settings import BEYOND, Settings
from guard.engine.traffic import Purpose
from guard.policy import Fail, Mode
from guard.probe.readout import Readout
from tests.scripted.server import ForkedScriptedServer, listening, over, scripted_app
from tests.scripted.test_scripted import CHAT, asking

RISK = {"model": "atlas", "prompt": "Where is Kandy?", "response": "It is in Japan."}


async def text_of(http: httpx.AsyncClient, path: str = "/metrics") -> str:
    return (await http.get(path)).text


def counted(metrics: str, name: str, label: str, of: str = "reason") -> float:
    line = next(x for x in metrics.splitlines() if x.startswith(f"{name}{{") and f'{of}="{label}"' in x)
    return float(line.split()[-1])


async def whole(http: httpx.AsyncClient, words: str, **more: Any) -> Any:
    response = await http.post(CHAT, json=asking(words, **more))
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(("words", "reason"), [("nan", "not_finite"), ("missing", "missing"), ("safe", "probe_error")])
@pytest.mark.parametrize("fail", list(Fail))
@pytest.mark.parametrize("mode", [Mode.SCORE, Mode.FLAG, Mode.ABSTAIN])
async def test_an_answer_without_a_score(
    mode: Mode, fail: Fail, words: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted_app(Settings(mode=mode, fail=fail)) as app, over(app) as http:
        if reason == "probe_error":
            monkeypatch.setattr(Readout, "risk", lambda *_: 1 / 0)
        reply = await whole(http, words)
        block, choice = reply["hallucination"], reply["choices"][0]
        assert (block["type"], block["reason"]) == ("not_scored", reason)
        assert "risk" not in json.dumps(block)
        metrics = await text_of(http)
        passed, refused = (
            counted(metrics, name, reason) for name in ("hguard_bypass_total", "hguard_withheld_unscored_total")
        )
        if fail is Fail.OPEN:
            assert (block["action"], choice["finish_reason"]) == ("pass", "stop")
            assert choice["message"]["content"].startswith("It is in")
            assert (passed, refused) == (1, 0)
        else:
            assert (block["action"], choice["finish_reason"]) == ("abstained", "content_filter")
            assert choice["message"]["refusal"] == BEYOND
            assert "Lanka" not in json.dumps(reply)
            assert (passed, refused) == (0, 1)
        assert 'hguard_risk_count{model="atlas"} 0.0' in metrics


async def test_by_default_only_abstain_mode_fails_closed() -> None:
    async with scripted_app() as app, over(app) as http:
        for mode, action in (("score", "pass"), ("flag", "pass"), ("abstain", "abstained")):
            block = (await whole(http, "nan", hallucination={"mode": mode}))["hallucination"]
            assert (block["type"], block["action"]) == ("not_scored", action)


@pytest.mark.parametrize("fail", list(Fail))
async def test_no_slot_left(fail: Fail) -> None:
    async with scripted_app(Settings(fail=fail, slots=2)) as app, over(app) as http:
        held = app.state.engine_client.pool.claim(2)
        response = await http.post(CHAT, json=asking("safe"))
        if fail is Fail.CLOSED:
            assert response.status_code == 503
            assert "score slots" in response.json()["error"]["message"]
            engine = app.state.engine_client
            assert engine.engine_core.drawn == engine.own.requests[Purpose.SELF_TEST], "by the self-test alone"
        else:
            assert response.json()["hallucination"]["reason"] == "no_slot"
            assert response.json()["choices"][0]["message"]["content"] == "It is in Sri Lanka."
            assert counted(await text_of(http), "hguard_bypass_total", "no_slot") == 1
        given = await http.post("/risk", json=RISK)
        assert given.status_code == 503, "given text is scored or refused"
        app.state.engine_client.pool.release(held, True)
        assert (await whole(http, "safe"))["hallucination"]["type"] == "hallucination_results"


async def test_a_score_that_does_not_come_in_time() -> None:
    async with scripted_app(Settings(risk_seconds=0.2), hangs_at=0, choose=None) as app, over(app) as http:
        reply = (await http.post("/risk", json=RISK)).json()["hallucination"]
        assert (reply["type"], reply["reason"]) == ("not_scored", "timeout")
        assert app.state.engine_client.pool.in_use == 0
        assert app.state.engine_client.engine_core.aborted
        assert counted(await text_of(http), "hguard_bypass_total", "timeout") == 1


async def test_who_hangs_up_on_a_risk_has_it_scored_no_further() -> None:
    """Of several items that take long: their places are free at once."""
    async with AsyncExitStack() as stack:
        app: FastAPI = await stack.enter_async_context(scripted_app(hangs_at=0, choose=None))
        url = await stack.enter_async_context(listening(app))
        engine = app.state.engine_client
        async with httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(20, read=0.5)) as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/risk", json=[RISK, RISK, RISK])
        async with asyncio.timeout(20):
            while engine.pool.in_use:  # noqa: ASYNC110 - nor does a pool
                await asyncio.sleep(0.02)
        assert len(engine.engine_core.aborted) == 3


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"])
async def test_a_stream_ends_with_an_error_when_the_engine_dies(path: str) -> None:
    async with AsyncExitStack() as stack:
        app: FastAPI = await stack.enter_async_context(scripted_app())
        url = await stack.enter_async_context(listening(app))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20))
        body = {**asking("dies slow"), "input": "dies slow", "prompt": "dies slow", "max_tokens": 24, "stream": True}
        for field in {"input", "prompt", "messages"} - {fields(path)}:
            del body[field]
        async with http.stream("POST", path, json=body) as response:
            assert response.status_code == 200
            lines = [line async for line in response.aiter_lines() if line.startswith("data: {")]
        last = json.loads(lines[-1].removeprefix("data: "))
        assert last.get("type") == "error" or "error" in last, last
        assert "hallucination_results" not in lines[-1]
        assert (await http.get("/health")).status_code == 503
        ready = await http.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "engine dead")
        assert (await http.get("/live")).status_code == 200
        after = await http.post(CHAT, json=asking("safe"))
        assert after.status_code >= 500
        assert app.state.engine_client.pool.in_use == 0


def fields(path: str) -> str:
    return {"/v1/completions": "prompt", "/v1/responses": "input"}.get(path, "messages")


async def test_one_request_that_fails_leaves_the_others_alone() -> None:
    async with scripted_app() as app, over(app) as http:
        broken, fine = await asyncio.gather(
            http.post(CHAT, json=asking("boom slow")), http.post(CHAT, json=asking("safe slow"))
        )
        assert broken.status_code == 500
        assert set(broken.json()["error"]) == {"message", "type", "param", "code"}
        assert fine.json()["hallucination"]["type"] == "hallucination_results"
        assert app.state.engine_client.pool.in_use == 0


async def test_vllms_http_metrics_survive_ours() -> None:
    async with scripted_app() as app, over(app) as http:
        await whole(http, "safe")
        assert 'http_requests_total{handler="/v1/chat/completions"' in await text_of(http)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"])
async def test_callers_who_hang_up_leave_no_trace(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncExitStack() as stack:
        app: FastAPI = await stack.enter_async_context(scripted_app())
        url = await stack.enter_async_context(listening(app))
        body = {**asking("slow long"), "input": "slow long", "prompt": "slow long", "max_tokens": 200}
        for field in {"input", "prompt", "messages"} - {fields(path)}:
            del body[field]
        async with httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(20, read=0.3)) as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.post(path, json=body)
        async with (
            httpx.AsyncClient(base_url=url, timeout=20) as http,
            http.stream("POST", path, json={**body, "stream": True}) as response,
        ):
            await anext(response.aiter_lines())
        for _ in range(1000):
            if len(app.state.engine_client.engine_core.aborted) == 2:
                break
            await asyncio.sleep(0.02)
        assert app.state.engine_client.pool.in_use == 0
        assert len(app.state.engine_client.engine_core.aborted) == 2
        assert "Exception in ASGI application" not in caplog.text
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            assert (await http.post(CHAT, json=asking("safe"))).status_code == 200
            text = await text_of(http)
        counts = [counted(text, "hguard_requests_total", name, "outcome") for name in ("left", "not_scored", "pass")]
        assert counts == [2, 0, 1]


@pytest.mark.parametrize("stream", [False, True])
async def test_refusing_ahead_with_log_probabilities_asked_for(stream: bool) -> None:
    options = {"mode": "abstain", "prompt_check": True}
    async with scripted_app() as app, over(app) as http:
        for path, body in (
            (CHAT, {**asking("prompt_risk"), "logprobs": True, "top_logprobs": 2}),
            ("/v1/completions", {"model": "atlas", "prompt": "prompt_risk", "logprobs": 1, "echo": True}),
        ):
            reply = await http.post(path, json={**body, "stream": stream, "hallucination": options})
            assert '"prompt_refused":true' in reply.text
            assert '"error":{' not in reply.text


_OFFERING = (
    b"POST /v1/chat/completions HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: %d\r\n"
    b"Content-Type: application/json\r\nHost: scripted\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\nUpgrade: h2c\r\n\r\n"
)


async def test_an_idle_connection_outlives_the_clients_own_patience() -> None:
    """httpx and openai keep idle ones for 5 s, load balancers for 60: who closes first must not be the server."""
    assert Settings().keep_alive_seconds > 60
    ask = b"GET /live HTTP/1.1\r\nHost: scripted\r\n\r\n"
    server = ForkedScriptedServer()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for pause in (0, 6):
            await asyncio.sleep(pause)
            writer.write(ask)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200"), f"after {pause} s"
            while await reader.readline() != b"\r\n":
                pass
            assert json.loads(await reader.readexactly(17)) == {"status": "live"}
        body = json.dumps(asking("safe")).encode()
        for part in (_OFFERING % len(body), body):  # as Java's client asks
            writer.write(part)
            await writer.drain()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
    finally:
        assert server.stop() == 0
