"""The load: requests of fixed length in a closed loop, and what their clients see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guard.engine.context import RequestContext, use_context
from guard.policy import Mode, Policy

PLAIN = Policy(Mode.OFF, 0.5)


@dataclass(frozen=True, slots=True)
class Work:
    """One run: ``concurrency`` clients together send the prompts, each asking for ``output`` tokens."""

    prompts: Sequence[list[int]]
    output: int
    concurrency: int

    @classmethod
    def random(cls, vocabulary: int, requests: int, prompt: int, output: int, concurrency: int, seed: int) -> Work:
        """Random prompts: nothing of them is in the prefix cache, neither engine's."""
        tokens = np.random.default_rng(seed).integers(10, vocabulary, (requests, prompt))
        return cls(tokens.tolist(), output, concurrency)

    def request(self, number: int) -> tuple[Any, Any, str]:
        """(prompt, parameters, id) for vLLM: a greedy answer of exactly ``output`` tokens, streamed."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        kind = RequestOutputKind.DELTA
        params = SamplingParams(max_tokens=self.output, temperature=0.0, ignore_eos=True, output_kind=kind)
        prompt = {"type": "token", "prompt_token_ids": self.prompts[number]}
        return prompt, params, f"bench-{time.monotonic_ns()}-{number}"


@dataclass(frozen=True, slots=True)
class Measured:
    """Metrics of one run, by name; times in milliseconds, medians over requests or tokens."""

    values: dict[str, float]


async def generate(engine: Any, work: Work, policy: Policy | None) -> Measured:
    """Greedy answers of exactly ``output`` tokens, streamed. ``policy`` is None for an engine without a guard."""
    first: list[float] = []
    between: list[float] = []

    async def one(number: int) -> None:
        asked = work.request(number)
        sent = last = time.perf_counter()
        started = False
        async for output in engine.generate(*asked):
            now = time.perf_counter()
            count = sum(len(completion.token_ids) for completion in output.outputs)
            if not started:
                first.append(now - sent)
                started = True
            elif count:
                between.extend([(now - last) / count] * count)
            last = now

    seconds = await _closed_loop(work, one, policy)
    return Measured(
        {
            "tokens/s": len(work.prompts) * work.output / seconds,
            "time to first token, ms": 1e3 * float(np.median(first)),
            "inter-token latency, ms": 1e3 * float(np.median(between)),
        }
    )


async def score(engine: Any, work: Work, policy: Policy | None) -> Measured:
    """Given text: the second half of each prompt is an answer. Without a guard, plain prefill of the same text."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    async def one(number: int) -> None:
        text = work.prompts[number]
        name = f"bench-{time.monotonic_ns()}-{number}"
        if policy is not None:
            await engine.measure(text[: len(text) // 2], text[len(text) // 2 :], 1.0, name)
            return
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_reading_prefix_cache=True,
        )
        async for _ in engine.generate({"type": "token", "prompt_token_ids": text}, params, name):
            pass

    seconds = await _closed_loop(work, one, policy)
    return Measured({"given tokens/s": sum(map(len, work.prompts)) / seconds})


async def _closed_loop(work: Work, one: Any, policy: Policy | None) -> float:
    """Seconds until all is answered, with ``concurrency`` requests under way at any time."""
    numbers = iter(range(len(work.prompts)))

    async def client() -> None:
        for number in numbers:
            with use_context(RequestContext(policy or PLAIN)):
                await one(number)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(work.concurrency)))
    return time.perf_counter() - began
