"""CollectingEngine: sample answers in vLLM's batches, and collect what every neuron and layer does over given spans."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from guard.engine import seat
from guard.engine.client import one_pass
from guard.engine.ring import Slot
from guard.errors import TapError


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampled answer: its tokens without the one that ended it, its text, and whether it came to an end."""

    tokens: list[int]
    text: str
    ended: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Given text, and the tokens ``start`` (inclusive) to ``end`` (exclusive) of it that are averaged over."""

    tokens: Sequence[int]
    start: int
    end: int


class CollectingEngine:
    """Wraps an AsyncLLM whose worker collects; ``slots`` sequences are read at once."""

    def __init__(self, engine: Any, slots: int) -> None:
        self._engine, self._slots, self._number = engine, slots, 0

    @property
    def tokenizer(self) -> Any:
        return self._engine.get_tokenizer()

    async def sample(
        self, prompts: Sequence[list[int]], count: int, longest: int, temperature: float, seed: int, at_once: int = 128
    ) -> AsyncIterator[tuple[int, list[Sampled]]]:
        """``count`` answers to each prompt, in the order in which they are complete: (index, answers)."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        async def one(index: int) -> tuple[int, list[Sampled]]:
            params = SamplingParams(
                n=count,
                max_tokens=longest,
                temperature=temperature,
                seed=seed + index if temperature > 0 else None,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            last = None
            async for output in self._engine.generate(_prompt(prompts[index]), params, self._name()):
                last = output
            assert last is not None
            answers = []
            for completion in sorted(last.outputs, key=lambda completion: completion.index):
                ended = completion.finish_reason == "stop"
                tokens = list(completion.token_ids)
                answers.append(Sampled(tokens[:-1] if ended else tokens, completion.text, ended))
            return index, answers

        waiting = iter(range(len(prompts)))
        running = {asyncio.create_task(one(index)) for index in islice(waiting, at_once)}
        try:
            while running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                running |= {asyncio.create_task(one(index)) for index in islice(waiting, len(done))}
                for task in done:
                    yield task.result()
        finally:
            for task in running:
                task.cancel()

    @property
    def hidden(self) -> int:
        """How wide a layer's output is."""
        return int(self._engine.model_config.get_hidden_size())

    async def collect(
        self, spans: Sequence[Span], rows: Sequence[int], path: Path, outputs: Path | None = None
    ) -> None:
        """Put the mean of |z| / ||h|| over each span, and over the token before it, into its row of the array at
        ``path``: float32 [answers, layers, neurons]. At most ``slots`` spans; one forward pass over each text.

        Times a neuron's column norm this is its mean CETT. The token before the span is the one that it was drawn from.
        The mean of h goes into the array at ``outputs``, float32 [answers, layers, hidden], where one is given.
        """
        await asyncio.gather(*(self._read(span, slot) for slot, span in enumerate(spans)))
        written = (str(path), list(range(len(spans))), list(rows), None if outputs is None else str(outputs))
        for counted in await self._engine.collective_rpc("hguard_write", args=written):
            if counted < min(span.end - span.start + 1 for span in spans):
                raise TapError(
                    "the engine skipped tokens that were to be collected; report this with your vLLM options"
                )

    async def _read(self, span: Span, slot: int) -> None:
        params = one_pass(seat.pack([Slot(slot, 1)], 1.0, span.start - 1, draws=False))
        async for _ in self._engine.generate(_prompt(list(span.tokens[: span.end])), params, self._name()):
            pass

    def _name(self) -> str:
        self._number += 1
        return f"hguard-fit-{self._number}"


def new_means(path: Path, answers: int, layers: int, width: int) -> None:
    """Make an array for ``collect`` on disk; it is as large as it says, and never in memory as a whole."""
    made = np.lib.format.open_memmap(path, "w+", np.float32, (answers, layers, width))  # type: ignore[no-untyped-call]
    made.flush()


def _prompt(tokens: list[int]) -> dict[str, Any]:
    return {"type": "token", "prompt_token_ids": tokens}
