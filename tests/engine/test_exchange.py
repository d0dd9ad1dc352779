"""Neurons exchanged in a running engine: it then reads what an engine would that was started with the other probe."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.settings import ATLAS
from guard.compat import RefusalError
from guard.engine.context import RequestContext, use_context
from guard.errors import UnsupportedError
from guard.launch.engines import engine_arguments, guarded_engine, self_test_prompt
from guard.launch.retap import retap
from guard.launch.self_test import require_live_taps
from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle, save_bundle
from guard.probe.signals import TokenSignals
from models.atlas.recipe.reference import Reader, signals_of
from tests.engine.harness import SCORE, Harness
from tests.engine.test_parity import RELATIVE
from tests.measured import with_heads

ROOM = 48  # neurons of a layer
WIDTH = 256  # of atlas


@pytest.fixture(scope="module")
def roomy(headed: Bundle) -> Iterator[Harness]:
    def start() -> Any:
        args = engine_arguments(ATLAS, "atlas", headed, False, ["--enable-prefix-caching"], room=ROOM)
        return guarded_engine(args, headed, SCORE, 64)

    harness = Harness(start)
    yield harness
    harness.close()


async def exchange(engine: Any, bundle: Bundle) -> None:
    async with engine.traffic.paused(200):
        await retap(engine, bundle)
        await require_live_taps(engine, self_test_prompt(engine))


def scores(reader: Reader, bundle: Bundle, prompts: list[list[int]], answers: list[list[int]]) -> list[TokenSignals]:
    """What transformers finds of the probe's neurons and heads."""
    norms = reader.norms.numpy()[bundle.layer, bundle.neuron]
    weight = (bundle.folded / norms).astype(np.float32)
    found = reader.read(prompts, answers, (bundle.layer, bundle.neuron), heads=bundle.tapped_heads)
    return [signals_of(one, weight, bundle.tapped_heads) for one in found]


def assert_read(roomy: Harness, reader: Reader, bundle: Bundle, prompts: list[list[int]]) -> None:
    produced = roomy.produce(prompts, 12)
    answers = [one.tokens for one in produced]
    for one, expected in zip(produced, scores(reader, bundle, prompts, answers), strict=True):
        assert one.verdict is not None
        assert one.verdict.signals is not None
        for name in expected.last_prompt:
            got, wanted = one.verdict.signals[name][:-1], expected[name][:-1]
            np.testing.assert_allclose(got, wanted, rtol=RELATIVE, atol=RELATIVE * np.abs(wanted).max())


def test_the_other_neurons_are_read_and_scaled(
    roomy: Harness, reader: Reader, headed: Bundle, other: Bundle, prompts: list[list[int]]
) -> None:
    off = Policy(Mode.SCORE, 0.5, scale=0.0)
    assert_read(roomy, reader, headed, prompts[:8])
    before = roomy.produce(prompts[:8], 12, [off] * 8)
    roomy.run(exchange(roomy.engine, other))
    assert_read(roomy, reader, other, prompts[:8])
    between = roomy.produce(prompts[:8], 12, [off] * 8)
    assert [one.logprobs for one in between] != [one.logprobs for one in before], "others are switched off"
    roomy.run(exchange(roomy.engine, headed))
    assert_read(roomy, reader, headed, prompts[:8])
    after = roomy.produce(prompts[:8], 12, [off] * 8)
    assert [one.tokens for one in after] == [one.tokens for one in before], "prefixes of the other's are not found"


def test_it_waits_for_what_is_in_flight_and_what_comes_waits_for_it(
    roomy: Harness, headed: Bundle, other: Bundle, prompts: list[list[int]]
) -> None:
    engine = roomy.engine

    async def amid() -> None:
        long = asyncio.create_task(roomy.answer(prompts[0], 120))
        async with asyncio.timeout(200):
            while not engine.pool.in_use:  # noqa: ASYNC110 - the engine offers no event
                await asyncio.sleep(0.005)
        changing = asyncio.create_task(exchange(engine, other))
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in (long, changing))
        late = asyncio.create_task(roomy.answer(prompts[1], 4))
        first = await long
        assert not late.done()
        await changing
        assert engine.bundle is other
        assert first.verdict is not None
        assert len(first.tokens) == 120
        assert (await late).verdict is not None

    roomy.run(amid())
    roomy.run(exchange(engine, headed))


def test_a_request_whose_neurons_are_gone_is_refused(
    roomy: Harness, headed: Bundle, other: Bundle, prompts: list[list[int]]
) -> None:
    async def ask() -> None:
        from vllm.sampling_params import SamplingParams

        with use_context(RequestContext(SCORE, bundle=other)):
            prompt = {"type": "token", "prompt_token_ids": prompts[0]}
            async for _ in roomy.engine.generate(prompt, SamplingParams(max_tokens=4), "late"):
                pass

    with pytest.raises(RefusalError, match="exchanged as this request began; ask again"):
        roomy.run(ask())
    with pytest.raises(RefusalError, match="ask again"):
        roomy.run(roomy.engine.score(prompts[0], prompts[1], SCORE, "late", bundle=other))
    assert roomy.engine.pool.in_use == 0


def test_what_has_no_room_or_takes_too_long_changes_nothing(
    roomy: Harness, headed: Bundle, other: Bundle, prompts: list[list[int]], tmp_path: Path
) -> None:
    more = np.arange(ROOM + 1, dtype=np.int32)
    weight = np.ones(ROOM + 1, np.float32)
    tensors = {"layer": more * 0, "neuron": more, "coefficient": weight, "folded": weight, "usual": weight}
    wide = save_bundle(tmp_path, other.card, {**other.tensors, **tensors})
    said = rf"{ROOM + 1} neurons of a layer.*room for {ROOM}.*--probe-room {ROOM + 1} "
    with pytest.raises(UnsupportedError, match=said):
        roomy.run(exchange(roomy.engine, wide))
    foreign = replace(
        other,
        card=other.card.model_copy(update={"model": other.card.model.model_copy(update={"fingerprint": "0" * 64})}),
    )
    with pytest.raises(UnsupportedError, match="other weights"):
        roomy.run(exchange(roomy.engine, foreign))

    async def in_a_hurry() -> None:
        long = asyncio.create_task(roomy.answer(prompts[0], 120))
        await asyncio.sleep(0.02)
        with pytest.raises(UnsupportedError, match=r"after 0\.01 s 1 were not done"):
            async with roomy.engine.traffic.paused(0.01):
                raise AssertionError("an answer is in flight")
        assert len((await long).tokens) == 120

    roomy.run(in_a_hurry())
    assert roomy.engine.bundle is headed
    assert roomy.produce(prompts[:1], 4)[0].verdict is not None


def test_workers_that_fail_to_exchange_score_nothing_until_they_have(
    roomy: Harness, headed: Bundle, other: Bundle, prompts: list[list[int]]
) -> None:
    """Some of them may read one probe, and some the other: no answer may pass for scored."""
    engine, failing = roomy.engine, pytest.MonkeyPatch()

    async def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("a worker failed")

    failing.setattr(engine._engine, "collective_rpc", fails)
    with pytest.raises(RuntimeError, match="a worker failed"):
        roomy.run(exchange(engine, other))
    failing.undo()
    assert engine.bundle is headed
    with pytest.raises(RefusalError, match="restart the server"):
        roomy.produce(prompts[:1], 4)
    roomy.run(exchange(engine, headed))
    assert roomy.produce(prompts[:1], 4)[0].verdict is not None


def test_other_heads_are_read_and_none_where_a_probe_has_none(
    roomy: Harness, reader: Reader, atlas_bundle: Bundle, headed: Bundle, prompts: list[list[int]], tmp_path: Path
) -> None:
    roomy.run(exchange(roomy.engine, atlas_bundle))
    assert_read(roomy, reader, atlas_bundle, prompts[:4])
    roomy.run(exchange(roomy.engine, with_heads(headed, tmp_path, WIDTH, seed=6)))
    assert_read(roomy, reader, roomy.engine.bundle, prompts[:4])
    roomy.run(exchange(roomy.engine, headed))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"residual_layer": np.array([1, 2], np.int32)}, r"head on residual is of layers 1, 2, which .* does not read"),
        (
            {"attention_weight": np.ones((2, WIDTH - 1), np.float32)},
            r"head on attention is of layers 1, 3, .* in that size",
        ),
    ],
)
def test_a_head_elsewhere_or_of_another_width_changes_nothing(
    roomy: Harness, headed: Bundle, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(UnsupportedError, match=says):
        roomy.run(exchange(roomy.engine, save_bundle(tmp_path, headed.card, {**headed.tensors, **change})))
    assert roomy.engine.bundle is headed
