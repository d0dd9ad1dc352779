"""The guarded routes over a scripted serving object: what they write does not depend on a model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse

from app.ingress.admission import Admission
from app.ingress.auth import ApiKeys
from app.ingress.middleware import IngressMiddleware
from app.protocols.adapters.registry import CHAT
from app.protocols.limits import Limits
from app.protocols.options import PolicyResolver
from app.protocols.routes import Guard, router
from app.protocols.wire import Token, Writer
from app.settings import GuardSettings, RequestLimits
from app.telemetry.metrics import OUTCOMES, Metrics
from app.telemetry.record import Exporters, LogLine
from guard.engine.context import RequestContext, Unscored, Verdict, current_context
from guard.policy import Mode, decide
from guard.probe.bundle import Bundle
from guard.probe.readout import Peak, Readout
from tests.measured import token_signals

RISKS = [0.1, 0.9, None]
TEXT = ["It", " is", " Mars"]
REFUSAL, MESSAGE = "I would rather not say.", "Something else."
SETTINGS = GuardSettings(mode=Mode.SCORE, threshold=0.5, loosest_mode=Mode.OFF)


def spell(verdict: Verdict) -> list[Token]:
    tokens, at = [], 0
    for i in verdict.token_ids:
        tokens.append((TEXT[i], at, at + len(TEXT[i])))
        at += len(TEXT[i])
    return tokens


def verdict(call: RequestContext, risk: float | None, index: int = 0) -> Verdict:
    peak = None if risk is None else Peak(0, 3)
    reason = Unscored.MISSING if risk is None else None
    decision = decide(risk, call.policy)
    told = Verdict(index, call.policy, decision, risk, peak, [0, 1, 2], reason)
    if risk is not None:
        neurons = np.array([np.nan if one is None else one for one in RISKS], np.float32)
        told.signals = token_signals(0.0, neurons, neurons, neurons)
        said = {"token_risks": lambda signals: RISKS, "calibrated_tokens": None, "in_domain": lambda signals: None}
        told.readout = cast(Readout, SimpleNamespace(**said))
    return told


class Scripted:
    """Plays vLLM's serving objects: answers, and leaves the verdict that the engine client would have left."""

    def __init__(self, risk: float | None = 0.83) -> None:
        self.risk = risk
        self.asked: list[Any] = []

    async def create_chat_completion(self, asked: Any, request: Request) -> Any:
        self.asked.append(asked)
        call = current_context()
        assert call is not None
        count = asked.n or 1
        call.reserve(count)
        if asked.stream:
            return self._frames(call, count, bool(asked.logprobs))
        for i in range(count):
            call.verdicts[i] = verdict(call, self.risk, i)
            call.token_risks[i] = RISKS if call.policy.token_risk_in_stream else []
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": "".join(TEXT)},
                "logprobs": {"content": [{"token": t} for t in TEXT]} if asked.logprobs else None,
                "finish_reason": "content_filter" if call.verdicts[i].decision.action == "abstained" else "stop",
            }
            for i in range(count)
        ]
        return ChatCompletionResponse(model="small", choices=choices, usage={"completion_tokens": 3})

    async def _frames(self, call: RequestContext, count: int, logprobs: bool) -> AsyncIterator[str]:
        def frame(content: dict[str, Any]) -> str:
            return f"data: {json.dumps(content)}\n\n"

        for i in range(count):
            for k, text in enumerate(TEXT):
                last = k == len(TEXT) - 1
                call.token_risks[i] = RISKS[: k + 1]
                if last:
                    call.verdicts[i] = verdict(call, self.risk, i)
                abstained = last and call.verdicts[i].decision.action == "abstained"
                finish = "content_filter" if abstained else "stop" if last else None
                choice = {"index": i, "delta": {"content": text}, "finish_reason": finish}
                if logprobs:
                    choice["logprobs"] = {"content": [{"token": text}]}
                yield frame({"object": "chat.completion.chunk", "choices": [choice]})
        yield frame({"object": "chat.completion.chunk", "choices": [], "usage": {"completion_tokens": 3}})
        yield "data: [DONE]\n\n"


Connect = Callable[[Scripted], tuple[httpx.AsyncClient, CollectorRegistry]]


def app_of(bundle: Bundle, scripted: Scripted, registry: CollectorRegistry) -> FastAPI:
    """The guarded routes before it, behind the ingress, which parses bodies and answers refusals."""
    app, admission = FastAPI(), Admission(8, 64)
    app.state.openai_serving_chat, app.state.args = scripted, SimpleNamespace()
    exporters = Exporters((Metrics(bundle, "small", registry), LogLine()))
    guarded = Guard(PolicyResolver(SETTINGS, bundle), Writer(bundle, spell), exporters, REFUSAL, MESSAGE)

    async def current() -> Guard:
        return guarded

    app.include_router(router(current))
    app.add_middleware(
        IngressMiddleware,
        keys=ApiKeys(),
        limits=Limits(RequestLimits(), capacity=64),
        admission=admission,
        refused=lambda reason: None,
        working=frozenset({CHAT}),
        max_body_bytes=1 << 20,
        body_seconds=5.0,
    )
    return app


@pytest.fixture
def connect(bundle: Bundle) -> Connect:
    def make(scripted: Scripted) -> tuple[httpx.AsyncClient, CollectorRegistry]:
        registry = CollectorRegistry()
        transport = httpx.ASGITransport(app_of(bundle, scripted, registry))
        return httpx.AsyncClient(transport=transport, base_url="http://test"), registry

    return make


def body(**more: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": "Where?"}], **more}


def frames(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_score(connect: Connect, bundle: Bundle) -> None:
    client, _ = connect(Scripted())
    reply = (await client.post(CHAT, json=body(hallucination={"tokens": True}))).json()
    assert reply["hallucination"] == {
        "type": "hallucination_results",
        "probe": {"id": "small-probe", "revision": bundle.revision},
        "mode": "score",
        "results": [
            {
                "index": 0,
                "risk": 0.83,
                "flagged": True,
                "action": "pass",
                "threshold": 0.5,
                "scored_tokens": 3,
                "peak": {"start": 0, "end": 3, "risk": 0.83},
                "tokens": [
                    {"token": "It", "start": 0, "end": 2, "risk": 0.1},
                    {"token": " is", "start": 2, "end": 5, "risk": 0.9},
                    {"token": " Mars", "start": 5, "end": 10, "risk": None},
                ],
            }
        ],
    }
    assert reply["choices"][0]["message"]["content"] == "It is Mars"


async def test_a_root_path_does_not_get_around_the_guard(bundle: Bundle) -> None:
    app = app_of(bundle, Scripted(), CollectorRegistry())
    app.root_path = "/models/a"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for prefix in ("", "/models/a"):
            response = await client.post(prefix + CHAT, json=body(hallucination={"mode": "abstain"}))
            assert response.json()["choices"][0]["message"]["content"] is None


async def test_abstention_is_a_refusal(connect: Connect) -> None:
    client, _ = connect(Scripted())
    asked = body(logprobs=True, hallucination={"mode": "abstain", "tokens": True})
    response = await client.post(CHAT, json=asked)
    assert response.status_code == 200
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": REFUSAL}
    assert choice["logprobs"] is None
    assert "Mars" not in response.text


async def test_no_score_is_never_a_low_risk(connect: Connect) -> None:
    client, registry = connect(Scripted(risk=None))
    reply = (await client.post(CHAT, json=body())).json()
    assert reply["hallucination"] == {
        "type": "not_scored",
        "reason": "missing",
        "message": "a token's score did not come in time",
        "mode": "score",
        "action": "pass",
    }
    assert registry.get_sample_value("hguard_requests_total", {"model": "small", "outcome": "not_scored"}) == 1
    assert registry.get_sample_value("hguard_risk_count", {"model": "small"}) == 0


async def test_no_score_in_abstain_mode_withholds(connect: Connect) -> None:
    client, _ = connect(Scripted(risk=None))
    reply = (await client.post(CHAT, json=body(hallucination={"mode": "abstain"}))).json()
    assert reply["choices"][0]["message"]["content"] is None
    assert reply["hallucination"]["action"] == "abstained"


async def test_several_choices_are_listed_by_index(connect: Connect) -> None:
    client, _ = connect(Scripted())
    reply = (await client.post(CHAT, json=body(n=3, hallucination={"mode": "flag"}))).json()
    assert [(r["index"], r["action"]) for r in reply["hallucination"]["results"]] == [(i, "flagged") for i in range(3)]


async def test_risk_inside_logprobs(connect: Connect) -> None:
    client, _ = connect(Scripted())
    reply = (await client.post(CHAT, json=body(logprobs=True))).json()
    assert [item["risk"] for item in reply["choices"][0]["logprobs"]["content"]] == RISKS


async def test_stream(connect: Connect) -> None:
    client, _ = connect(Scripted())
    response = await client.post(CHAT, json=body(stream=True, logprobs=True, n=2))
    got = frames(response.text)
    by_choice: dict[int, list[Any]] = {0: [], 1: []}
    for chunk in got[:-1]:
        choice = chunk["choices"][0]
        by_choice[choice["index"]] += [item["risk"] for item in choice["logprobs"]["content"]]
        ended = choice["finish_reason"] is not None
        assert ("hallucination" in chunk) == ended
        if ended:
            assert [r["index"] for r in chunk["hallucination"]["results"]] == [choice["index"]]
    assert by_choice == {0: RISKS, 1: RISKS}
    assert [r["index"] for r in got[-1]["usage"]["hallucination"]["results"]] == [0, 1]
    assert all("choices" in chunk for chunk in got)


class Slow(Scripted):
    """Thinks before it speaks."""

    async def _frames(self, call: RequestContext, count: int, logprobs: bool) -> AsyncIterator[str]:
        await asyncio.sleep(0.2)
        async for frame in super()._frames(call, count, logprobs):
            yield frame


async def test_an_idle_stream_is_kept_alive_where_the_operator_wants_it(bundle: Bundle) -> None:
    app = app_of(bundle, Slow(), CollectorRegistry())
    app.state.args.sse_keep_alive_interval = 0.02
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.post(CHAT, json=body(stream=True, hallucination={"mode": "abstain"}))
    idle, comment, spoken = response.text.rpartition(": keep-alive\n\n")
    assert comment
    assert set(idle.split("\n\n")) <= {": keep-alive", ""}
    assert frames(spoken)[2]["hallucination"]["results"][0]["action"] == "abstained"


async def test_stream_abstention(connect: Connect) -> None:
    client, _ = connect(Scripted())
    got = frames((await client.post(CHAT, json=body(stream=True, hallucination={"mode": "abstain"}))).text)
    last = got[2]["choices"][0]
    assert last["finish_reason"] == "content_filter"
    assert last["delta"] == {"role": "assistant", "content": None, "refusal": REFUSAL}


@pytest.mark.parametrize(
    ("content", "status", "param"),
    [
        (b"{", 400, "body.1"),
        (b"[]", 400, "body"),
        (b"\xff\xfe", 400, "body.0"),
        (b"[" * 3000, 400, "body"),
        (json.dumps(body(hallucination={"mode": "x"})).encode(), 400, "hallucination.mode"),
        (json.dumps(body(use_beam_search=True)).encode(), 400, "use_beam_search"),
        (json.dumps({"model": "small", "messages": []}).encode(), 400, "messages"),
    ],
)
async def test_bad_bodies_never_reach_the_engine(connect: Connect, content: bytes, status: int, param: str) -> None:
    client, registry = connect(scripted := Scripted())
    response = await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, status)
    assert error["message"]
    assert scripted.asked == []
    outcomes = [
        s.value for m in registry.collect() if m.name == "hguard_requests" for s in m.samples if "total" in s.name
    ]
    assert outcomes == [0.0] * len(OUTCOMES)


async def test_metrics_are_visible_before_the_first_event(connect: Connect) -> None:
    _, registry = connect(Scripted())
    for outcome in ("pass", "flagged", "abstained", "not_scored", "off"):
        assert registry.get_sample_value("hguard_requests_total", {"model": "small", "outcome": outcome}) == 0


async def test_outcomes_are_counted(connect: Connect) -> None:
    client, registry = connect(Scripted())
    for mode in ("score", "flag", "abstain", "off"):
        await client.post(CHAT, json=body(n=2, hallucination={"mode": mode}))
    for outcome in ("pass", "flagged", "abstained", "off"):
        assert registry.get_sample_value("hguard_requests_total", {"model": "small", "outcome": outcome}) == 1, outcome
    assert registry.get_sample_value("hguard_risk_count", {"model": "small"}) == 8
    assert registry.get_sample_value("hguard_scored_tokens_total", {"model": "small"}) == 24
