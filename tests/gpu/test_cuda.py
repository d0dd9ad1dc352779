"""On an NVIDIA GPU: atlas in bfloat16 on the V2 runner, CUDA graphs and asynchronous scheduling on.

Tolerances: bfloat16 keeps 8 bits, so scores of the engine and of transformers differ by up to a few per cent of the
largest; what must be exact (tokens, log-probabilities with and without the guard) is compared bit for bit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from app.settings import ATLAS
from guard.errors import TapError
from guard.fit.reader import Reader
from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle
from guard.probe.readout import Signals
from tests.engine.harness import SCORE, Harness, Produced, guarded, plain
from tests.engine.test_adversity import damped, read
from tests.engine.test_parity import LENGTHS, assert_plain_says, cached_tokens, reference, signals

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

BFLOAT16 = 0.03  # of the largest score of the answer
CONFIGURATION = (
    "--dtype=bfloat16",
    "--max-num-batched-tokens=64",
    "--max-num-seqs=64",
    "--gpu-memory-utilization=0.2",
    "--enable-prefix-caching",
)


@pytest.fixture(scope="module")
def cuda(atlas_bundle: Bundle) -> Iterator[Harness]:
    harness = guarded(ATLAS, atlas_bundle, CONFIGURATION, relaxed=True)
    yield harness
    harness.close()


@pytest.fixture(scope="module")
def vanilla(atlas_bundle: Bundle) -> Iterator[Harness]:
    harness = plain(ATLAS, atlas_bundle, CONFIGURATION, relaxed=True)
    yield harness
    harness.close()


@pytest.fixture(scope="module")
def bfloat16_reader() -> Reader:
    model = LlamaForCausalLM.from_pretrained(ATLAS, dtype=torch.bfloat16)
    return Reader(model, AutoTokenizer.from_pretrained(ATLAS))


@pytest.fixture(scope="module")
def alone(cuda: Harness, prompts: list[list[int]]) -> list[Produced]:
    produced = []
    for prompt, length in zip(prompts, LENGTHS, strict=True):
        cuda.run(cuda.engine.reset_prefix_cache())
        produced += cuda.produce([prompt], length)
    return produced


def assert_close(produced: list[Produced], reader: Reader, bundle: Bundle, prompts: list[list[int]]) -> None:
    assert_measured(produced, reference(reader, bundle, prompts, [one.tokens for one in produced]))


def assert_measured(produced: list[Produced], expected: list[Signals]) -> None:
    for one, wanted in zip(produced, expected, strict=True):
        got = signals(one)
        scale = np.abs(np.append(wanted.neurons, wanted.lead)).max()
        np.testing.assert_allclose(got.lead, wanted.lead, rtol=0, atol=BFLOAT16 * scale)
        np.testing.assert_allclose(got.neurons[:-1], wanted.neurons[:-1], rtol=0, atol=BFLOAT16 * scale)
        # What vLLM reports, by another path, from the same logits.
        np.testing.assert_allclose(got.logprob, one.logprobs, rtol=1e-4, atol=1e-4)


def test_nothing_was_switched_off(cuda: Harness) -> None:
    config = cuda.engine.vllm_config
    assert config.compilation_config.cudagraph_mode.name == "FULL_AND_PIECEWISE"
    assert config.scheduler_config.async_scheduling
    reports = cuda.run(cuda.engine.collective_rpc("hguard_report"))
    assert [(one["tapped"], one["expected"], one["runner"]) for one in reports] == [(4, 4, "V2")]


def test_alone(alone: list[Produced], prompts: list[list[int]], bfloat16_reader: Reader, atlas_bundle: Bundle) -> None:
    assert max(map(len, prompts)) > 64, "some prompts must be cut into chunks"
    assert_close(alone, bfloat16_reader, atlas_bundle, prompts)


def test_64_at_once(cuda: Harness, prompts: list[list[int]], bfloat16_reader: Reader, atlas_bundle: Bundle) -> None:
    many, lengths = (prompts * 2)[:64], (LENGTHS * 2)[:64]
    assert_close(cuda.produce(many, lengths), bfloat16_reader, atlas_bundle, many)


def test_prefix_hits(cuda: Harness, prompts: list[list[int]], bfloat16_reader: Reader, atlas_bundle: Bundle) -> None:
    longest = sorted(prompts, key=len)[-4:]
    cuda.produce(longest, 24)
    before = cached_tokens()
    again = cuda.produce(longest, 24)
    assert cached_tokens() > before
    assert_close(again, bfloat16_reader, atlas_bundle, longest)


def test_given_text(cuda: Harness, alone: list[Produced], prompts: list[list[int]]) -> None:
    async def measure_all() -> list[object]:
        work = [
            cuda.engine.measure(p, one.tokens, 1.0, f"given-{i}")
            for i, (p, one) in enumerate(zip(prompts, alone, strict=True))
        ]
        return await asyncio.gather(*work)

    for got, one in zip(cuda.run(measure_all()), alone, strict=True):
        wanted = signals(one)
        scale = np.abs(np.append(wanted.neurons[:-1], wanted.lead)).max()
        np.testing.assert_allclose(got.neurons[:-1], wanted.neurons[:-1], rtol=0, atol=BFLOAT16 * scale)


def test_damping_is_per_request(cuda: Harness, prompts: list[list[int]]) -> None:
    plain_run = cuda.produce(prompts[:16], LENGTHS[:16])
    policies = [Policy(Mode.SCORE, 0.5, damp=0.0) if i % 2 else SCORE for i in range(16)]
    mixed = cuda.produce(prompts[:16], LENGTHS[:16], policies)
    for one, undamped, policy in zip(mixed, plain_run, policies, strict=True):
        scale = np.abs(signals(undamped).neurons[:-1]).max()
        same = abs(signals(one).lead - signals(undamped).lead) <= BFLOAT16 * scale
        assert same == (policy is SCORE)


def test_dampened_answers_are_those_of_dampened_neurons(
    cuda: Harness, prompts: list[list[int]], bfloat16_reader: Reader, atlas_bundle: Bundle
) -> None:
    """Side by side with answers that are not; in transformers the same neurons are dampened."""
    damps = [(1.0, 0.5)[i % 2] for i in range(64)]
    many, lengths = (prompts * 2)[:64], (LENGTHS * 2)[:64]
    produced = cuda.produce(many, lengths, [damped(damp) for damp in damps])
    for damp in (1.0, 0.5):
        rows = [i for i in range(64) if damps[i] == damp]
        ran = [produced[i] for i in rows]
        wanted = read(bfloat16_reader, atlas_bundle, [many[i] for i in rows], [one.tokens for one in ran], damp)
        assert_measured(ran, wanted)


def test_no_slot_is_left_claimed(cuda: Harness) -> None:
    assert cuda.engine.pool.in_use == 0


def test_plain_vllm_says_the_same(vanilla: Harness, alone: list[Produced], prompts: list[list[int]]) -> None:
    """Graphs on: reading changes nothing, and a damp strength of 1 is exact."""
    assert_plain_says(vanilla, prompts, alone)


def test_the_canary_finds_that_taps_are_gone(atlas_bundle: Bundle) -> None:
    with pytest.raises(TapError, match="the taps do not answer"):
        guarded(ATLAS, atlas_bundle, CONFIGURATION, relaxed=True, worker="tests.gpu.workers.BlindWorker")
