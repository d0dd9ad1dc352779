"""Given text in pieces: which, how many rows at once, and that the engine measures the same as in one pass."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams

from guard.engine.context import RequestContext, use_context
from guard.engine.prompt.reading import Room, pieces
from guard.ipc.rows import rows_of_call, rows_of_step
from guard.policy import Mode, Policy
from guard.probe.signals import TokenSignals
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


def measured(harness: Harness, texts: list[tuple[list[int], list[int]]], scale: float) -> list[TokenSignals]:
    async def all_at_once() -> list[TokenSignals]:
        return await asyncio.gather(
            *(harness.engine.measure(prompt, answer, scale, f"given-{i}") for i, (prompt, answer) in enumerate(texts))
        )

    return harness.run(all_at_once())


def in_pieces(harness: Harness, monkeypatch: pytest.MonkeyPatch, rows: int) -> list[Any]:
    """Have so few rows at once; the seats of what the engine is then asked."""
    block = rows_of_step(harness.engine.vllm_config)[1]
    assert block == 32
    asked: list[Any] = []
    inner = harness.engine._engine.generate

    def generate(prompt: Any, params: Any, name: str, **more: Any) -> Any:
        asked.append((params.extra_args["hguard"]["start"], len(prompt["prompt_token_ids"])))
        return inner(prompt, params, name, **more)

    monkeypatch.setattr(harness.engine._engine, "generate", generate)
    monkeypatch.setitem(harness.engine._given_text.__dict__, "_at_once", (rows, block))
    monkeypatch.setitem(harness.engine._given_text.__dict__, "_room", Room(rows))
    return asked


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_same_as_in_one_pass(
    tight: Harness, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    texts = [(prompts[i], (prompts[i + 1] * 40)[:length]) for i, length in enumerate((5, 64, 97, 200, 301))]
    whole = measured(tight, texts, scale)
    asked = in_pieces(tight, monkeypatch, 64)
    for _ in range(2):  # the second time, too, no position that is measured comes out of the cache
        for one, other in zip(measured(tight, texts, scale), whole, strict=True):
            assert np.isfinite(one["neurons"]).all()
            np.testing.assert_allclose(one.prompt_score, other.prompt_score, rtol=1e-4, atol=1e-5)
            for ours, wanted in (
                (one["neurons"], other["neurons"]),
                (one["entropy"], other["entropy"]),
                (one["logprob"], other["logprob"]),
            ):
                np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-4)
    assert len(asked) > 2 * len(texts)
    assert all(end - start <= 65 for start, end in asked), "rows whose logits are computed, in whatever step"
    assert tight.engine.pool.in_use == 0


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_turn_that_goes_on_is_read_as_given_text_is(
    tight: Harness, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """So many rows at once, whatever a caller puts into the assistant's mouth, and for each of n answers."""
    said = [token for prompt in prompts[1:9] for token in prompt if token > 10][:150]
    kept = tight.engine.readout
    longest = Noting(kept)
    monkeypatch.setattr(tight.engine, "readout", longest)

    async def go_on(n: int) -> tuple[list[list[int]], list[float]]:
        params = SamplingParams(n=n, max_tokens=6, temperature=1.0, seed=3, ignore_eos=True)
        answers: dict[int, list[int]] = {}
        with use_context(RequestContext(Policy(Mode.SCORE, 0.5, scale))) as call:
            request = {"type": "token", "prompt_token_ids": [*prompts[0], *said]}
            async for output in tight.engine.generate(request, params, f"goes-on-{n}"):
                answers |= {one.index: list(one.token_ids) for one in output.outputs}
        return [answers[i] for i in range(n)], [call.verdicts[i].risk for i in range(n)]  # type: ignore[misc]

    asked = in_pieces(tight, monkeypatch, 64)
    for n in (1, 3):
        asked.clear()
        answers, risks = tight.run(go_on(n))
        assert longest.length == len(said) + 6, "the turn is scored as a whole"
        starts = [(start, end) for start, end in asked if start is not None]
        assert len(starts) > 2
        assert starts[0][0] == len(prompts[0]) - 1
        assert all(end - start <= 65 for start, end in starts)
        assert [start for start, _ in asked].count(None) == 1, "the answers themselves"
        for answer, risk in zip(answers, risks, strict=True):
            signals = measured(tight, [(prompts[0], [*said, *answer])], scale)[0]
            signals["neurons"][-1] = np.nan  # of an answer that was cut
            assert risk == pytest.approx(kept.risk(signals)[0], rel=1e-3)
    assert tight.engine.pool.in_use == 0


class Noting:
    """A readout that notes how many tokens it was last asked about."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.length = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def risk(self, signals: TokenSignals, before: int = 0) -> Any:
        self.length = len(signals)
        return self.inner.risk(signals, before)
