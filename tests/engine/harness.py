"""A real engine for tests: vLLM in its own processes, driven from an event loop in a thread."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from guard.engine.client import GuardedEngine
from guard.engine.context import RequestContext, Verdict, use_context
from guard.launch.engines import engine_arguments, guarded_engine, plain_arguments, plain_engine
from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle

T = TypeVar("T")
SCORE = Policy(Mode.SCORE, 0.5)


@dataclass(frozen=True)
class Produced:
    """One finished sequence: its tokens, their log-probabilities as vLLM reports them, the guard's verdict if any."""

    tokens: list[int]
    logprobs: list[float]
    verdict: Verdict | None


class Harness:
    """Runs coroutines on the loop that owns the engine."""

    def __init__(self, start: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._manager = start()
        try:
            self.engine = self.run(self._manager.__aenter__())
        except BaseException:
            self._stop()
            raise

    def run(self, work: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
        async def wrapped() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(wrapped(), self._loop).result(timeout=280)

    def close(self) -> None:
        try:
            self.run(self._manager.__aexit__(None, None, None))
        finally:
            self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def produce(
        self,
        prompts: Sequence[list[int]],
        max_tokens: Sequence[int] | int,
        policies: Sequence[Policy] | None = None,
        grammar: Any = None,
        ignore_eos: bool = True,
        salt: str | None = None,
    ) -> list[Produced]:
        """Greedy sequences for all prompts at once; ``policies`` only for a guarded engine."""
        lengths = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens

        async def all_at_once() -> list[Produced]:
            chosen = policies or [SCORE] * len(prompts)
            return await asyncio.gather(
                *(
                    self.answer(p, n, policy, i, grammar, ignore_eos, salt)
                    for i, (p, n, policy) in enumerate(zip(prompts, lengths, chosen, strict=True))
                )
            )

        return self.run(all_at_once())

    async def answer(
        self,
        prompt: list[int],
        max_tokens: int,
        policy: Policy = SCORE,
        number: int = 0,
        grammar: Any = None,
        ignore_eos: bool = True,
        salt: str | None = None,
    ) -> Produced:
        """One greedy sequence, on the engine's loop."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0,
            ignore_eos=ignore_eos,
            structured_outputs=grammar,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        with use_context(RequestContext(policy)) as call:
            last = None
            request = {"type": "token", "prompt_token_ids": prompt, **({} if salt is None else {"cache_salt": salt})}
            async for output in self.engine.generate(request, params, f"test-{number}-{id(call)}"):
                last = output
        assert last is not None
        tokens = list(last.outputs[0].token_ids)
        steps = last.outputs[0].logprobs  # None for what was withheld
        logprobs = [math.nan if step is None else step[t].logprob for step, t in zip(steps, tokens, strict=True)]
        return Produced(tokens, logprobs, call.verdicts.get(0))


def guarded(
    model: Path,
    bundle: Bundle,
    extra: Sequence[str],
    compiled: bool = False,
    relaxed: bool = False,
    worker: str | None = None,
) -> Harness:
    """A harness over a GuardedEngine; its self-test has passed. ``worker`` takes the place of the guard's own."""

    @asynccontextmanager
    async def start() -> AsyncIterator[GuardedEngine]:
        args = engine_arguments(model, "test", bundle, compiled, extra, relaxed, apart=True)
        args.worker_cls = worker or args.worker_cls
        async with guarded_engine(args, bundle, SCORE, slots=256) as engine:
            yield engine

    return Harness(start)


def plain(model: Path, bundle: Bundle, extra: Sequence[str], relaxed: bool = False) -> Harness:
    """A harness over vLLM itself with the same arguments: no worker, no taps, no probe."""

    @asynccontextmanager
    async def start() -> AsyncIterator[Any]:
        args = engine_arguments(model, "test", bundle, False, extra, relaxed)
        async with plain_engine(plain_arguments(args)) as engine:
            yield engine

    return Harness(start)
