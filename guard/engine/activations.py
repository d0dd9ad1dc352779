"""CollectingEngine: sample answers in vLLM's batches, and collect what every neuron and layer does over given spans."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from guard import precision
from guard.engine.prompt.reading import one_pass
from guard.errors import FitError, TapError
from guard.ipc import capture
from guard.ipc.collecting import Part, Site, Table
from guard.ipc.score_table import ScoreTable, Slot
from guard.probe.signals import Source


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampled answer: its tokens without the one that ended it, its text, and whether it came to an end.

    draws: by name, the signals of each token's draw, where they were measured.
    """

    tokens: list[int]
    text: str
    ended: bool
    draws: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """Given text, and the tokens ``start`` (inclusive) to ``end`` (exclusive) of it that are averaged over."""

    tokens: Sequence[int]
    start: int
    end: int


class CollectingEngine:
    """Wraps an AsyncLLM whose worker collects; ``slots`` sequences are read at once. Draws are read from ``table``."""

    def __init__(self, engine: Any, slots: int, table: ScoreTable) -> None:
        self._engine, self._slots, self._table, self._number = engine, slots, table, 0

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
            answers = [_sampled(one) for one in sorted(last.outputs, key=lambda completion: completion.index)]
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

    async def answer(
        self,
        prompts: Sequence[list[int]],
        rows: Sequence[int],
        longest: int,
        files: Mapping[Table, Path],
        question: int | None = None,
    ) -> AsyncIterator[tuple[int, Sampled]]:
        """The greedy answer to each prompt, with what happened meanwhile: (index, answer), as they are kept.

        Row ``rows[index]`` of each array of ``files`` (``new_means`` made it, float32 [answers, layers, width]) gets
        the mean of what is at its site over its part of the sequence. A span is the last prompt token and those of the
        answer's tokens that were fed back: all, but for the last of an answer that was cut at ``longest``.
        ``question``: the position at which each prompt's question begins, where that part is kept.
        Raises FitError for activations that are not finite, once the other answers that are complete were given.
        """
        if any(part is Part.QUESTION for _, part in files):
            await self._engine.collective_rpc("hguard_question", args=(question,))
        free = list(range(self._slots))
        waiting = list(reversed(range(len(prompts))))
        running: dict[asyncio.Task[Sampled], tuple[int, int]] = {}
        done: list[tuple[int, int, Sampled]] = []  # (index, slot, answer), not written yet
        try:
            while running or waiting or done:
                while free and waiting:
                    index, slot = waiting.pop(), free.pop()
                    running[asyncio.create_task(self._answer(prompts[index], slot, longest))] = index, slot
                if running:
                    ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    done += [(*running.pop(task), task.result()) for task in ended]
                # Each write stops the engine for a moment: a quarter of the slots at once.
                if done and (len(done) >= self._slots // 4 or not running):
                    flawed = await self._keep(done, rows, files)
                    free += [slot for _, slot, _ in done]
                    for (index, _, answer), layer in zip(done, flawed, strict=True):
                        if layer < 0:
                            yield index, answer
                    self._require_finite(flawed)
                    done = []
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(
                *running, return_exceptions=True
            )  # out of the engine, before their slots are another's

    async def _answer(self, prompt: list[int], slot: int, longest: int) -> Sampled:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        name = self._name()
        claim = Slot(slot, self._number)  # a generation of its own: what an earlier answer left does not count
        params = SamplingParams(
            max_tokens=longest,
            temperature=0.0,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={capture.KEY: capture.pack([claim], 1.0)},
        )
        last = None
        async for output in self._engine.generate(_prompt(prompt), params, name):
            last = output
        assert last is not None
        answer = _sampled(last.outputs[0])
        measured = self._table.read(Source.DRAW, claim, len(prompt), len(prompt) + len(answer.tokens))
        return replace(answer, draws={name: values.tolist() for name, values in measured.items()})

    async def _keep(
        self, done: Sequence[tuple[int, int, Sampled]], rows: Sequence[int], files: Mapping[Table, Path]
    ) -> list[int]:
        slots, to = [slot for _, slot, _ in done], [rows[index] for index, _, _ in done]
        fed = [1 + len(answer.tokens) - (not answer.ended) for _, _, answer in done]
        counts, flawed = await self._write(slots, to, files)
        _require(all(counted == fed for counted in counts))
        return flawed

    async def _write(
        self, slots: list[int], rows: list[int], files: Mapping[Table, Path]
    ) -> tuple[list[list[int]], list[int]]:
        """How many positions each sequence counted, by rank; and of each the first layer that is not finite, or -1."""
        written = slots, rows, [(site, part, str(path)) for (site, part), path in files.items()]
        counts, flawed = zip(*await self._engine.collective_rpc("hguard_write", args=written), strict=True)
        first = [min((layer for layer in ranks if layer >= 0), default=-1) for ranks in zip(*flawed, strict=True)]
        return [list(counted) for counted in counts], first

    def _require_finite(self, flawed: Sequence[int]) -> None:
        layers = [layer for layer in flawed if layer >= 0]
        if layers:
            dtype = precision.name_of(self._engine.model_config.dtype)
            raise FitError(
                f"activations of {len(layers)} of {len(flawed)} answers are not finite in {dtype}, first in the MLP of "
                f"layer {min(layers)}: {precision.overflow(dtype)}; what was done before is kept"
            )

    def width(self, site: Site) -> int:
        """How many numbers a layer has at a site that is no neuron's."""
        config = self._engine.model_config
        if site is Site.ATTENTION:
            return int(config.hf_text_config.num_attention_heads * config.get_head_size())
        return int(config.get_hidden_size())

    async def collect(self, spans: Sequence[Span], rows: Sequence[int], files: Mapping[Table, Path]) -> None:
        """Put the mean over each span, and over the token before it, into its row of each array of ``files``: float32
        [answers, layers, width]. At most ``slots`` spans; one forward pass over each text.

        |z| / ||h|| times a neuron's column norm is its mean CETT. The token before the span is the one that it was
        drawn from. Raises FitError for activations that are not finite; the rows of other answers are written by then.
        """
        await asyncio.gather(*(self._read(span, slot) for slot, span in enumerate(spans)))
        counts, flawed = await self._write(list(range(len(spans))), list(rows), files)
        for counted in counts:
            _require(all(n >= span.end - span.start + 1 for n, span in zip(counted, spans, strict=True)))
        self._require_finite(flawed)

    async def _read(self, span: Span, slot: int) -> None:
        name = self._name()
        params = one_pass(capture.pack([Slot(slot, self._number)], 1.0, span.start - 1, draws=False))
        async for _ in self._engine.generate(_prompt(list(span.tokens[: span.end])), params, name):
            pass

    def _name(self) -> str:
        self._number += 1
        return f"hguard-fit-{self._number}"


def new_means(path: Path, answers: int, layers: int, width: int) -> None:
    """Make an array for ``collect`` on disk; it is as large as it says, and never in memory as a whole."""
    made = np.lib.format.open_memmap(path, "w+", np.float32, (answers, layers, width))  # type: ignore[no-untyped-call]
    made.flush()


def _sampled(completion: Any) -> Sampled:
    ended = completion.finish_reason == "stop"
    tokens = list(completion.token_ids)
    return Sampled(tokens[:-1] if ended else tokens, completion.text, ended)


def _require(counted: bool) -> None:
    if not counted:
        raise TapError("the engine skipped tokens that were to be collected; report this with your vLLM options")


def _prompt(tokens: list[int]) -> dict[str, Any]:
    return {"type": "token", "prompt_token_ids": tokens}
