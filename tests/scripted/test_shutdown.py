"""How a server ends that is told to: what is in flight finishes, or is cut short with a word. It leaves nothing behind.

No model decides any of it, so the engine is scripted; all else is a server's own process, its socket and its signals.
The same with a real engine takes a minute each, so ``make test-long`` has it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest

from tests.engine.server import Server
from tests.engine.test_shutdown import CHAT, LONG, connected, ended, streams, until_in_flight
from tests.scripted.server import ForkedScriptedServer

SLOW = {**LONG, "messages": [{"role": "user", "content": "Is it slow?"}]}  # 24 seconds, if it may
BRIEF = {**SLOW, "max_tokens": 120, "min_tokens": 120}  # 6 seconds: time to look at the server while it drains
REAL = pytest.mark.long


@pytest.mark.parametrize(
    ("kind", "asked"), [(ForkedScriptedServer, BRIEF), pytest.param(Server, LONG, marks=REAL)], ids=["scripted", "real"]
)
async def test_what_is_in_flight_finishes(kind: type[Server], asked: dict[str, Any]) -> None:
    running = kind(["--drain-seconds", "120", "--", "--max-num-seqs=8"])  # a busy machine takes its time
    async with connected(running) as http:
        tasks = await streams(http, 7, asked)
        whole = asyncio.create_task(http.post(CHAT, json=asked))
        await until_in_flight(http, 8)
        running.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        ready = await http.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
        assert (await http.get("/live")).status_code == 200
        assert "\nhguard_draining 1.0" in (await http.get("/metrics")).text
        late = await http.post(CHAT, json=asked)
        assert (late.status_code, late.json()["error"]["type"]) == (503, "ServiceUnavailableError")
        assert late.headers["retry-after"].isdigit()
        assert late.headers["connection"] == "close"
        assert not any(task.done() for task in tasks), "the server was asked while they ran"
        for events in await asyncio.gather(*tasks):
            assert events[-1] == "[DONE]"
            assert events[-2]["choices"][0]["finish_reason"] == "length"
        answer = (await whole).json()
        assert answer["usage"]["completion_tokens"] == asked["max_tokens"]
        assert answer["hallucination"]["type"] == "hallucination_results"
    assert await ended(running, 20) == 0


@pytest.mark.parametrize("kind", [ForkedScriptedServer, pytest.param(Server, marks=REAL)], ids=["scripted", "real"])
@pytest.mark.parametrize("hastened", [False, True], ids=["deadline", "second signal"])
async def test_what_is_unfinished_is_cut_short_with_a_word(kind: type[Server], hastened: bool) -> None:
    running = kind(["--drain-seconds", "60" if hastened else "0.5"])
    async with connected(running) as http:
        tasks = await streams(http, 2, SLOW)
        whole = asyncio.create_task(http.post(CHAT, json=SLOW))
        await until_in_flight(http, 3)
        began = time.monotonic()
        running.process.send_signal(signal.SIGINT)
        if hastened:
            await asyncio.sleep(0.3)
            running.process.send_signal(signal.SIGTERM)
        for events in await asyncio.gather(*tasks):
            assert events[-1]["error"]["code"] == 503
            assert len(events) < 480
        answer = await whole
        assert answer.status_code == 503
        assert "ended before the answer was complete" in answer.json()["error"]["message"]
        assert time.monotonic() - began < 20  # far from the minute that it may drain
    assert await ended(running, 15) == 0
    assert any("requests in flight were cancelled" in line for line in running.lines)
