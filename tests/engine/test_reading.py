"""Given text in pieces: which, how many rows at once, and that the engine measures the same as in one pass."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.engine import reading
from guard.engine.reading import Room, pieces, rows_of_call
from guard.probe.readout import Signals
from tests.engine.harness import Harness


@given(st.integers(0, 300), st.integers(1, 900), st.integers(1, 200), st.sampled_from([None, 2, 16, 32, 128]))
def test_pieces(first: int, answer: int, most: int, block: int | None) -> None:
    length = first + 1 + answer
    made = list(pieces(first, length, most, block))
    assert made[0][0] == first
    assert made[-1][1] == length
    for (start, end), (following, _) in pairwise(made):
        assert block is not None
        assert following == end - 1 > start
        assert end // block * block <= following, "no position that is measured may be cached"
    if block is not None:
        assert all(end - start <= max(most, block) + 1 for start, end in made)


def test_few_rows_on_a_large_vocabulary_and_many_on_a_small_one() -> None:
    assert rows_of_call(151_936) == 55
    assert rows_of_call(2048) == 4096
    assert rows_of_call(1 << 30) == 16


async def test_room_is_given_in_turn() -> None:
    room, entered = Room(10), []
    gates = [asyncio.Event() for _ in range(4)]

    async def work(number: int, rows: int) -> None:
        async with room.of(rows):
            entered.append(number)
            await gates[number].wait()

    async def settle() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(work(number, rows)) for number, rows in enumerate((6, 99, 3, 4))]
    await settle()
    assert entered == [0], "the second waits for all of it, and those after it for their turn"
    tasks[1].cancel()
    await settle()
    assert entered == [0, 2]
    gates[2].set()
    await settle()
    assert entered == [0, 2, 3]
    for gate in gates:
        gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(5), room.of(10):
        pass


def measured(harness: Harness, texts: list[tuple[list[int], list[int]]], damp: float) -> list[Signals]:
    async def all_at_once() -> list[Signals]:
        return await asyncio.gather(
            *(harness.engine.measure(prompt, answer, damp, f"given-{i}") for i, (prompt, answer) in enumerate(texts))
        )

    return harness.run(all_at_once())


def in_pieces(harness: Harness, monkeypatch: pytest.MonkeyPatch, rows: int) -> list[Any]:
    """Have so few rows at once; the seats of what the engine is then asked."""
    block = reading.rows_of_step(harness.engine.vllm_config)[1]
    assert block == 32
    asked: list[Any] = []
    inner = harness.engine._engine.generate

    def generate(prompt: Any, params: Any, name: str, **more: Any) -> Any:
        asked.append((params.extra_args["hguard"]["start"], len(prompt["prompt_token_ids"])))
        return inner(prompt, params, name, **more)

    monkeypatch.setattr(harness.engine._engine, "generate", generate)
    monkeypatch.setitem(harness.engine.__dict__, "_at_once", (rows, block))
    monkeypatch.setitem(harness.engine.__dict__, "_room", Room(rows))
    return asked


@pytest.mark.parametrize("damp", [1.0, 0.5])
def test_the_same_as_in_one_pass(
    tight: Harness, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, damp: float
) -> None:
    texts = [(prompts[i], (prompts[i + 1] * 40)[:length]) for i, length in enumerate((5, 64, 97, 200, 301))]
    whole = measured(tight, texts, damp)
    asked = in_pieces(tight, monkeypatch, 64)
    for _ in range(2):  # the second time, too, no position that is measured comes out of the cache
        for one, other in zip(measured(tight, texts, damp), whole, strict=True):
            assert np.isfinite(one.neurons).all()
            np.testing.assert_allclose(one.lead, other.lead, rtol=1e-4, atol=1e-5)
            for ours, wanted in (
                (one.neurons, other.neurons),
                (one.entropy, other.entropy),
                (one.logprob, other.logprob),
            ):
                np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-4)
    assert len(asked) > 2 * len(texts)
    assert all(end - start <= 65 for start, end in asked), "rows whose logits are computed, in whatever step"
    assert tight.engine.pool.in_use == 0
