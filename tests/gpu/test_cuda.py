"""On an NVIDIA GPU: atlas in bfloat16 on the V2 runner, CUDA graphs and asynchronous scheduling on.

Tolerance: ``tests.engine.half``. What must be exact (tokens, log-probabilities with and without the guard) is compared
bit for bit.
Without a GPU, `make test-long` rehearses all but graphs and kernels on the CPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaForCausalLM

from app.settings import ATLAS
from guard.errors import TapError
from guard.probe.bundle import Bundle
from guard.probe.signals import TokenSignals
from models.atlas.recipe.reference import Reader
from tests.engine.half import References
from tests.engine.harness import Harness, Produced, guarded, plain
from tests.engine.test_adversity import scaled
from tests.engine.test_parity import LENGTHS, assert_plain_says, cached_tokens

CUDA = torch.cuda.is_available()
pytestmark = [] if CUDA else [pytest.mark.long]

CONFIGURATION = (
    "--dtype=bfloat16",
    "--max-num-batched-tokens=64",
    "--max-num-seqs=64",
    "--block-size=32",
    "--enable-prefix-caching",
    *(["--gpu-memory-utilization=0.2"] if CUDA else []),
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
def references(reader: Reader, atlas_bundle: Bundle) -> References:
    rounded = LlamaForCausalLM.from_pretrained(ATLAS, dtype=torch.bfloat16)
    return References(reader, Reader(rounded, reader.tokenizer), atlas_bundle)


@pytest.fixture(scope="module")
def alone(cuda: Harness, prompts: list[list[int]]) -> list[Produced]:
    produced = []
    for prompt, length in zip(prompts, LENGTHS, strict=True):
        cuda.run(cuda.engine.reset_prefix_cache())
        produced += cuda.produce([prompt], length)
    return produced


@pytest.mark.skipif(not CUDA, reason="needs an NVIDIA GPU")
def test_nothing_was_switched_off(cuda: Harness) -> None:
    config = cuda.engine.vllm_config
    assert config.compilation_config.cudagraph_mode.name == "FULL_AND_PIECEWISE"
    assert config.scheduler_config.async_scheduling
    reports = cuda.run(cuda.engine.collective_rpc("hguard_report"))
    assert [(one["tapped"], one["expected"], one["runner"]) for one in reports] == [(4, 4, "V2")]


def test_alone(alone: list[Produced], prompts: list[list[int]], references: References) -> None:
    assert max(map(len, prompts)) > 64, "some prompts must be cut into chunks"
    references.hold(alone, prompts)


def test_64_at_once(cuda: Harness, prompts: list[list[int]], references: References) -> None:
    many, lengths = (prompts * 2)[:64], (LENGTHS * 2)[:64]
    references.hold(cuda.produce(many, lengths), many)


def test_prefix_hits(cuda: Harness, prompts: list[list[int]], references: References) -> None:
    longest = sorted(prompts, key=len)[-4:]
    cuda.produce(longest, 24)
    before = cached_tokens()
    again = cuda.produce(longest, 24)
    assert cached_tokens() > before
    references.hold(again, longest)


def test_given_text(cuda: Harness, alone: list[Produced], prompts: list[list[int]], references: References) -> None:
    async def measure_all() -> list[TokenSignals]:
        work = [
            cuda.engine.measure(p, one.tokens, 1.0, f"given-{i}")
            for i, (p, one) in enumerate(zip(prompts, alone, strict=True))
        ]
        return await asyncio.gather(*work)

    references.hold_signals(cuda.run(measure_all()), prompts, [one.tokens for one in alone])


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_scaling_is_per_request(cuda: Harness, prompts: list[list[int]], references: References, scale: float) -> None:
    """Every second answer is scaled, as the same neurons of transformers are; the others do not notice."""
    many, lengths = (prompts * 2)[:64], (LENGTHS * 2)[:64]
    produced = cuda.produce(many, lengths, [scaled((1.0, scale)[i % 2]) for i in range(64)])
    references.hold(produced[::2], many[::2])
    references.hold(produced[1::2], many[1::2], scale)
    with pytest.raises(AssertionError):
        references.hold(produced[1::2], many[1::2])


def test_no_slot_is_left_claimed(cuda: Harness) -> None:
    assert cuda.engine.pool.in_use == 0


def test_plain_vllm_says_the_same(vanilla: Harness, alone: list[Produced], prompts: list[list[int]]) -> None:
    """Graphs on: reading changes nothing, and a scale strength of 1 is exact."""
    assert_plain_says(vanilla, prompts, alone)


def test_the_canary_finds_that_taps_are_gone(atlas_bundle: Bundle) -> None:
    with pytest.raises(TapError, match="taps return no valid scores"):
        guarded(ATLAS, atlas_bundle, CONFIGURATION, relaxed=True, worker="tests.gpu.workers.BlindWorker")
