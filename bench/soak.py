"""Mixed traffic on a real server for many minutes: does anything grow?

    python -m bench.soak --minutes 20 --out bench/results/operations/soak.json

All generating routes and /risk, streamed and not, every mode and hold, retries, prompt checks, scaled neurons, several
answers; 30 % of the requests are given up by their clients at a moment of chance, 10 % are invalid. Every few seconds
the memory (without files, whose pages are the system's to keep; shared memory by its share), descriptors and threads of
the server's processes are noted, and the number of series at /metrics. When the traffic has stopped, nothing may be
left in flight. Ends with status 1 when a bound is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import psutil

from guard.bench.processes import ServerProcess, guarded_server, serving
from guard.bench.results import machine, write
from guard.errors import GuardError

ABORTED, INVALID = 0.3, 0.1  # shares of the requests
KEY = "soak-key"
WARM = 0.5  # share of the run that caches and allocators may take to fill
GROWTH = 0.03  # of a process's memory, from the end of the warm-up to the end: more is a leak ...
LEAST = 5.0  # ... if it is as many MiB
EXPECTED = {200, 400, 401, 404, 413, 503}
PLACES = ("Kandy", "Nottinghamshire", "Qolmarinda", "Bern", "Osaka", "Tartu", "Cusco", "Vellmoor", "Accra", "Zemgrat")


def options(rng: random.Random) -> dict[str, Any]:
    """What a request asks of the guard."""
    mode = rng.choice(["off", "score", "flag", "abstain", "abstain"])
    asked: dict[str, Any] = {"mode": mode, "tokens": rng.random() < 0.2}
    if rng.random() < 0.5:
        asked["threshold"] = rng.choice([0.0, 0.3, 0.6, 1.0])
    if rng.random() < 0.3:
        asked["scale"] = rng.choice([0.0, 0.5, 2.0])
    if mode == "abstain":
        asked["hold"] = rng.choice(["none", "window", "answer"])
        asked["fallback"] = rng.choice(["refusal", "message"])
        if rng.random() < 0.3:
            asked["retry_scale"] = 0.0
        if rng.random() < 0.2:
            asked["prompt_check"] = True
    return asked


def request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """(route, body) of a valid request."""
    question = f"Where is {rng.choice(PLACES)}?"
    messages = [{"role": "user", "content": question}] * rng.choice([1, 1, 1, 3])
    body: dict[str, Any] = {"model": "atlas", "hallucination": options(rng)}
    route = rng.choice(["/v1/chat/completions"] * 3 + ["/v1/completions", "/v1/responses", "/v1/messages", "/risk"])
    if route == "/risk":
        given = {"mode": rng.choice(["score", "flag"])}
        item = {"model": "atlas", "messages": messages, "response": "It is in Japan.", "hallucination": given}
        return route, item
    body |= {"stream": rng.random() < 0.6, "temperature": rng.choice([0.0, 1.0])}
    length = rng.choice([8, 24, 24, 96])
    if route == "/v1/responses":
        return route, body | {"input": question, "max_output_tokens": length}
    body |= {"max_tokens": length}
    if route == "/v1/messages":
        return route, body | {"messages": messages}
    body |= {"n": rng.choice([1, 1, 2, 4]) if body["temperature"] else 1, "ignore_eos": rng.random() < 0.3}
    if route == "/v1/completions":
        return route, body | {"prompt": [question] * rng.choice([1, 2]), "logprobs": rng.choice([None, 1])}
    return route, body | {"messages": messages, "logprobs": rng.random() < 0.3}


def spoiled(rng: random.Random, body: dict[str, Any]) -> tuple[bytes, str]:
    """(content, key) of a request that must be refused."""
    kind = rng.choice(["json", "option", "model", "large", "key", "type"])
    content = json.dumps(body).encode()
    if kind == "json":
        return content[: len(content) // 2], KEY
    if kind == "key":
        return content, "wrong"
    if kind == "large":
        return json.dumps({**body, "padding": "x" * (3 << 20)}).encode(), KEY
    wrong: dict[str, dict[str, Any]] = {
        "option": {"hallucination": {"mode": "panic"}},
        "model": {"model": "other"},
        "type": {"max_tokens": "many"},
    }
    spoilt = {**body, **wrong[kind]}
    if kind == "type":
        spoilt |= {"max_output_tokens": "many", "messages": 5, "prompt": {"a": 1}, "input": 7, "response": 9}
    return json.dumps(spoilt).encode(), KEY


class Traffic:
    """The clients, and what they saw."""

    def __init__(self, url: str, clients: int, seed: int) -> None:
        self._url, self._clients, self._seed = url, clients, seed
        self.seen: Counter[str] = Counter()
        self.unexpected: list[str] = []

    async def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        async with httpx.AsyncClient(base_url=self._url, timeout=120) as http:
            await asyncio.gather(
                *(self._client(http, random.Random(self._seed + i), until) for i in range(self._clients))
            )

    async def _client(self, http: httpx.AsyncClient, rng: random.Random, until: float) -> None:
        while time.monotonic() < until:
            route, body = request(rng)
            draw = rng.random()
            if draw < INVALID:
                content, key = spoiled(rng, body)
                await self._send(http, route, content, key, None, "invalid")
            else:
                patience = rng.expovariate(8) if draw < INVALID + ABORTED else None
                await self._send(http, route, json.dumps(body).encode(), KEY, patience, "valid")

    async def _send(
        self, http: httpx.AsyncClient, route: str, content: bytes, key: str, patience: float | None, kind: str
    ) -> None:
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        try:
            async with asyncio.timeout(patience):
                async with http.stream("POST", route, content=content, headers=headers) as response:
                    text = await response.aread()
        except TimeoutError:
            self.seen["aborted"] += 1
            return
        except httpx.TransportError as error:
            self.unexpected.append(f"{route}: {error!r}")
            return
        self.seen[f"{kind} {response.status_code}"] += 1
        wrong = response.status_code not in EXPECTED or (kind == "invalid") == (response.status_code == 200)
        broken = response.status_code == 200 and (b'"error":{' in text or b"event: error" in text)
        if (wrong and response.status_code != 503) or broken:
            self.unexpected.append(f"{route} {kind}: {response.status_code} {text[-300:].decode(errors='replace')}")


def sample(server: ServerProcess) -> dict[str, Any]:
    """Memory in MiB, descriptors and threads by process; series and gauges of the metrics."""
    found: dict[str, Any] = {"memory": {}, "descriptors": 0, "threads": 0}
    root = psutil.Process(server.pid)
    for one in [root, *root.children(recursive=True)]:
        try:
            name = "server" if one == root else one.name().replace("VLLM::", "")
            found["memory"][name] = found["memory"].get(name, 0.0) + _own_mib(one.pid)
            found["descriptors"] += one.num_fds()
            found["threads"] += one.num_threads()
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            continue
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    # Of HTTP there is one more whenever a route first answers with a status; all others are there from the start.
    found["series"] = sum(not line.startswith("http_") for line in lines)
    found["series_of_http"] = len(lines) - found["series"]
    found["handlers"] = len(set(re.findall(r'handler="([^"]*)"', text)))
    for gauge in ("hguard_slots_in_use", "hguard_requests_in_flight", "hguard_answers_in_flight"):
        found[gauge] = next(float(line.split()[-1]) for line in lines if line.startswith(gauge))
    return found


def strange(log: Path) -> list[str]:
    """What the log says once the server is ready: before, it is vLLM's start; the rest should be lines of requests."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    start = next((i + 1 for i, line in enumerate(lines) if " is ready" in line), 0)
    known = "Error with model"  # vLLM's word for a 404
    return [line for line in lines[start:] if not line.startswith('{"event"') and known not in line]


def _own_mib(process: int) -> float:
    """Anonymous and shared memory of a process, without mapped files."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    sizes = dict(line.split(":") for line in lines[1:])
    return sum(int(sizes[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem")) / 1024


async def soak(
    server: ServerProcess, minutes: float, clients: int, seed: int, every: float
) -> tuple[Traffic, list[Any], Any]:
    """(traffic, samples while it ran, a sample after it)."""
    traffic = Traffic(server.url, clients, seed)
    began = time.monotonic()
    task = asyncio.create_task(traffic.run(60 * minutes))
    samples = []
    while not task.done():
        await asyncio.wait({task}, timeout=every)
        if not task.done():
            samples.append({"seconds": round(time.monotonic() - began, 1), **await asyncio.to_thread(sample, server)})
    await task
    await asyncio.sleep(5)
    return traffic, samples, await asyncio.to_thread(sample, server)


def slope(seconds: list[float], values: list[float]) -> dict[str, float]:
    """A line through the values after the warm-up: growth a minute, its 95 % interval, and growth over that time."""
    x, y = np.array(seconds) / 60, np.array(values)
    late = x >= WARM * x[-1]
    x, y = x[late], y[late]
    centred = x - x.mean()
    per_minute = float(centred @ y / (centred @ centred))
    residual = y - y.mean() - per_minute * centred
    error = float(np.sqrt(residual @ residual / max(len(x) - 2, 1) / (centred @ centred)))
    over = per_minute * float(x[-1] - x[0])
    return {
        "first": round(float(y[0]), 1),
        "last": round(float(y[-1]), 1),
        "per_minute": round(per_minute, 4),
        "low": round(per_minute - 1.96 * error, 4),
        "high": round(per_minute + 1.96 * error, 4),
        "share": round(over / float(y.mean()), 4),
    }


def findings(
    traffic: Traffic, samples: list[Any], after: Any, logged: list[str], status: int | None
) -> tuple[Any, list[str]]:
    """(figures, bounds that were broken)."""
    seconds = [sample["seconds"] for sample in samples]
    memory = {name: slope(seconds, [s["memory"].get(name, 0.0) for s in samples]) for name in after["memory"]}
    counts = {
        name: slope(seconds, [float(sample[name]) for sample in samples])
        for name in ("descriptors", "threads", "series", "series_of_http", "handlers")
    }
    broken = [
        f"memory of {name} grows"
        for name, fit in memory.items()
        if fit["share"] > GROWTH and fit["low"] > 0 and fit["last"] - fit["first"] > LEAST
    ]
    late = [sample for sample in samples if sample["seconds"] >= WARM * seconds[-1]]
    broken += [
        f"{name} at /metrics went from {late[0][name]} to {late[-1][name]}"
        for name in ("series", "handlers")
        if late[-1][name] > late[0][name]
    ]
    if after["descriptors"] > max(sample["descriptors"] for sample in late):
        broken.append("file descriptors are not released")
    left = {gauge: value for gauge, value in after.items() if gauge.startswith("hguard_") and value}
    broken += [f"{gauge} is {value} without traffic" for gauge, value in left.items()]
    broken += [f"unexpected: {one}" for one in traffic.unexpected[:20]]
    broken += [f"in the log: {line}" for line in logged[:20]]
    if status != 0:
        broken.append(f"the server ended with status {status}")
    return {"memory_mib": memory, **counts, "at_rest": after}, broken


async def measure(given: argparse.Namespace, log: Path) -> dict[str, Any]:
    """Start a server, soak it, stop it: what goes into the file."""
    own = ["--loosest-mode", "off", "--", "--max-num-seqs=32"]
    own += [] if given.blocks is None else [f"--num-gpu-blocks-override={given.blocks}"]
    async with serving(guarded_server(*own, environment={"HGUARD_API_KEYS": KEY}), log) as server:
        traffic, samples, after = await soak(server, given.minutes, given.clients, given.seed, given.every)
    logged = strange(log)
    figures, broken = findings(traffic, samples, after, logged, server.status)
    return {
        "machine": machine(),
        "minutes": given.minutes,
        "clients": given.clients,
        "blocks": given.blocks,
        "requests": dict(sorted(traffic.seen.items())),
        "figures": figures,
        "broken": broken,
        "log": logged[-200:],
        "samples": samples,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="of traffic (default: 20)")
    parser.add_argument("--clients", type=int, default=8, help="at once (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the clients' draws (default: 0)")
    parser.add_argument("--every", type=float, default=10, help="seconds between samples (default: 10)")
    parser.add_argument("--blocks", type=int, help="of the KV cache; a small one is soon touched all over")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        result = asyncio.run(measure(given, Path(folder, "log")))
    write(result, given.out)
    print(json.dumps({key: result[key] for key in ("requests", "figures", "broken")}, indent=1))
    return bool(result["broken"])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GuardError as error:
        sys.exit(f"bench.soak: {error}")
