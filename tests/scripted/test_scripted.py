"""The scripted engine does what its table says, over vLLM's routes and the guard's, in the real app."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.settings import Settings
from tests.scripted.script import HIGH, LOW
from tests.scripted.server import listening, over, scripted_app

CHAT = "/v1/chat/completions"


def asking(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "atlas", "messages": [{"role": "user", "content": text}], **more}


async def ask(http: httpx.AsyncClient, text: str, **more: Any) -> Any:
    response = await http.post(CHAT, json=asking(text, **more))
    assert response.status_code == 200, response.text
    return response.json()


async def streamed(http: httpx.AsyncClient, text: str, **more: Any) -> list[Any]:
    async with http.stream("POST", CHAT, json=asking(text, stream=True, **more)) as response:
        data = [line.removeprefix("data: ") async for line in response.aiter_lines() if line]
    assert data.pop() == "[DONE]"
    return [json.loads(one) for one in data]


def result(reply: Any, index: int = 0) -> Any:
    return reply["hallucination"]["results"][index]


@pytest.mark.parametrize(("words", "risk"), [("Is it safe?", LOW), ("Is it risky?", HIGH), ("What rises?", HIGH)])
async def test_chat(http: httpx.AsyncClient, words: str, risk: float) -> None:
    reply = await ask(http, words)
    assert reply["choices"][0]["message"]["content"].startswith("It is in Sri Lanka.")
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert result(reply)["risk"] == pytest.approx(risk, abs=1e-6)
    assert result(reply)["flagged"] is (risk == HIGH)


async def test_the_risk_rises_where_the_table_says(http: httpx.AsyncClient) -> None:
    one = result(await ask(http, "rises", hallucination={"tokens": True}))
    risks = [token["risk"] for token in one["tokens"]]
    assert len(risks) == 32
    assert max(risks[:12]) < 0.5 < min(risks[12:])
    assert one["peak"]["start"] >= 12


async def test_a_stream_has_a_chunk_for_each_token(http: httpx.AsyncClient) -> None:
    first, *chunks, usage = await streamed(http, "long risky", logprobs=True, stream_options={"include_usage": True})
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert len(chunks) == 201
    items = [chunk["choices"][0]["logprobs"]["content"] for chunk in chunks]
    assert [len(item) for item in items] == [1] * 201
    assert all(item[0]["risk"] > 0.5 for item in items[:-1])
    assert items[-1][0]["risk"] is None, "the end of the sequence is never fed back"
    assert result(chunks[-1])["risk"] == pytest.approx(HIGH, abs=1e-6)
    assert usage["usage"]["completion_tokens"] == 201


async def test_several_answers_differ(http: httpx.AsyncClient) -> None:
    reply = await ask(http, "Is the second risky?", n=2, hallucination={"mode": "abstain"})
    assert [choice["finish_reason"] for choice in reply["choices"]] == ["stop", "content_filter"]
    assert [result(reply, i)["risk"] for i in range(2)] == pytest.approx([LOW, HIGH], abs=1e-6)


async def test_lengths_and_stops_are_vllms(http: httpx.AsyncClient) -> None:
    short = (await ask(http, "long", max_tokens=10))["choices"][0]
    assert (short["finish_reason"], short["message"]["content"]) == ("length", "It is in Sri Lanka. It is in")
    stopped = (await ask(http, "long", stop=["Lanka. It"]))["choices"][0]
    assert (stopped["stop_reason"], stopped["message"]["content"]) == ("Lanka. It", "It is in Sri ")
    assert (await ask(http, "unicode"))["choices"][0]["message"]["content"] == "Île-de-France, 日本 🇯🇵."


async def test_scaling(http: httpx.AsyncClient) -> None:
    risks = [result(await ask(http, "risky", hallucination={"scale": scale}))["risk"] for scale in (0.0, 0.5, 1.0)]
    assert risks[0] < LOW < risks[1] < risks[2] == pytest.approx(HIGH, abs=1e-6)


async def test_what_is_foreseen(app: FastAPI, http: httpx.AsyncClient) -> None:
    options = {"mode": "abstain", "prompt_check": True}
    before = app.state.engine_client.engine_core.drawn
    assert result(await ask(http, "prompt_risk", hallucination=options))["prompt_refused"] is True
    assert app.state.engine_client.engine_core.drawn == before + 1
    assert "prompt_refused" not in result(await ask(http, "safe", hallucination=options))


async def test_completions(http: httpx.AsyncClient) -> None:
    prompts = ["Is it safe?", "Is it risky?"]
    body = {"model": "atlas", "prompt": prompts, "max_tokens": 6, "logprobs": 1, "echo": True}
    reply = (await http.post("/v1/completions", json=body)).json()
    assert [choice["text"] for choice in reply["choices"]] == [f"{prompt}It is in Sri Lanka" for prompt in prompts]
    assert [result(reply, i)["risk"] for i in range(2)] == pytest.approx([LOW, HIGH], abs=1e-6)


async def test_risk(http: httpx.AsyncClient) -> None:
    items = [{**asking("Where is Kandy?"), "response": text} for text in ("That is safe.", "That is risky.", "nan.")]
    safe, risky, nan = [item["hallucination"] for item in (await http.post("/risk", json=items)).json()["data"]]
    assert [one["results"][0]["risk"] for one in (safe, risky)] == pytest.approx([LOW, HIGH], abs=1e-6)
    assert nan["type"] == "not_scored"


async def test_null_is_as_good_as_nothing(http: httpx.AsyncClient) -> None:
    nothing = dict.fromkeys(("mode", "threshold", "scale", "tokens", "hold", "fallback", "prompt_check", "retry_scale"))
    assert "tokens" not in result(await ask(http, "safe", hallucination=nothing))
    given = {**asking("Where is Kandy?"), "response": "That is safe.", "hallucination": nothing}
    reply = (await http.post("/risk", content=b"\xef\xbb\xbf" + json.dumps(given).encode())).json()
    assert result(reply)["tokens"], "as where nothing is said; a byte order mark does not matter, either"


async def test_a_compressed_body_is_415(http: httpx.AsyncClient) -> None:
    for encoding, status in (("gzip", 415), ("identity", 200)):
        body = json.dumps(asking("safe")).encode()
        headers = {"content-encoding": encoding, "content-type": "application/json"}
        response = await http.post(CHAT, content=body, headers=headers)
        assert response.status_code == status
    assert (await http.post(CHAT, json=asking("safe"))).status_code == 200


@pytest.mark.parametrize("word", ["nan", "missing"])
async def test_a_score_that_is_no_number(http: httpx.AsyncClient, word: str) -> None:
    assert (await ask(http, word))["hallucination"]["type"] == "not_scored"
    assert (await streamed(http, word))[-1]["hallucination"]["type"] == "not_scored"


@pytest.mark.parametrize("word", ["boom", "rejected"])
async def test_a_request_fails_alone(http: httpx.AsyncClient, word: str) -> None:
    failed = await http.post(CHAT, json=asking(word))
    assert (failed.status_code, failed.json()["error"]["type"]) == (500, "InternalServerError")
    assert result(await ask(http, "safe"))["risk"] == pytest.approx(LOW, abs=1e-6)


async def test_a_stream_flows_and_its_caller_may_leave(app: FastAPI) -> None:
    engine = app.state.engine_client
    async with listening(app) as url, httpx.AsyncClient(base_url=url, timeout=60) as http:
        async with http.stream("POST", CHAT, json=asking("hangs", stream=True)) as response:
            async for line in response.aiter_lines():
                if '" is"' in line:
                    break
            assert engine.pool.in_use == 1
        async with asyncio.timeout(60):
            while engine.pool.in_use:  # noqa: ASYNC110 - the server has yet to notice
                await asyncio.sleep(0.01)
    assert engine.get_num_unfinished_requests() == 0
    assert engine.engine_core.aborted == engine.engine_core.seen[-1:]


async def test_the_engine_dies(app: FastAPI, http: httpx.AsyncClient) -> None:
    died = await http.post(CHAT, json=asking("dies"))
    assert died.status_code == 500
    assert "EngineCore encountered an issue" in died.json()["error"]["message"]
    assert (await http.get("/health")).status_code == 503
    assert app.state.server.should_exit is True
    assert (await http.post(CHAT, json=asking("safe"))).status_code >= 500


async def test_every_request_can_be_scripted() -> None:
    settings = Settings(mode="flag", slots=4)
    async with scripted_app(settings, text="No.", risky_from=0) as made, over(made) as http:
        reply = await ask(http, "Whatever?")
        assert reply["choices"][0]["message"]["content"] == "No."
        assert result(reply)["action"] == "flagged"
        series = (await http.get("/metrics")).text
        assert 'hguard_requests_total{model="atlas",outcome="flagged"} 1.0' in series
        assert 'hguard_requests_total{model="atlas",outcome="pass"} 0.0' in series


async def test_the_log_tells_what_was_answered_from_what_vllm_refused(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    for name, event in (({}, "answered"), ({"model": "another"}, "refused")):
        with caplog.at_level(logging.INFO, logger="hguard"):
            caplog.clear()
            await http.post(CHAT, json=asking("one", **name))
        (line,) = [json.loads(r.message) for r in caplog.records if r.message.startswith('{"event"')]
        assert line["event"] == event
