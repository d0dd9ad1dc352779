"""Decoding steps taken apart by torch's profiler: what each kernel takes in plain and in guarded vLLM."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from guard.bench.load import PLAIN, Work
from guard.bench.offline import SCORE
from guard.bench.results import setting
from guard.engine.context import RequestContext, use_context
from guard.errors import GuardError
from guard.launch.engines import guarded_engine, plain_arguments, plain_engine
from guard.policy import Policy
from guard.probe.bundle import Bundle

STEPS = 16  # recorded at least, under each load
_LONGEST = 256  # tokens of an answer: many sequences must still decode when the last has begun
_ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
_STEP = re.compile(r"execute_.*generation")  # vLLM's own mark on each step

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recorded:
    """Decoding steps of one engine. Microseconds: ``between`` the beginnings of two (median), and the device ``busy``
    in a mean one; by kernel (on CPU: torch operator, by itself), its calls and microseconds in a mean step."""

    steps: int
    between: float
    busy: float
    kernels: dict[str, tuple[float, float]]


async def bench(
    model: str, args: Namespace, bundle: Bundle, concurrency: Sequence[int], prompt: int, slots: int, folder: Path
) -> dict[str, Any]:
    """Profile plain, then guarded vLLM, and return what goes into ``bench/results``; traces stay in ``folder``.

    Raises GuardError where the answers end before enough steps are seen.
    """
    seen: dict[str, list[Recorded]] = {}
    for name, policy in (("plain", None), ("guarded", SCORE)):
        profiled = Namespace(**{**vars(args), "profiler_config": _configuration(folder / name)})
        start: AbstractAsyncContextManager[Any] = (
            plain_engine(plain_arguments(profiled))
            if policy is None
            else guarded_engine(profiled, bundle, policy, slots)
        )
        async with start as engine:
            seen[name] = [await _record(engine, count, prompt, policy, folder / name) for count in concurrency]
    return {
        **setting(),
        "model": model,
        "prompt": prompt,
        "profiles": [
            {"concurrency": count, **{name: asdict(recorded[i]) for name, recorded in seen.items()}}
            for i, count in enumerate(concurrency)
        ],
    }


def _configuration(traces: Path) -> Any:
    from vllm.config import ProfilerConfig

    return ProfilerConfig(
        profiler="torch",
        torch_profiler_dir=str(traces),
        torch_profiler_with_stack=False,
        torch_profiler_use_gzip=False,
        torch_profiler_dump_cuda_time_total=False,
        ignore_frontend=True,
    )


async def _record(engine: Any, concurrency: int, prompt: int, policy: Policy | None, traces: Path) -> Recorded:
    """Some steps in which every sequence decodes: the second time that there are as many."""
    for seed in range(2):  # the first warms up
        work = Work.random(engine.model_config.get_vocab_size(), concurrency, prompt, _LONGEST, concurrency, seed)
        tokens = [0] * concurrency
        before = _written(traces)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_decode(engine, work, i, policy, tokens)) for i in range(concurrency)]
            await _until(tokens, 1)
            await engine.start_profile()
            await _until(tokens, min(tokens) + STEPS)
            await engine.stop_profile()
            for task in tasks:
                task.cancel()
    if not (new := _written(traces) - before):
        raise GuardError(f"vLLM's profiler wrote no trace to {traces}")
    return recorded(read(min(new)))


def _written(traces: Path) -> set[Path]:
    return set(traces.glob("*.pt.trace.json"))


async def _decode(engine: Any, work: Work, number: int, policy: Policy | None, tokens: list[int]) -> None:
    with use_context(RequestContext(policy or PLAIN)):
        async for output in engine.generate(*work.request(number)):
            tokens[number] += sum(len(completion.token_ids) for completion in output.outputs)


async def _until(tokens: Sequence[int], count: int) -> None:
    """Until every sequence has so many tokens."""
    while min(tokens) < count:
        if max(tokens) >= _LONGEST:
            raise GuardError("answers ended before enough steps were seen; profile fewer clients, or shorter prompts")
        await asyncio.sleep(0.002)


def read(path: Path) -> list[Event]:
    """The events of one trace, as torch's profiler writes it."""
    return list(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])


def recorded(events: Iterable[Event]) -> Recorded:
    """A mean step of a trace. Raises GuardError where no step is marked in it."""
    whole = [event for event in events if event.get("ph") == "X"]
    steps = sorted(e["ts"] for e in whole if e.get("cat") == "user_annotation" and _STEP.match(e["name"]))
    if len(steps) < 2:
        raise GuardError("the trace marks no decoding steps")
    device = [event for event in whole if event.get("cat") in _ON_DEVICE]
    spent = [(e["name"], e["dur"]) for e in device] if device else list(_alone(whole))
    calls: dict[str, float] = defaultdict(float)
    microseconds: dict[str, float] = defaultdict(float)
    for name, duration in spent:
        calls[short(name)] += 1 / len(steps)
        microseconds[short(name)] += duration / len(steps)
    busy = _covered(device or [event for event in whole if event.get("cat") == "cpu_op"]) / len(steps)
    between = median(after - before for before, after in itertools.pairwise(steps))
    return Recorded(len(steps), between, busy, {name: (calls[name], microseconds[name]) for name in calls})


def short(name: str) -> str:
    """A kernel's name without what it returns, its namespaces, template's arguments and parameters."""
    name = name.removeprefix("void ")
    return name if name.startswith(("Memcpy", "Memset")) else re.split(r"[<(]", name)[0].strip() or name


def _alone(events: Sequence[Event]) -> Iterator[tuple[str, float]]:
    """(operator, microseconds outside the operators that it calls), for each on the CPU."""
    by_thread: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "cpu_op":
            by_thread[event["pid"], event["tid"]].append(event)
    for own in by_thread.values():
        within: list[tuple[float, list[Any]]] = []  # (end, [name, time]) of those that are open
        for event in sorted(own, key=lambda one: (one["ts"], -one["dur"])):
            while within and within[-1][0] <= event["ts"]:
                yield tuple(within.pop()[1])
            if within:
                within[-1][1][1] -= event["dur"]
            within.append((event["ts"] + event["dur"], [event["name"], event["dur"]]))
        yield from (tuple(one) for _, one in within)


def _covered(events: Iterable[Event]) -> float:
    """Microseconds in which at least one of them was under way."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted((event["ts"], event["ts"] + event["dur"]) for event in events):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
