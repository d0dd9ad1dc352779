"""The load over HTTP: chat requests to the guarded server and to plain ``vllm serve``, whole answers and streams.

Of two servers without a model (``modelless``) the API process alone is compared.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import string
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guard.bench.client import Connection, Reply, frames
from guard.bench.compare import PLAIN, Row, Run, compare
from guard.bench.config import BenchConfig
from guard.bench.load import Measured
from guard.bench.processes import Command, ServerProcess, serving
from guard.bench.results import setting
from guard.errors import GuardError
from guard.launch.engines import warn

ROUTE = "/v1/chat/completions"
LEAST = 16  # requests of one run: of a handful, the slowest in a hundred is only the slowest

_FIELD = "hallucination"
_TICK = 1e-4  # seconds of a processor, below which a run says nothing
_INSTANT = 1e-6  # between tokens where all come in one packet: ratios need some time


@dataclass(frozen=True, slots=True)
class Mode:
    """What the guarded server is asked for. ``held``: its text comes all at once, so nothing is between tokens."""

    config: dict[str, Any] | None
    held: bool = False


# Without config, the request is the plain server's to the byte. A risk of 1 does not occur: nothing is withheld.
MODES = {
    "score": Mode(None),
    "flag": Mode({"mode": "flag"}),
    "abstain": Mode({"mode": "abstain", "threshold": 1.0, "hold": "answer"}, held=True),
}
API_MODES = {
    **MODES,
    "abstain:window": Mode({"mode": "abstain", "threshold": 1.0, "hold": "window"}),
    "abstain:none": Mode({"mode": "abstain", "threshold": 1.0, "hold": "none"}),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """How answers are asked for. label: after the name of each metric."""

    stream: bool
    logprobs: bool = False

    @property
    def label(self) -> str:
        return f"{', streamed' if self.stream else ''}{', logprobs' if self.logprobs else ''}"


KINDS = (Kind(False), Kind(True))
API_KINDS = (*KINDS, Kind(False, logprobs=True), Kind(True, logprobs=True))


@dataclass(frozen=True, slots=True)
class HttpWork:
    """One run: ``concurrency`` connections together send the prompts, each asking for ``output`` tokens."""

    model: str
    prompts: Sequence[str]
    output: int
    concurrency: int

    def bodies(self, config: dict[str, Any] | None, kind: Kind) -> list[bytes]:
        """The requests. Greedy, and of full length whatever the model would say."""
        common: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.output,
            "temperature": 0,
            "ignore_eos": True,
            "stream": kind.stream,
        }
        if kind.logprobs:
            common |= {"logprobs": True, "top_logprobs": 1}
        if config is not None:
            common[_FIELD] = config
        return [
            json.dumps({**common, "messages": [{"role": "user", "content": prompt}]}).encode()
            for prompt in self.prompts
        ]


class Prompter:
    """Prompts of a given length for one tokenizer, each different from its first word on: none is in a prefix cache."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        empty = tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}], add_generation_prompt=True, return_dict=False
        )
        self._tokenizer, self._room = tokenizer, length - len(empty)
        if self._room < 1:
            raise GuardError(f"the chat template alone is {len(empty)} tokens; set --prompt above that")

    def texts(self, count: int, seed: int) -> list[str]:
        """The same seed gives the same texts. They lack a token or two where text is cut within a word."""
        letters = np.random.default_rng(seed).choice(list(string.ascii_lowercase), (count, self._room, 5))
        made = []
        for words in letters:
            ids = self._tokenizer.encode(" ".join("".join(word) for word in words), add_special_tokens=False)
            made.append(self._tokenizer.decode(ids[: self._room]))
        return made


@dataclass(frozen=True, slots=True)
class Taken:
    """What one run took: by the clock, and on the processors, this process and the server's own."""

    replies: list[Reply]
    seconds: float
    client_seconds: float
    server_seconds: float


async def send(server: ServerProcess, bodies: Sequence[bytes], concurrency: int) -> Taken:
    """Send all of them in a closed loop over that many connections. Raises GuardError for an answer that is none."""
    connections = [await Connection.open(server.address) for _ in range(concurrency)]
    rest = iter(bodies)
    replies: list[Reply] = []

    async def one(connection: Connection) -> None:
        for body in rest:
            replies.append(await connection.request("POST", ROUTE, body))

    gc.collect()
    gc.disable()  # a collection in the client would be read as the server's latency
    try:
        began, client, served = time.perf_counter(), time.process_time(), server.cpu_seconds()
        await asyncio.gather(*map(one, connections))
        seconds, client = time.perf_counter() - began, time.process_time() - client
        taken = Taken(replies, seconds, client, server.cpu_seconds() - served)
    finally:
        gc.enable()
        for connection in connections:
            connection.close()
    for reply in replies:
        if reply.status != 200:
            text = reply.body.decode(errors="replace")
            raise GuardError(f"a server answered with status {reply.status}: {text[:500]}")
    return taken


def api_process(taken: Taken, kind: Kind) -> dict[str, float]:
    """What the API process took for each request."""
    return {f"API process, CPU ms/request{kind.label}": 1e3 * max(taken.server_seconds, _TICK) / len(taken.replies)}


def whole(taken: Taken, output: int, guarded: bool) -> dict[str, float]:
    """The metrics of answers that came in one piece; checks that they are what was asked for."""
    for reply in taken.replies:
        content = json.loads(reply.body)
        tokens = content["usage"]["completion_tokens"]
        if tokens != output:
            raise GuardError(f"an answer has {tokens} tokens, not {output}: there is nothing to compare")
        _require_verdict(content.get(_FIELD), guarded)
    waited = [reply.ended - reply.sent for reply in taken.replies]
    return {**_totals(taken, KINDS[0]), **_quantiles("answer", waited)}


def streamed(taken: Taken, guarded: bool, held: bool = False) -> dict[str, float]:
    """The metrics of streams: a frame counts where it has text. Checks that they are what was asked for."""
    first: list[float] = []
    between: list[float] = []
    for reply in taken.replies:
        times, finish, verdict = _course(reply)
        if not times or finish != "length":
            raise GuardError(f"a stream ended with {finish!r} after {len(times)} frames: there is nothing to compare")
        _require_verdict(verdict, guarded)
        first.append(times[0] - reply.sent)
        between.extend(_gaps(times))
    values = {**_totals(taken, KINDS[1]), **_quantiles("time to first token", first)}
    return values if held else {**values, **_quantiles("inter-token latency", between or [_INSTANT])}


def _course(reply: Reply) -> tuple[list[float], str | None, Any]:
    """(when text came, why it ended, the verdict) of one stream. Raises GuardError for an error inside it."""
    times: list[float] = []
    finish: str | None = None
    verdict = None
    for when, payload in frames(reply.pieces):
        content = json.loads(payload)
        if "error" in content:
            raise GuardError(f"a stream broke off: {content['error']}")
        verdict = content.get(_FIELD, verdict)
        for choice in content["choices"]:
            if choice["delta"].get("content"):
                times.append(when)
            finish = choice.get("finish_reason") or finish
    return times, finish, verdict


def _require_verdict(verdict: Any, guarded: bool) -> None:
    if guarded and (verdict is None or verdict.get("type") != "hallucination_results"):
        raise GuardError(f"an answer of the guarded server is not scored: {verdict}")
    if not guarded and verdict is not None:
        raise GuardError("the plain server answers with a verdict: it is not plain")


def _totals(taken: Taken, kind: Kind) -> dict[str, float]:
    return {f"requests/s{kind.label}": len(taken.replies) / taken.seconds, **api_process(taken, kind)}


def _gaps(times: Sequence[float]) -> list[float]:
    """What lies between the tokens of one stream. Those of one packet share the time since the last packet; of those
    that come with the first nothing can be said."""
    moments, counts = np.unique(times, return_counts=True)
    return list(np.repeat(np.diff(moments) / counts[1:], counts[1:]))


def _quantiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    return {f"{name} p{q}, ms": 1e3 * float(np.percentile(seconds, q)) for q in (50, 99)}


async def bench(
    model: str, plain: Command, guarded: Command, tokenizer: Any, config: BenchConfig, logs: Path, api: bool = False
) -> dict[str, Any]:
    """Start both servers, measure, and return what goes into ``bench/results``.

    ``api``: their API processes alone. load_average: the machine's, from other work, before the servers start.
    """
    prompter = Prompter(tokenizer, config.prompt)
    others = os.getloadavg()[0]
    async with AsyncExitStack() as stack:
        servers = []
        for number, command in enumerate((plain, guarded)):
            warn(f"starting {command.name} ...")
            servers.append(await stack.enter_async_context(serving(command, logs / f"{number}.log")))
        rows: list[Row] = []
        client: dict[int, list[float]] = {}
        for concurrency in config.clients:
            shares = client.setdefault(concurrency, [])
            runs = _runs(model, servers[0], servers[1], prompter, concurrency, config, shares.append, api)
            rows += await compare(model, concurrency, runs, config.rounds)
    return {
        **setting(),
        "load_average": others,
        "load": {
            **config.model_dump(mode="json"),
            "route": ROUTE,
            "least": LEAST,
            "omp_threads_bind": os.environ.get("VLLM_CPU_OMP_THREADS_BIND"),
        },
        "rows": [asdict(row) for row in rows],
        "client": [
            {"concurrency": concurrency, "core_share": float(np.median(shares))}
            for concurrency, shares in client.items()
        ],
    }


def _runs(
    model: str,
    plain: ServerProcess,
    guarded: ServerProcess,
    prompter: Prompter,
    concurrency: int,
    config: BenchConfig,
    note_share: Callable[[float], None],
    api: bool,
) -> dict[str, Run]:
    """What is compared under one concurrency: each run asks for whole answers, then for streams."""
    kinds, modes = (API_KINDS, API_MODES) if api else (KINDS, MODES)
    count = max(LEAST, concurrency * config.requests)

    def run_on(server: ServerProcess, mode: Mode | None) -> Run:
        async def run(seed: int) -> Measured:
            values: dict[str, float] = {}
            for number, kind in enumerate(kinds):
                texts = prompter.texts(count, 10_000 * concurrency + len(kinds) * seed + number)
                bodies = HttpWork(model, texts, config.output, concurrency).bodies(mode.config if mode else None, kind)
                taken = await send(server, bodies, concurrency)
                note_share(taken.client_seconds / taken.seconds)
                found = (
                    streamed(taken, mode is not None, mode is not None and mode.held)
                    if kind.stream
                    else whole(taken, config.output, mode is not None)
                )
                values |= api_process(taken, kind) if api else found
            return Measured(values)

        return run

    return {PLAIN: run_on(plain, None), **{name: run_on(guarded, modes[name]) for name in config.modes}}
