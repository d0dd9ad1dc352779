"""vLLM's V2 model runner, the default on CUDA: here on the CPU, its own code throughout, its kernels interpreted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from app.settings import ATLAS
from guard.ipc.capture import CaptureParams
from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle
from guard.probe.signals import ALWAYS, TokenSignals
from guard.worker.batch import BatchParams, Step
from guard.worker.runners.v2 import GuardModelState, GuardSampler
from models.atlas.recipe.reference import Reader
from tests.engine.explained import assert_told_apart
from tests.engine.harness import SCORE, Harness, Produced, guarded, plain
from tests.engine.test_parity import (
    LENGTHS,
    RELATIVE,
    assert_measured,
    assert_plain_says,
    cached_tokens,
    preemptions,
    reference,
    signals,
)

# Chunks cut the longer prompts; the cache holds a few sequences only.
CONFIGURATION = (
    "--max-num-batched-tokens=64",
    "--max-num-seqs=16",
    "--block-size=32",
    "--num-gpu-blocks-override=18",
    "--enable-prefix-caching",
)

FEW = 5  # an interpreted kernel takes a thousand times what it takes compiled


@pytest.fixture(scope="module")
def interpreted() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "interpreted"))
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
        # This process made up its mind about Triton when it imported vLLM; it only checks the configuration.
        patch.setattr("vllm.config.vllm.HAS_TRITON", True)
        yield


@pytest.fixture(scope="module")
def v2(interpreted: None, headed: Bundle) -> Iterator[Harness]:
    harness = guarded(ATLAS, headed, CONFIGURATION)
    yield harness
    harness.close()


@pytest.fixture(scope="module")
def vanilla(interpreted: None, headed: Bundle) -> Iterator[Harness]:
    harness = plain(ATLAS, headed, CONFIGURATION)
    yield harness
    harness.close()


def test_it_is_the_v2_runner(v2: Harness) -> None:
    (report,) = v2.run(v2.engine.collective_rpc("hguard_report"))
    assert report.pop("probe")
    assert report == {"tapped": 4, "expected": 4, "runner": "V2"}


def test_scores(v2: Harness, prompts: list[list[int]], reader: Reader, headed: Bundle) -> None:
    assert max(map(len, prompts[:8])) > 64, "some prompts must be cut into chunks"
    produced = v2.produce(prompts[:8], LENGTHS[:8])
    assert_measured(produced, reference(reader, headed, prompts[:8], [one.tokens for one in produced]))


@pytest.fixture(scope="module")
def alone(v2: Harness, prompts: list[list[int]]) -> list[Produced]:
    produced = []
    for prompt, length in zip(prompts[:FEW], LENGTHS, strict=False):
        v2.run(v2.engine.reset_prefix_cache())
        produced += v2.produce([prompt], length)
    return produced


def test_neurons_are_told_apart(v2: Harness, prompts: list[list[int]], reader: Reader, headed: Bundle) -> None:
    assert_told_apart(v2, reader, headed, prompts[:3], LENGTHS[:3])


def test_preemption_and_prefix_hits(v2: Harness, prompts: list[list[int]], reader: Reader, headed: Bundle) -> None:
    before = preemptions(), cached_tokens()
    produced = v2.produce(prompts[:6], 48)
    assert preemptions() > before[0], "the cache must be too small for this batch"
    assert cached_tokens() > before[1], "who returns must find part of its own past"
    assert_measured(produced, reference(reader, headed, prompts[:6], [one.tokens for one in produced]))


def test_scaling_is_per_request(v2: Harness, alone: list[Produced], prompts: list[list[int]]) -> None:
    policies = [Policy(Mode.SCORE, 0.5, scale=0.0) if i % 2 else SCORE for i in range(FEW)]
    mixed = v2.produce(prompts[:FEW], LENGTHS[:FEW], policies)
    for one, wanted, policy in zip(mixed, alone, policies, strict=True):
        got, unscaled = signals(one), signals(wanted)
        if policy is SCORE:
            assert one.tokens == wanted.tokens
            np.testing.assert_allclose(got["neurons"], unscaled["neurons"], rtol=RELATIVE, atol=1e-4)
        else:
            assert not np.allclose(got.prompt_score, unscaled.prompt_score, rtol=RELATIVE)


def test_given_text(v2: Harness, alone: list[Produced], prompts: list[list[int]]) -> None:
    """Scored in chunks that end inside the answer, and beside each other."""

    async def measure_all() -> list[TokenSignals]:
        work = [
            v2.engine.measure(prompt, one.tokens, 1.0, f"given-{i}")
            for i, (prompt, one) in enumerate(zip(prompts, alone, strict=False))
        ]
        return await asyncio.gather(*work)

    assert any(len(p) < 64 < len(p) + len(one.tokens) for p, one in zip(prompts, alone, strict=False))
    for got, one in zip(v2.run(measure_all()), alone, strict=True):
        wanted = signals(one)
        assert np.isfinite(got["neurons"]).all()
        np.testing.assert_allclose(got.prompt_score, wanted.prompt_score, rtol=RELATIVE, atol=1e-4)
        np.testing.assert_allclose(got["neurons"][:-1], wanted["neurons"][:-1], rtol=RELATIVE, atol=1e-4)
        np.testing.assert_allclose(got["entropy"], wanted["entropy"], rtol=RELATIVE, atol=1e-4)
        np.testing.assert_allclose(got["logprob"], wanted["logprob"], rtol=RELATIVE, atol=1e-4)


def test_a_grammar_does_not_hide_the_model_s_own_doubt() -> None:
    """vLLM's grammar kernel cannot be interpreted, so by itself: measured before the mask, drawn behind it."""
    step = Step(BatchParams.of([CaptureParams(0, 1)], [1]), np.array([0]), np.array([1]))
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    exact = logits.log_softmax(-1)[0]

    def vllm_sampler(masked: torch.Tensor, input_batch: Any) -> Any:
        return SimpleNamespace(sampled_token_ids=masked.argmax(-1, keepdim=True))

    state = SimpleNamespace(step=step, table=SimpleNamespace(measured=ALWAYS))
    sampler = GuardSampler(vllm_sampler, cast(GuardModelState, state))
    sampler.keep_raw(logits)
    logits[0, 0] = -torch.inf
    sampler(logits, None)
    assert sampler.measured is not None
    entropy, logprob = sampler.measured.values()
    torch.testing.assert_close(entropy, -(exact.exp() * exact).sum()[None])
    torch.testing.assert_close(logprob, exact[1:2])


def test_no_slot_is_left_claimed(v2: Harness) -> None:
    assert v2.engine.pool.in_use == 0


def test_plain_vllm_says_the_same(vanilla: Harness, alone: list[Produced], prompts: list[list[int]]) -> None:
    assert_plain_says(vanilla, prompts, alone)
