"""What ten times too many clients do to a server: its goodput beside that of as many as fit, and how fast it refuses.

    python -m bench.overload --out bench/overload.json

Rounds alternate in one run, so that a noisy machine is noisy for all. Clients are the benchmark's own, which keep their
connection: on a small machine a library's client would take the CPU that is measured. ``calm`` has as many clients as
the engine runs at once; the others ten times as many: ``patient`` ones wait their Retry-After, ``impatient`` ones a
tenth of a second, and ``hammering`` ones ask again at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from guard.bench.client import Connection
from guard.bench.processes import ServerProcess, guarded_server, serving
from guard.bench.results import processor, write
from guard.errors import GuardError

CROWDS = {"patient": None, "impatient": 0.1, "hammering": 0.0}  # seconds until a refused client asks again
PATH = "/v1/chat/completions"
PLACES = ("Kandy", "Bern", "Osaka", "Tartu", "Cusco", "Accra", "Split", "Nantes")


@dataclass
class Round:
    """What the clients of one round saw."""

    kind: str
    clients: int
    seconds: float
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


async def ask(server: ServerProcess, number: int, tokens: int, seen: Round, until: float, pause: float | None) -> None:
    """One caller on one connection, until the time is up; what is in flight then is waited for, but not counted."""
    content = {
        "model": "atlas",
        "messages": [{"role": "user", "content": f"Where is {PLACES[number % len(PLACES)]}?"}],
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    body = json.dumps(content).encode()
    connection = await Connection.open(server.address)
    while time.perf_counter() < until:
        reply = await connection.request("POST", PATH, body)
        if reply.ended > until:
            break
        seen.statuses[reply.status] += 1
        if reply.status == 200:
            seen.tokens += tokens
            seen.answered.append(reply.ended - reply.sent)
        else:
            seen.refused.append(reply.ended - reply.sent)
            await asyncio.sleep(float(reply.headers[b"retry-after"]) if pause is None else pause)
    connection.close()


async def one_round(kind: str, clients: int, given: argparse.Namespace, server: ServerProcess) -> Round:
    seen = Round(kind, clients, given.seconds)
    until = time.perf_counter() + given.seconds
    await asyncio.gather(*(ask(server, i, given.tokens, seen, until, CROWDS.get(kind)) for i in range(clients)))
    seen.rss_mib = psutil.Process(server.pid).memory_info().rss / 2**20
    return seen


async def measure(given: argparse.Namespace, log: Path) -> dict[str, Any]:
    """Start atlas with ``fits`` places to run and as many to wait, and measure: what goes into the file."""
    own = ["--max-queue", str(given.fits), "--max-concurrent-requests", "1000", "--", f"--max-num-seqs={given.fits}"]
    async with serving(guarded_server(*own), log) as server:
        warm = await one_round("calm", given.fits, given, server)
        if set(warm.statuses) != {200}:
            raise GuardError(f"as many clients as fit should all be answered; statuses: {dict(warm.statuses)}")
        rounds: list[Round] = []
        for _ in range(given.rounds):
            for kind in CROWDS:  # each crowd directly after a calm round: a pair
                rounds.append(await one_round("calm", given.fits, given, server))
                rounds.append(await one_round(kind, 10 * given.fits, given, server))
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
            "processor": processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load": os.getloadavg(),
        },
        "settings": {name: getattr(given, name) for name in ("fits", "tokens", "seconds", "rounds")}
        | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        "figures": figures,
        "rounds": [one.summary() for one in rounds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--fits", type=int, default=16, help="answers that run at once, and as many wait (default: 16)")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer (default: 32)")
    parser.add_argument("--seconds", type=float, default=8, help="of each round (default: 8)")
    parser.add_argument("--rounds", type=int, default=4, help="pairs for each crowd (default: 4)")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        result = asyncio.run(measure(given, Path(folder, "log")))
    write(result, given.out)
    print(json.dumps(result["figures"], indent=1))


if __name__ == "__main__":
    try:
        main()
    except GuardError as error:
        sys.exit(f"bench.overload: {error}")
