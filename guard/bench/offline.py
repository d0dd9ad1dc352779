"""``hguard bench``: start both engines, put every load on them in turn, write what came out."""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from typing import Any

import psutil

from guard.bench import components, load
from guard.bench.compare import PLAIN, Row, Run, compare
from guard.bench.config import BenchConfig
from guard.bench.load import Measured, Work
from guard.bench.results import setting
from guard.launch.engines import guarded_engine, plain_arguments, plain_engine
from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle
from guard.probe.readout import Readout, Stack
from guard.probe.signals import COLUMN, NEURONS

SCORE = Policy(Mode.SCORE, 0.5)
MODES = ("score", "score+entropy", "scale", "risk")


async def bench(model: str, args: Namespace, bundle: Bundle, config: BenchConfig) -> dict[str, Any]:
    """Measure, and return what goes into ``bench/results``."""
    async with AsyncExitStack() as stack:
        processes = _children()
        plain = await stack.enter_async_context(plain_engine(plain_arguments(args)))
        plain_processes = _children() - processes
        guarded = await stack.enter_async_context(guarded_engine(args, bundle, SCORE, config.slots))
        guarded_processes = _children() - processes - plain_processes
        rows: list[Row] = []
        for concurrency in config.clients:
            for runs in _loads(plain, guarded, concurrency, config):
                rows += await compare(model, concurrency, runs, config.rounds)
        memory = _megabytes(plain_processes), _megabytes(guarded_processes)
        ratio = memory[1] / memory[0]
        rows.append(Row(model, "score+entropy", max(config.clients), "memory, MB", *memory, ratio, (ratio, ratio)))
        threads = os.environ.get("VLLM_CPU_OMP_THREADS_BIND")
        blocks = [engine.vllm_config.cache_config.num_gpu_blocks for engine in (plain, guarded)]
        return {
            **setting(),
            "load": {
                **config.model_dump(mode="json"),
                "kv_cache_blocks": {"plain": blocks[0], "guarded": blocks[1]},
                "omp_threads_bind": threads,
            },
            "rows": [asdict(row) for row in rows],
            "parts": [asdict(part) for part in components.measure(bundle, guarded, config.clients)],
        }


def _loads(plain: Any, guarded: Any, concurrency: int, config: BenchConfig) -> list[dict[str, Run]]:
    """What is compared under one concurrency: answers that are generated, then text that is given."""
    vocabulary = plain.model_config.get_vocab_size()
    full = guarded.readout

    def work(seed: int, output: int) -> Work:
        requests = concurrency * config.requests
        return Work.random(vocabulary, requests, config.prompt, output, concurrency, 1000 * concurrency + seed)

    def generate(policy: Policy | None, readout: Readout = full) -> Run:
        async def run(seed: int) -> Measured:
            engine = guarded if policy else plain
            guarded.readout = readout
            await engine.reset_prefix_cache()
            return await load.generate(engine, work(seed, config.output), policy)

        return run

    def given(policy: Policy | None) -> Run:
        async def run(seed: int) -> Measured:
            guarded.readout = full
            return await load.score(guarded if policy else plain, work(seed, 1), policy)

        return run

    known: dict[str, Run] = {
        "score": generate(SCORE, neurons_alone(full)),
        "score+entropy": generate(SCORE),
        "scale": generate(replace(SCORE, scale=0.5)),
    }
    chosen = {mode: run for mode, run in known.items() if mode in config.modes}
    loads = [{PLAIN: generate(None), **chosen}] if chosen else []
    if "risk" in config.modes:
        loads.append({PLAIN: given(None), "risk": given(SCORE)})
    return loads


def neurons_alone(readout: Readout) -> Readout:
    """The readout without entropy and log-probability, which the engine then does not measure."""
    answer, token = (_neurons_of(stack) for stack in (readout.answer, readout.token))
    return replace(readout, answer=answer, token=token)


def _neurons_of(stack: Stack) -> Stack:
    kept = COLUMN[NEURONS]
    return replace(stack, weight=tuple(w if i == kept else 0.0 for i, w in enumerate(stack.weight)))


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _megabytes(processes: set[int]) -> float:
    """Memory of these processes, shared pages by their share."""
    total = 0
    for pid in processes:
        if psutil.pid_exists(pid):
            total += psutil.Process(pid).memory_full_info().pss
    return total / 1e6
