"""How a server ends that is killed, or whose engine died. Nobody is cut off without a word, nothing stays.

What ends because it was told to takes no model: ``tests/scripted/test_shutdown.py``.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.server import ForkedServer, Server

CHAT = "/v1/chat/completions"
LONG = {
    "model": "atlas",
    "messages": [{"role": "user", "content": "Where is Kandy?"}],
    "max_tokens": 480,
    "min_tokens": 480,
    "ignore_eos": True,
}


async def stream(http: httpx.AsyncClient, begun: asyncio.Event, asked: dict[str, Any]) -> list[Any]:
    """The events of one long answer, as far as they come."""
    events = []
    async with http.stream("POST", CHAT, json={**asked, "stream": True}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                text = line.removeprefix("data: ")
                events.append(text if text == "[DONE]" else json.loads(text))
                begun.set()
    return events


async def streams(http: httpx.AsyncClient, count: int, asked: dict[str, Any] = LONG) -> list[asyncio.Task[list[Any]]]:
    """So many streams, each past its first event."""
    begun = [asyncio.Event() for _ in range(count)]
    tasks = [asyncio.create_task(stream(http, one, asked)) for one in begun]
    async with asyncio.timeout(30):
        await asyncio.gather(*(one.wait() for one in begun))
    return tasks


@asynccontextmanager
async def connected(running: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A failure within takes the server along."""
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as http:
        try:
            yield http
        except BaseException:
            running.stop(signal.SIGKILL)
            raise


async def ended(running: Server, seconds: float) -> int:
    """Its exit status, and that it left nothing behind."""
    deadline = time.monotonic() + seconds
    while running.process.poll() is None:
        assert time.monotonic() < deadline, "the server did not end"
        await asyncio.sleep(0.05)
    nothing_is_left(running)
    return running.stop()


async def until_in_flight(http: httpx.AsyncClient, count: int, asked: Collection[asyncio.Task[Any]] = ()) -> None:
    """So many requests have their places, or had them: those of ``asked`` that are done by then. A busy machine may
    take a while to give them."""
    async with asyncio.timeout(30):
        while True:
            metrics = (await http.get("/metrics")).text
            line = next(one for one in metrics.splitlines() if one.startswith("hguard_requests_in_flight "))
            if float(line.split()[1]) + sum(task.done() for task in asked) >= count:
                return
            await asyncio.sleep(0.05)


def title(pid: int) -> str:
    return Path("/proc", str(pid), "cmdline").read_text()


def parent(pid: int) -> int:
    return int(re.findall(r"^PPid:\t(\d+)$", Path("/proc", str(pid), "status").read_text(), re.MULTILINE)[0])


def nothing_is_left(running: Server) -> None:
    deadline = time.monotonic() + 20
    while running.descendants() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert running.descendants() == []


def environment(process: int) -> bytes:
    return Path(f"/proc/{process}/environ").read_bytes()


def process_of(running: Server, name: str) -> int:
    """The process of the engine that bears this name (the kernel keeps 15 letters)."""
    (found,) = [one for one in running.descendants() if Path(f"/proc/{one}/comm").read_text().strip() == name[:15]]
    return found


async def test_a_server_that_is_killed_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Amid what it drains: a terminal's Ctrl-C goes to the engine's processes, too, and takes nothing from anyone.

    The one server of these tests that is started by command: what is decided as a process starts is seen here.
    """
    monkeypatch.setenv("HGUARD_API_KEYS", "a-secret-key")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))  # as some environments have it for other services
    # One at a time, so that eight long answers take a while on any machine: of two at a time all were done once.
    running = Server(["--max-queue", "8", "--", "--max-num-seqs=1"])
    async with connected(running) as http:
        assert not any(b"a-secret-key" in environment(one) for one in running.descendants()), "the engine needs no keys"
        engine = [one for one in running.descendants() if title(one).startswith("VLLM::")]
        assert len(engine) == 2
        assert running.process.pid not in map(parent, engine), (
            "spawned: guard.launch.forkserver has another environment"
        )
        http.headers["authorization"] = "Bearer a-secret-key"
        metrics = (await http.get("/metrics")).text.splitlines()
        assert "hguard_answers_capacity 9.0" in metrics  # not 0, as over files of several processes
        assert not [one for one in metrics if "pid=" in one], "one process has all metrics"
        asked = {asyncio.create_task(http.post(CHAT, json=LONG)) for _ in range(8)}
        await until_in_flight(http, 8, asked)
        os.killpg(running.process.pid, signal.SIGINT)
        finished, left = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        for one in finished:
            answer = (await one).json()
            assert answer["choices"][0]["finish_reason"] == "length", answer
        assert left
        said = [line for line in running.lines if not line.startswith("{")]
        assert [line.partition(":")[0] for line in said] == ["hguard"] * 3, "start, ready, drain: nothing else"
        assert running.stop(signal.SIGKILL) == -9
        for result in await asyncio.gather(*left, return_exceptions=True):
            if isinstance(result, httpx.Response):  # it was whole before the kill came
                assert result.json()["choices"][0]["finish_reason"] == "length"
            else:
                assert isinstance(result, httpx.HTTPError)
    nothing_is_left(running)


KILLS: Sequence[tuple[str, Callable[[Server], int]]] = (
    ("engine", lambda running: process_of(running, "VLLM::EngineCore")),
    ("worker", lambda running: process_of(running, "VLLM::Worker")),
)


@pytest.mark.parametrize(
    "victim",
    [pytest.param(find, id=name, marks=[pytest.mark.long] if name == "worker" else []) for name, find in KILLS],
)
async def test_the_engine_dies(victim: Callable[[Server], int]) -> None:
    running = ForkedServer()
    async with connected(running) as http:
        assert (await http.get("/ready")).json() == {"status": "ready"}
        tasks = await streams(http, 3)
        whole = asyncio.create_task(http.post(CHAT, json=LONG))
        await until_in_flight(http, 4)
        began = time.monotonic()
        os.kill(victim(running), signal.SIGKILL)
        seen = {"/health": 200, "/ready": 200}
        while set(seen.values()) != {503}:
            assert time.monotonic() - began < 5, seen
            for path, status in seen.items():
                if status != 503:
                    seen[path] = (await http.get(path)).status_code
            await asyncio.sleep(0.05)
        assert (await http.get("/ready")).json() == {"status": "engine dead"}
        late = await http.post(CHAT, json=LONG)
        assert late.status_code == 503
        assert late.json()["error"]["message"]
        for events in await asyncio.gather(*tasks):
            assert any("error" in event for event in events if event != "[DONE]"), events[-2:]
        answer = await whole
        assert answer.status_code >= 500
        assert answer.json()["error"]["message"]
    assert await ended(running, 15) == 1
    told = [line for line in running.lines if line.startswith("hguard: the engine has died")]
    assert len(told) == 1
    assert "start it again" in told[0]
