"""The benchmark over HTTP: its client and figures against a scripted server, its processes, and one small real run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from app.cli.main import main
from app.settings import ATLAS
from bench import report
from guard.bench import compare, online
from guard.bench.client import Address, Connection, Reply, frames
from guard.bench.load import Measured
from guard.bench.online import HttpWork, Kind, Prompter, Taken, send, streamed, whole
from guard.bench.processes import HOST, Command, ServerProcess, free_port, serving
from guard.errors import GuardError

SCORED = {"type": "hallucination_results", "results": []}


class ScriptedServer:
    """Answers each request with the parts that ``script`` makes of it, each written by itself."""

    def __init__(self, script: Callable[[dict[str, Any]], list[bytes]]) -> None:
        self.script = script
        self.connections = self.running = self.most = 0
        self.requests: list[dict[str, Any]] = []
        self.ended: list[asyncio.Future[None]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        ended = asyncio.get_running_loop().create_future()
        self.ended.append(ended)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(json.loads(await reader.readexactly(length) or b"{}"))
                self.running += 1
                self.most = max(self.most, self.running)
                for part in self.script(self.requests[-1]):
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0.002)
                self.running -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        ended.set_result(None)


@asynccontextmanager
async def scripted(
    script: Callable[[dict[str, Any]], list[bytes]],
) -> AsyncIterator[tuple[ScriptedServer, ServerProcess]]:
    server = ScriptedServer(script)
    async with await asyncio.start_server(server, HOST, 0) as listening:
        yield server, ServerProcess(Address(HOST, listening.sockets[0].getsockname()[1]), os.getpid())
        await asyncio.gather(*server.ended)


def in_full(body: bytes, status: int = 200) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def in_chunks(*parts: bytes) -> bytes:
    chunks = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in (*parts, b""))
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks


def frame(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def delta(text: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], **more}


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
async def test_replies_are_the_same_however_they_are_cut(size: int) -> None:
    """Full or in chunks, on one connection, in packets of any size."""
    replies = [in_full(b'{"a": 1}'), in_chunks(b"data: 1\n", b"\ndata: 2\n\n", b"data: [DONE]\n\n"), in_full(b"")]

    def script(request: dict[str, Any]) -> list[bytes]:
        reply = replies[request["number"]]
        return [reply[i : i + size] for i in range(0, len(reply), size)]

    async with scripted(script) as (server, running):
        connection = await Connection.open(running.address)
        got = [await connection.request("POST", "/", json.dumps({"number": n}).encode()) for n in range(3)]
        connection.close()
    assert server.connections == 1
    assert [reply.body for reply in got] == [b'{"a": 1}', b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n", b""]
    assert [payload for _, payload in frames(got[1].pieces)] == [b"1", b"2"]
    assert all(reply.status == 200 and reply.sent < reply.ended for reply in got)


def test_a_frame_is_as_late_as_its_last_byte() -> None:
    pieces = [(1.0, b": a comment\n\nda"), (2.0, b"ta: one\n"), (3.0, b"\ndata: two\n\ndata: three"), (4.0, b"\n\n")]
    assert list(frames(pieces)) == [(3.0, b"one"), (3.0, b"two"), (4.0, b"three")]


async def test_a_server_that_hangs_up_is_named() -> None:
    async with scripted(lambda _: [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"]) as (_, running):
        connection = await Connection.open(running.address)
        waiting = asyncio.create_task(connection.request("POST", "/", b"{}"))
        await asyncio.sleep(0.05)
        connection.close()
        with pytest.raises(GuardError, match="closed the connection before its reply ended"):
            await waiting
        with pytest.raises(GuardError, match="closed the connection between two requests"):
            await connection.request("POST", "/", b"{}")


async def test_load_is_a_closed_loop_over_that_many_connections() -> None:
    bodies = HttpWork("m", [f"prompt {i}" for i in range(12)], 5, 3).bodies({"mode": "flag"}, Kind(True))
    async with scripted(lambda _: [in_full(b"{}")]) as (server, running):
        taken = await send(running, bodies, 3)
    assert (server.connections, server.most, len(taken.replies)) == (3, 3, 12)
    assert {request["messages"][0]["content"] for request in server.requests} == {f"prompt {i}" for i in range(12)}
    for request in server.requests:
        assert request["ignore_eos"] is True
        assert (request["max_tokens"], request["temperature"], request["stream"]) == (5, 0, True)
        assert request["hallucination"] == {"mode": "flag"}
    assert 0 < taken.client_seconds <= taken.seconds


async def test_an_error_says_what_the_server_said() -> None:
    async with scripted(lambda _: [in_full(b'{"error": "the prompt is too long"}', 400)]) as (_, running):
        with pytest.raises(GuardError, match=r"status 400.*the prompt is too long"):
            await send(running, [b"{}"], 1)


def test_what_whole_answers_say() -> None:
    body = json.dumps({"usage": {"completion_tokens": 5}, "hallucination": SCORED}).encode()
    replies = [Reply(200, float(i), [(i + 0.5, body)], i + 0.01 * (i + 1)) for i in range(100)]
    taken = Taken(replies, 50.0, 0.1, 2.0)
    values = whole(taken, 5, guarded=True)
    assert values["requests/s"] == 2
    assert values["API process, CPU ms/request"] == 20
    assert values["answer p50, ms"] == pytest.approx(505)
    assert values["answer p99, ms"] == pytest.approx(990.1)
    with pytest.raises(GuardError, match="5 tokens, not 6"):
        whole(taken, 6, guarded=True)
    with pytest.raises(GuardError, match="it is not plain"):
        whole(taken, 5, guarded=False)


def course(*pieces: tuple[float, dict[str, Any]]) -> Taken:
    return Taken([Reply(200, 1.0, [(when, frame(content)) for when, content in pieces], pieces[-1][0])], 4.0, 0.1, 1.0)


def test_kinds_of_answers_are_asked_for_and_named() -> None:
    bodies = {kind.label: HttpWork("m", ["prompt"], 5, 1).bodies(None, kind)[0] for kind in online.API_KINDS}
    asked = {label: json.loads(body) for label, body in bodies.items()}
    assert [(label, one["stream"], one.get("logprobs")) for label, one in asked.items()] == [
        ("", False, None),
        (", streamed", True, None),
        (", logprobs", False, True),
        (", streamed, logprobs", True, True),
    ]
    taken = Taken([Reply(200, 0.0, [])] * 4, 2.0, 0.5, 0.02)
    (((name, value)),) = online.api_process(taken, online.API_KINDS[1]).items()
    assert name == "API process, CPU ms/request, streamed"
    assert value == pytest.approx(5.0)


def test_what_streams_say() -> None:
    """The role's frame and the usage's have no text, and do not count."""
    taken = course(
        (1.1, delta("")),
        (1.5, delta("a")),
        (1.6, delta("b")),
        (1.9, delta("c", "length", hallucination=SCORED)),
        (2.9, {"choices": [], "usage": {}}),
    )
    values = streamed(taken, guarded=True)
    assert values["requests/s, streamed"] == 0.25
    assert values["time to first token p50, ms"] == pytest.approx(500)
    assert values["inter-token latency p50, ms"] == pytest.approx(200)
    assert values["inter-token latency p99, ms"] == pytest.approx(298)
    assert not any("inter" in name for name in streamed(taken, guarded=True, held=True))


def test_tokens_of_one_packet_share_the_time_since_the_last() -> None:
    taken = course(*((when, delta("a", "length")) for when in (1.1, 1.1, 1.5, 1.9, 1.9)))
    values = streamed(taken, guarded=False)
    assert values["inter-token latency p50, ms"] == pytest.approx(200), "of 400, 200 and 200"
    values = streamed(course(*((1.1, delta("a", "length")) for _ in range(3))), guarded=False)
    assert values["inter-token latency p50, ms"] > 0, "a ratio needs one"


@pytest.mark.parametrize(
    ("pieces", "guarded", "says"),
    [
        ([delta("a", "content_filter")], False, "ended with 'content_filter' after 1 frames"),
        ([delta("", "length")], False, "after 0 frames"),
        ([delta("a"), {"error": {"message": "out of slots"}}], False, "out of slots"),
        ([delta("a", "length")], True, "is not scored: None"),
        ([delta("a", "length", hallucination={"type": "not_scored"})], True, "not_scored"),
        ([delta("a", "length", hallucination=SCORED)], False, "it is not plain"),
    ],
)
def test_streams_that_are_no_answer(pieces: list[dict[str, Any]], guarded: bool, says: str) -> None:
    with pytest.raises(GuardError, match=says):
        streamed(course(*((float(i), content) for i, content in enumerate(pieces, 2))), guarded)


def test_prompts_are_of_their_length_and_unlike_each_other() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ATLAS)
    prompter = Prompter(tokenizer, 64)
    texts = prompter.texts(50, 1)
    assert texts == prompter.texts(50, 1)
    assert not set(texts) & set(prompter.texts(50, 2))
    assert len({text[:8] for text in texts}) == 50
    for text in texts:
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert 60 <= len(ids) <= 64
    with pytest.raises(GuardError, match="set --prompt above that"):
        Prompter(tokenizer, 2)


async def test_a_mode_that_holds_lacks_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "PAUSE_SECONDS", 0)

    def run(**values: float) -> compare.Run:
        async def one(seed: int) -> Measured:
            return Measured(values)

        return one

    rows = await compare.compare(
        "m", 1, {"plain": run(a=1, b=2), "score": run(a=2, b=2), "abstain": run(a=4)}, rounds=2
    )
    assert [(row.mode, row.metric, row.ratio) for row in rows] == [
        ("score", "a", pytest.approx(2)),
        ("score", "b", pytest.approx(1)),
        ("abstain", "a", pytest.approx(4)),
    ]


SLEEPER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("started", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def sleeper() -> Command:
    """A server that starts a process of its own and does not end it."""
    port = free_port()
    return Command("sleeper", [sys.executable, "-c", SLEEPER, str(port)], port)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return True
        time.sleep(0.05)
    return False


async def test_no_process_is_left_of_a_server(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with serving(sleeper(), log) as running:
        connection = await Connection.open(running.address)
        assert (await connection.request("GET", "/health")).status == 200
        connection.close()
    assert gone(int(log.read_text().split()[1]))


async def test_an_interrupt_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = Command(
        "stuck", [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"], 1
    )

    async def start() -> None:
        async with serving(command, log):
            pytest.fail("nothing listens on port 1")

    starting = asyncio.create_task(start())
    while not log.exists() or not log.read_text():  # noqa: ASYNC110 - what is awaited is another process
        await asyncio.sleep(0.05)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert gone(int(log.read_text()))


async def test_a_server_that_does_not_come_up_says_its_last_lines(tmp_path: Path) -> None:
    dying = "import sys\nfor i in range(50): print('line', i, flush=True)\nsys.exit('no memory for it')"
    with pytest.raises(GuardError, match=r"(?s)dying did not come up \(exit status 1\).*no memory for it") as raised:
        async with serving(Command("dying", [sys.executable, "-c", dying], free_port()), tmp_path / "log"):
            pass
    assert "line 1\n" not in str(raised.value)


def test_a_server_ends_when_the_benchmark_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"""
import asyncio
from pathlib import Path
from guard.bench.processes import Command, serving
async def main():
    async with serving({sleeper()!r}, Path({str(log)!r})):
        print("up", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        process.send_signal(signal.SIGKILL)
    assert children
    assert all(gone(pid) for pid in children)
    os.kill(int(log.read_text().split()[1]), signal.SIGKILL)  # the sleeper's own: vLLM's end with their parent


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--modes", "score,scale"], "--modes knows score, flag, abstain, not scale"),
        (["--clients", "0"], "--clients 0: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_options(options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--http", "--out", str(tmp_path / "out.json"), *options]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.long
def test_both_servers_on_atlas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small run from the command line; the page can be made of what it writes."""
    monkeypatch.setattr(online, "LEAST", 2)
    results = tmp_path / "results"
    out = results / "http-cpu-atlas.json"
    small = ["--clients", "1", "--requests", "2", "--rounds", "1", "--prompt", "24", "--output", "8"]
    assert (
        main(["bench", "--http", "--out", str(out), *small, "--modes", "score,abstain", "--", "--max-num-seqs=4"]) == 0
    )
    result = json.loads(out.read_text())
    rows = {(row["mode"], row["metric"]): row for row in result["rows"]}
    tails = ("p50, ms", "p99, ms")
    totals = {f"{name}{how}" for name in ("requests/s", "API process, CPU ms/request") for how in ("", ", streamed")}
    common = totals | {f"{name} {tail}" for name in ("answer", "time to first token") for tail in tails}
    # Held answers come whole, and nothing lies between their tokens.
    assert {metric for mode, metric in rows if mode == "abstain"} == common
    assert {metric for mode, metric in rows if mode == "score"} == common | {
        f"inter-token latency {tail}" for tail in tails
    }
    assert all(row["plain"] > 0 and row["guarded"] > 0 for row in rows.values())
    assert result["client"][0]["core_share"] > 0
    page = report.rendered(f"{report.BEGIN}{report.END}", results)
    assert "Over HTTP, `/v1/chat/completions`." in page
    assert "| atlas | score | 1 | requests/s, streamed |" in page
