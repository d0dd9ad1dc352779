"""Aborts, vanished clients, mixed scaling, cut and resumed answers: none leaks a slot or reaches another request."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from app.settings import ATLAS
from guard.engine.client import GuardedEngine
from guard.engine.prompt.salts import Salts
from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle
from guard.probe.signals import TokenSignals
from models.atlas.recipe.reference import Reader, signals_of
from models.atlas.recipe.trials import scaled
from tests.engine.harness import Harness, Produced, guarded
from tests.engine.test_parity import RELATIVE, cached_tokens, preemptions, signals

CHUNK, BLOCK = 96, 32
# Room for 64 sequences, but neither for all their prompts in one step nor for many long answers in the cache.
CROWDED = (
    f"--max-num-batched-tokens={CHUNK}",
    "--max-num-seqs=64",
    f"--block-size={BLOCK}",
    "--num-gpu-blocks-override=96",
    "--enable-prefix-caching",
)
# Strengths from 0 to 2, no two alike but those that are left alone.
SCALES = [1.0 if i % 9 == 4 else round(2 * i / 63, 4) for i in range(64)]
WAVE = 200
TOKENS = 16

_numbers = itertools.count()


@pytest.fixture(scope="module")
def crowded(atlas_bundle: Bundle) -> Iterator[Harness]:
    harness = guarded(ATLAS, atlas_bundle, CROWDED)
    yield harness
    harness.close()


@pytest.fixture(scope="module")
def short(prompts: list[list[int]]) -> list[list[int]]:
    return sorted(prompts, key=len)[:16]


@pytest.fixture(scope="module")
def alone(crowded: Harness, short: list[list[int]]) -> list[Produced]:
    """Every short prompt by itself, the cache cold."""
    return [cold(crowded, prompt, 1.0) for prompt in short]


@pytest.fixture(autouse=True)
def idle(crowded: Harness) -> Iterator[None]:
    """Every test starts with a cold cache, and leaves neither a claimed slot nor work in the engine."""
    crowded.run(until_idle(crowded.engine))
    yield
    crowded.run(until_idle(crowded.engine))


async def until_idle(engine: Any) -> None:
    """No slot is claimed, the client knows no request, and none holds a block of the scheduler's cache."""
    assert engine.pool.in_use == 0
    assert engine.get_num_unfinished_requests() == 0
    # An abort is a message to another process, which acts on it between two steps.
    async with asyncio.timeout(60):
        while not await engine.reset_prefix_cache():  # noqa: ASYNC110 - refused while a request holds a block
            await asyncio.sleep(0.02)


# -- requests that end early -------------------------------------------------------------------------------------------


def test_aborts_in_mid_stream(crowded: Harness, alone: list[Produced], short: list[list[int]]) -> None:
    storm = [leave(crowded.engine, short[i % 16], (1, 2, 3, 5, 8, 13)[i % 6]) for i in range(48)]
    assert_same(produced_beside(crowded, short, storm), alone)


def test_a_closed_stream_is_aborted_before_its_slot_is_free(crowded: Harness, short: list[list[int]]) -> None:
    """Not when the garbage collector comes by: what still ran could write into the slot's next claim."""
    engine = crowded.engine

    async def close() -> tuple[int, int]:
        stream = stream_of(engine, short[0])
        await anext(stream)
        await stream.aclose()
        return engine.pool.in_use, engine.get_num_unfinished_requests()

    assert crowded.run(close()) == (0, 0)


def test_consumers_that_vanish(crowded: Harness, alone: list[Produced], short: list[list[int]]) -> None:
    storm = [vanish(crowded.engine, short[i % 16], (0, 1, 4, 9)[i % 4]) for i in range(48)]
    assert_same(produced_beside(crowded, short, storm), alone)


# A slot that leaks with one abort in a thousand shows among the first; the ten thousand take half a minute.
@pytest.mark.parametrize("aborted", [2_000, pytest.param(10_000, marks=pytest.mark.long)])
def test_thousands_of_aborts_leak_no_slot(
    crowded: Harness, alone: list[Produced], short: list[list[int]], aborted: int
) -> None:
    engine, prompt = crowded.engine, short[0]

    async def wave() -> None:
        quarter = range(WAVE // 4)
        endings = [
            *(leave(engine, prompt, 0) for _ in quarter),  # never sent
            *(vanish(engine, prompt, 0) for _ in quarter),
            *(leave(engine, prompt, 1) for _ in quarter),
            *(vanish(engine, prompt, 1) for _ in quarter),
        ]
        await asyncio.gather(*endings)

    for _ in range(aborted // WAVE):
        crowded.run(wave())
        assert engine.pool.in_use == 0
    everything = engine.pool.claim(engine.pool.size)
    assert sorted(slot.index for slot in everything) == list(range(engine.pool.size))
    engine.pool.release(everything, finished=True)
    assert_same(crowded.produce(short, TOKENS), alone)


async def leave(engine: GuardedEngine, prompt: list[int], outputs: int) -> None:
    """Read so many outputs, then close the stream, as a route does whose client hung up."""
    async with aclosing(stream_of(engine, prompt)) as stream:
        for _ in range(outputs):
            await anext(stream)
            assert engine.pool.in_use > 0


async def vanish(engine: GuardedEngine, prompt: list[int], outputs: int) -> None:
    """Be cancelled while waiting for the output after so many, as a task is whose connection was lost."""
    waiting = asyncio.Event()

    async def consume() -> None:
        stream = stream_of(engine, prompt)
        for _ in range(outputs):
            await anext(stream)
        waiting.set()
        async for _ in stream:
            pass

    task = asyncio.create_task(consume())
    await waiting.wait()
    await asyncio.sleep(0)  # now it waits for the engine, with a slot
    assert engine.pool.in_use > 0
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def stream_of(engine: GuardedEngine, prompt: list[int]) -> Any:
    """A stream that would go on for long."""
    params = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    return engine.generate({"type": "token", "prompt_token_ids": prompt}, params, f"ends-early-{next(_numbers)}")


def produced_beside(
    harness: Harness, prompts: list[list[int]], storm: Sequence[Coroutine[Any, Any, None]]
) -> list[Produced]:
    """Answers to ``prompts`` while ``storm`` goes on."""

    async def rage() -> None:
        await asyncio.gather(*storm)

    with ThreadPoolExecutor(1) as beside:
        raging = beside.submit(harness.run, rage())
        produced = harness.produce(prompts, TOKENS)
        raging.result()
    return produced


# -- scaling beside scaling --------------------------------------------------------------------------------------------


def test_64_strengths_at_once(crowded: Harness, short: list[list[int]]) -> None:
    asked = [short[i % 8] for i in range(64)]
    wanted = [cold(crowded, prompt, scale) for prompt, scale in zip(asked, SCALES, strict=True)]
    assert all(difference(wanted[i], wanted[i + 8]) for i in range(56)), "the strength must show"
    crowded.run(until_idle(crowded.engine))
    assert_same(crowded.produce(asked, TOKENS, [at_scale(scale) for scale in SCALES]), wanted)


@pytest.mark.parametrize("order", [(0.0, 1.0), (1.0, 0.0)])
def test_twins_in_the_prefix_cache(crowded: Harness, prompts: list[list[int]], order: tuple[float, float]) -> None:
    prompt = max(prompts, key=len)
    assert len(prompt) > 2 * BLOCK
    wanted = {scale: cold(crowded, prompt, scale) for scale in order}
    crowded.run(until_idle(crowded.engine))
    hits = [cached_tokens()]
    for scale in (*order, *order):
        assert_same(crowded.produce([prompt], TOKENS, [at_scale(scale)]), [wanted[scale]])
        hits.append(cached_tokens())
    assert hits[0] == hits[1] == hits[2], "a twin finds nothing that it may use"
    assert hits[2] < hits[3] < hits[4], "each finds its own"


@pytest.mark.parametrize("how", ["as it is stored", "as it was made of what /v1/probe shows"])
def test_a_plain_request_with_a_scaled_one_s_salt(
    crowded: Harness, prompts: list[list[int]], atlas_bundle: Bundle, how: str
) -> None:
    prompt = max(prompts, key=len)
    request = {"type": "token", "prompt_token_ids": prompt}
    wanted = cold(crowded, prompt, 1.0)
    crowded.run(until_idle(crowded.engine))
    salt = crowded.engine.salts.salted(request, 0.0)["cache_salt"]
    if how != "as it is stored":
        salt = hashlib.sha256(f"|{atlas_bundle.card.tensors_sha256}|{0.0!r}".encode()).hexdigest()
    crowded.produce([prompt], TOKENS, [at_scale(0.0)])
    before = cached_tokens()
    assert_same(crowded.produce([prompt], TOKENS, salt=salt), [wanted])
    assert cached_tokens() == before, "it finds nothing of another's"


@pytest.mark.parametrize("order", [(0.0, 1.0), (1.0, 0.0)])
def test_without_the_salt_twins_contaminate_each_other(
    crowded: Harness, prompts: list[list[int]], order: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the test above would see a scaled request's keys and values in a plain one, and the reverse."""
    prompt = max(prompts, key=len)
    wanted = cold(crowded, prompt, order[1])
    crowded.run(until_idle(crowded.engine))
    monkeypatch.setattr(Salts, "salted", lambda self, prompt, scale: prompt)
    before = cached_tokens()
    _, second = [crowded.produce([prompt], TOKENS, [at_scale(scale)])[0] for scale in order]
    assert cached_tokens() > before
    assert difference(second, wanted)


# -- answers that are cut ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_chunks_cut_inside_given_answers(
    crowded: Harness, prompts: list[list[int]], reader: Reader, atlas_bundle: Bundle, scale: float
) -> None:
    answers = [prompts[(i + 1) % 50] + prompts[(i + 2) % 50] for i in range(24)]
    assert sum(len(answer) > CHUNK for answer in answers) >= 8, "longer than a chunk, so cut inside"
    given = measure_all(crowded, prompts[:24], answers, scale)
    wanted = read(reader, atlas_bundle, prompts[:24], answers, scale)
    assert [off(*pair, len(pair[1]["neurons"])) for pair in zip(given, wanted, strict=True)] == [None] * 24


def test_preempted_answers_are_replayed_in_chunks(
    crowded: Harness, prompts: list[list[int]], reader: Reader, atlas_bundle: Bundle
) -> None:
    """What a preempted answer had said is computed again, as if it were a prompt; scaled ones stay scaled."""
    length, scales = 112, [(1.0, 0.5)[i % 2] for i in range(32)]
    before = preemptions()
    produced = crowded.produce(prompts[:32], length, [at_scale(scale) for scale in scales])
    assert preemptions() >= before + 8, "the cache must be too small for this batch"
    for scale in (1.0, 0.5):
        rows = [i for i in range(32) if scales[i] == scale]
        wanted = read(reader, atlas_bundle, [prompts[i] for i in rows], [produced[i].tokens for i in rows], scale)
        found = [off(signals(produced[i]), expected, length - 1) for i, expected in zip(rows, wanted, strict=True)]
        assert found == [None] * len(rows)


def measure_all(
    harness: Harness, prompts: Sequence[list[int]], answers: Sequence[list[int]], scale: float
) -> list[TokenSignals]:
    """Given texts, all at once."""

    async def all_at_once() -> list[TokenSignals]:
        given = enumerate(zip(prompts, answers, strict=True))
        return await asyncio.gather(*(harness.engine.measure(p, a, scale, f"given-{i}") for i, (p, a) in given))

    return harness.run(all_at_once())


def read(
    reader: Reader, bundle: Bundle, prompts: Sequence[list[int]], answers: Sequence[list[int]], scale: float
) -> list[TokenSignals]:
    """The same by hooks on transformers, its neurons scaled too."""
    positive = bundle.coefficient > 0
    flat = bundle.layer.astype(np.int64) * bundle.card.model.neurons_per_layer + bundle.neuron
    # These hooks see |z| after scaling, the taps before it.
    coefficient = bundle.coefficient / np.where(positive, np.float32(scale), np.float32(1))
    with scaled(reader, flat[positive], scale):
        heads = bundle.tapped_heads
        readings = reader.read(prompts, answers, (bundle.layer, bundle.neuron), batch=8, heads=heads)
        return [signals_of(reading, coefficient, heads, bundle.measured) for reading in readings]


# -- all of it at once -------------------------------------------------------------------------------------------------


def test_each_of_32_clients_gets_the_scores_of_its_answer_alone(crowded: Harness, prompts: list[list[int]]) -> None:
    """Hang-ups, given texts, prefix hits, preemption and two strengths beside each other."""
    length, rng = 96, random.Random(7)
    asked = [*sorted(prompts, key=len)[-2:], *prompts[:2]]
    wanted = {(i, scale): cold(crowded, asked[i], scale, length) for i in range(len(asked)) for scale in (1.0, 0.5)}
    read = measure_all(crowded, asked, [wanted[i, 1.0].tokens for i in range(len(asked))], 1.0)
    crowded.run(until_idle(crowded.engine))
    before = preemptions(), cached_tokens()
    wrong: list[str] = []
    answered = 0

    async def client(number: int) -> None:
        nonlocal answered
        for turn in range(2):
            i, scale, kind = rng.randrange(len(asked)), rng.choice((1.0, 0.5)), rng.random()
            if kind < 0.25:
                await leave(crowded.engine, asked[i], rng.randrange(1, 60))
            elif kind < 0.4:
                given = await crowded.engine.measure(asked[i], wanted[i, 1.0].tokens, 1.0, f"mixed-{number}-{turn}")
                wrong.extend(filter(None, [off(given, read[i], length)]))
            else:
                got = await crowded.answer(asked[i], length, at_scale(scale))
                answered += 1
                if got.tokens != wanted[i, scale].tokens:
                    wrong.append(f"{got.tokens} is not {wanted[i, scale].tokens}")
                wrong.extend(filter(None, [off(signals(got), signals(wanted[i, scale]), length - 1)]))

    async def clients() -> None:
        await asyncio.gather(*(client(number) for number in range(32)))

    crowded.run(clients())
    assert wrong == []
    assert answered >= 32
    assert preemptions() > before[0], "the cache must be too small for this"
    assert cached_tokens() > before[1], "and some must find their prefix in it"


# -- what is compared --------------------------------------------------------------------------------------------------


def at_scale(scale: float) -> Policy:
    return Policy(Mode.SCORE, 0.5, scale=scale)


def cold(harness: Harness, prompt: list[int], scale: float, tokens: int = TOKENS) -> Produced:
    """One answer with nothing beside it and nothing cached."""
    harness.run(until_idle(harness.engine))
    (produced,) = harness.produce([prompt], tokens, [at_scale(scale)])
    return produced


def assert_same(got: list[Produced], wanted: list[Produced]) -> None:
    assert [one.tokens for one in got] == [one.tokens for one in wanted]
    assert [difference(*pair) for pair in zip(got, wanted, strict=True)] == [None] * len(wanted)


def difference(got: Produced, wanted: Produced) -> str | None:
    """The first signal in which two answers differ, None when they agree."""
    return off(signals(got), signals(wanted), TOKENS - 1)


def off(got: TokenSignals, wanted: TokenSignals, fed_back: int) -> str | None:
    """The first signal that is off by more than parity's tolerance; only ``fed_back`` tokens have their own score."""
    scale = RELATIVE * np.abs(np.append(wanted["neurons"][:fed_back], wanted.prompt_score)).max()
    assert np.isfinite(scale)
    for name, found, expected, slack in (
        ("lead", got.prompt_score, wanted.prompt_score, scale),
        ("neurons", got["neurons"][:fed_back], wanted["neurons"][:fed_back], scale),
        ("entropy", got["entropy"], wanted["entropy"], 1e-4),
        ("logprob", got["logprob"], wanted["logprob"], 1e-4),
    ):
        if not np.allclose(found, expected, rtol=RELATIVE, atol=slack):
            return f"{name}: {found} is not {expected}"
    return None
