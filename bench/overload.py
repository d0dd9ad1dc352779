"""What ten times too many clients do to a server: its goodput beside that of as many as fit, and how fast it refuses.

    python -m bench.overload --out bench/overload.json

Rounds alternate in one run, so that a noisy machine is noisy for all. Clients are bare sockets that keep their
connection: on a small machine a library's client would take the CPU that is measured. ``calm`` has as many clients as
the engine runs at once; the others ten times as many: ``patient`` ones wait their Retry-After, ``impatient`` ones a
tenth of a second, and ``hammering`` ones ask again at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CROWDS = {"patient": None, "impatient": 0.1, "hammering": 0.0}  # seconds until a refused client asks again
PATH = "/v1/chat/completions"
PLACES = ("Kandy", "Bern", "Osaka", "Tartu", "Cusco", "Accra", "Split", "Nantes")


@dataclass
class Round:
    """What the clients of one round saw."""

    kind: str
    clients: int
    seconds: float = 0.0
    tokens: int = 0
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    rss_mib: float = 0.0

    def summary(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "clients": self.clients,
            "seconds": round(self.seconds, 2),
            "goodput_tokens_per_second": round(self.tokens / self.seconds, 1),
            "answers": len(self.answered),
            "answer_ms": _quantiles(self.answered),
            "refusals": len(self.refused),
            "refusal_ms": _quantiles(self.refused),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "server_rss_mib": round(self.rss_mib, 1),
        }


def _quantiles(seconds: list[float]) -> dict[str, float] | None:
    if len(seconds) < 2:
        return None
    cuts = statistics.quantiles(seconds, n=1000, method="inclusive")
    named = {"p50": cuts[499], "p99": cuts[989], "max": max(seconds)}
    return {name: round(1000 * value, 2) for name, value in named.items()}


class Client:
    """One caller on one connection."""

    def __init__(self, port: int, number: int, tokens: int) -> None:
        self._port, self._tokens = port, tokens
        content = {
            "model": "atlas",
            "messages": [{"role": "user", "content": f"Where is {PLACES[number % len(PLACES)]}?"}],
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        body = json.dumps(content).encode()
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body

    async def run(self, seen: Round, until: float, pause: float | None) -> None:
        """Ask until the time is up; what is in flight then is waited for, but not counted."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        while (began := time.perf_counter()) < until:
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(_header(head, b"content-length")))
            ended = time.perf_counter()
            if ended > until:
                break
            status = int(head[9:12])
            seen.statuses[status] += 1
            if status == 200:
                seen.tokens += self._tokens
                seen.answered.append(ended - began)
            else:
                seen.refused.append(ended - began)
                await asyncio.sleep(float(_header(head, b"retry-after")) if pause is None else pause)
        writer.close()


def _header(head: bytes, name: bytes) -> bytes:
    at = head.index(b"\r\n" + name + b": ") + len(name) + 4
    return head[at : head.index(b"\r\n", at)]


async def one_round(kind: str, clients: int, seconds: float, port: int, tokens: int, server: int) -> Round:
    seen = Round(kind, clients)
    began = time.perf_counter()
    pause = CROWDS.get(kind)
    crowd = (Client(port, i, tokens).run(seen, began + seconds, pause) for i in range(clients))
    await asyncio.gather(*crowd)
    seen.seconds = seconds
    seen.rss_mib = _resident_mib(server)
    return seen


def _resident_mib(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def serving(fits: int) -> Iterator[tuple[int, int]]:
    """(port, process) of atlas with this many places to run, and as many to wait."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    own = ["--port", str(port), "--max-queue", str(fits), "--max-concurrent-requests", "1000"]
    command = [sys.executable, "-m", "app.cli.main", "serve", *own, "--", f"--max-num-seqs={fits}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603
    assert process.stdout is not None
    try:
        if not any(" is ready" in line for line in iter(process.stdout.readline, "")):
            raise RuntimeError("the server did not come up")
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


async def measure(options: argparse.Namespace, port: int, server: int) -> dict[str, Any]:
    common = (port, options.tokens, server)
    warm = await one_round("calm", options.fits, options.seconds, *common)
    if set(warm.statuses) != {200}:
        raise RuntimeError(f"as many as fit should all be answered, not {dict(warm.statuses)}")
    rounds: list[Round] = []
    for _ in range(options.rounds):
        for kind in CROWDS:  # each crowd directly after a calm round: a pair
            rounds.append(await one_round("calm", options.fits, options.seconds, *common))
            rounds.append(await one_round(kind, 10 * options.fits, options.seconds, *common))
    figures: dict[str, Any] = {}
    for kind in CROWDS:
        pairs = [(rounds[i - 1], one) for i, one in enumerate(rounds) if one.kind == kind]
        ratios = [crowd.tokens / calm.tokens for calm, crowd in pairs]
        figures[kind] = {
            "goodput_ratio": {
                "median": round(statistics.median(ratios), 3),
                "min": round(min(ratios), 3),
                "max": round(max(ratios), 3),
            },
            "refusal_ms": _quantiles([one for _, crowd in pairs for one in crowd.refused]),
            "refusals_per_second": round(sum(len(c.refused) for _, c in pairs) / sum(c.seconds for _, c in pairs), 1),
        }
    return {
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load": os.getloadavg(),
        },
        "settings": {name: getattr(options, name) for name in ("fits", "tokens", "seconds", "rounds")}
        | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        "figures": figures,
        "rounds": [one.summary() for one in rounds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fits", type=int, default=16, help="answers that run at once, and as many wait (default: 16)")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer (default: 32)")
    parser.add_argument("--seconds", type=float, default=8, help="of each round (default: 8)")
    parser.add_argument("--rounds", type=int, default=4, help="pairs for each crowd (default: 4)")
    options = parser.parse_args()
    with serving(options.fits) as (port, server):
        result = asyncio.run(measure(options, port, server))
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["figures"], indent=1))


if __name__ == "__main__":
    main()
