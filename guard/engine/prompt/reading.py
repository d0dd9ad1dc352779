"""Given text goes to the engine in pieces, so many rows at a time over all callers: what ``/risk`` is given, and what
a prompt holds of the assistant's turn.

Each of its tokens takes a row of logits, where a prompt takes one in all: on a large vocabulary a long text would be
hundreds of products with the output matrix inside one step, for which every answer waits. A piece finds what stands
before it in the prefix cache. Written against vLLM 0.32 (``v1/core/kv_cache_manager.py``; the same in 0.26).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.engine.prompt.salts import Salts
from guard.engine.traffic import OwnRequests, Purpose
from guard.errors import TapError
from guard.ipc import capture
from guard.ipc.rows import rows_of_step
from guard.ipc.score_table import ScoreTable, Slot
from guard.ipc.taps import TapConfig, by_neuron
from guard.probe.bundle import Bundle


def pieces(first: int, length: int, most: int, block: int | None) -> Iterator[tuple[int, int]]:
    """(first row, end of its tokens) of each piece of a text of ``length`` tokens whose rows count from ``first`` on.

    A piece ends one token into a block: what is cached of it then ends where the next one begins, whose rows must all
    be computed. That row is read twice, first without the token after it.
    """
    while block is not None and length - first > max(most, block):
        end = max((first + most) // block, first // block + 1) * block + 1
        if end >= length:
            break
        yield first, end
        first = end - 1
    yield first, length


class Room:
    """For so many rows; who comes later waits until all before him are in. For one event loop."""

    def __init__(self, rows: int) -> None:
        self._all = self._free = rows
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def of(self, rows: int) -> AsyncIterator[None]:
        """Room for ``rows``; all of it for more than there is."""
        rows = min(rows, self._all)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._free += rows
            self._admit()

    def _admit(self) -> None:
        while self._waiting and (self._waiting[0][1].cancelled() or self._waiting[0][0] <= self._free):
            rows, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._free -= rows
                turn.set_result(None)


def one_pass(packed: dict[str, Any]) -> SamplingParams:
    """Parameters of a request that reads given text: one forward pass, past the prefix cache, whose positions have no
    activations. ``packed`` is what the worker is told (``capture.pack``)."""
    return SamplingParams(
        max_tokens=1,  # the engine must draw something; it is thrown away
        temperature=0.0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_reading_prefix_cache=True,
        extra_args={capture.KEY: packed},
    )


class GivenText:
    """Reads given text through the engine, so many rows at a time over all callers."""

    def __init__(self, engine: Any, table: ScoreTable, salts: Salts, own: OwnRequests) -> None:
        self._engine, self._table, self._salts, self._own = engine, table, salts, own

    @cached_property
    def _at_once(self) -> tuple[int, int | None]:
        return rows_of_step(self._engine.vllm_config)

    @cached_property
    def _room(self) -> Room:
        return Room(self._at_once[0])

    async def read(
        self,
        prompt: Mapping[str, Any],
        start: int,
        slots: Sequence[Slot],
        scale: float,
        name: str,
        purpose: Purpose,
        draws: bool,
        apart: bool = False,
    ) -> None:
        """Leave in each of the slots what is measured on the prompt's tokens from position ``start`` on; with
        ``draws``, of the distributions behind them, too. ``apart``: as of ``CaptureParams``.

        Of the prefix cache no position is read that is measured (cached ones have no activations); what is written to
        it is plain, or salted. A long text goes through in pieces, which find each other there and nothing else.
        """
        ids, own, (first_slot, *others) = list(prompt["prompt_token_ids"]), secrets.token_hex(16), slots
        parts = list(pieces(start, len(ids), *self._at_once))
        for first, end in parts:
            params = one_pass(capture.pack([first_slot], scale, first, draws, apart))
            piece = {**prompt, "prompt_token_ids": ids[:end]}
            if len(parts) > 1:
                params.skip_reading_prefix_cache, piece["cache_salt"] = False, own
            async with self._room.of(end - first):
                async for _ in self._engine.generate(self._salts.salted(piece, scale), params, f"{name}-{end}"):
                    pass
            self._own.count(purpose, end)
        for slot in others:
            self._table.copy(first_slot, slot, start, len(ids))

    async def apart(
        self, prompt: Mapping[str, Any], start: int, slot: Slot, scale: float, name: str, bundle: Bundle
    ) -> NDArray[np.float64]:
        """What each of the bundle's neurons contributes to a score, on average over the prompt's tokens from position
        ``start`` on: float64 [k]. Raises TapError where the engine did not read all of them."""
        await self.read(prompt, start, [slot], scale, name, Purpose.EXPLANATION, draws=False, apart=True)
        args = slot.index, slot.generation
        counts, sums = zip(*await self._engine.collective_rpc("hguard_apart", args=args), strict=True)
        if set(counts) != {len(prompt["prompt_token_ids"]) - start}:
            raise TapError(f"the engine read {counts} of the positions that were to be explained")
        config = TapConfig.find(self._engine.vllm_config.additional_config)
        assert config is not None
        return by_neuron(bundle, config.layers, np.sum(sums, 0, dtype=np.float64) / counts[0])
