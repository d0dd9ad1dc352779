"""The guard changes nothing it should not, and measures what it says, batched, chunked, cached and preempted."""

from __future__ import annotations

import numpy as np
import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle
from guard.probe.signals import Source, TokenSignals, names
from models.atlas.recipe.reference import Reader, signals_of
from tests.engine.explained import assert_told_apart
from tests.engine.harness import SCORE, Harness, Produced

RELATIVE = 1e-3
LENGTHS = [8 + 3 * (i % 9) for i in range(50)]


def reference(reader: Reader, bundle: Bundle, prompts: list[list[int]], answers: list[list[int]]) -> list[TokenSignals]:
    """The same measurements by hooks on transformers, by brute force over every neuron and head of the probe."""
    heads = bundle.tapped_heads
    readings = reader.read(prompts, answers, (bundle.layer, bundle.neuron), batch=8, heads=heads)
    return [signals_of(reading, bundle.coefficient, heads, bundle.measured) for reading in readings]


def assert_measured(produced: list[Produced], expected: list[TokenSignals]) -> None:
    assert len(produced) == len(expected)
    for one, wanted in zip(produced, expected, strict=True):
        assert one.verdict is not None
        got = one.verdict.signals
        assert got is not None
        for name, before in wanted.last_prompt.items():
            # An answer that stops at a length limit never feeds its last token back.
            assert np.isnan(got[name][-1])
            near = {"rtol": RELATIVE, "atol": RELATIVE * np.abs(np.append(wanted[name], before)).max()}
            np.testing.assert_allclose(got.last_prompt[name], before, **near)
            np.testing.assert_allclose(got[name][:-1], wanted[name][:-1], **near)
        assert set(got.values) == set(wanted.values)
        for name in names(Source.DRAW, frozenset(wanted.values)):
            np.testing.assert_allclose(got[name], wanted[name], rtol=RELATIVE, atol=1e-4)
        # vLLM's own log-probabilities, by another path.
        np.testing.assert_allclose(got["logprob"], one.logprobs, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tight: Harness, prompts: list[list[int]]) -> list[Produced]:
    """Every prompt by itself, its own cache entries cold."""
    produced = []
    for prompt, length in zip(prompts, LENGTHS, strict=True):
        tight.run(tight.engine.reset_prefix_cache())
        produced += tight.produce([prompt], length)
    return produced


def test_alone(tight: Harness, alone: list[Produced], prompts: list[list[int]], reader: Reader, headed: Bundle) -> None:
    assert max(map(len, prompts)) > 64, "some prompts must be cut into chunks"
    assert_measured(alone, reference(reader, headed, prompts, [one.tokens for one in alone]))


def test_a_batch_of_32_of_mixed_lengths(
    tight: Harness, alone: list[Produced], prompts: list[list[int]], reader: Reader, headed: Bundle
) -> None:
    batch = tight.produce(prompts[:32], LENGTHS[:32])
    assert [one.tokens for one in batch] == [one.tokens for one in alone[:32]]
    assert_measured(batch, reference(reader, headed, prompts[:32], [one.tokens for one in batch]))


def test_prefix_cache_hits(tight: Harness, prompts: list[list[int]], reader: Reader, headed: Bundle) -> None:
    longest = sorted(prompts, key=len)[-4:]
    first = tight.produce(longest, 24)
    before = cached_tokens()
    second = tight.produce(longest, 24)
    assert cached_tokens() > before, "the second round must hit the cache"
    assert [one.tokens for one in second] == [one.tokens for one in first]
    assert_measured(second, reference(reader, headed, longest, [one.tokens for one in second]))


def test_preemption(tight: Harness, prompts: list[list[int]], reader: Reader, headed: Bundle) -> None:
    before = preemptions()
    produced = tight.produce(prompts[:32], 96)
    assert preemptions() > before, "the cache must be too small for this batch"
    assert_measured(produced, reference(reader, headed, prompts[:32], [one.tokens for one in produced]))


def test_scale_off_leaves_neighbours_unchanged(tight: Harness, alone: list[Produced], prompts: list[list[int]]) -> None:
    scaled = Policy(Mode.SCORE, 0.5, scale=0.0)
    policies = [scaled if i % 2 else SCORE for i in range(16)]
    mixed = tight.produce(prompts[:16], LENGTHS[:16], policies)
    for one, wanted, policy in zip(mixed, alone[:16], policies, strict=True):
        assert one.verdict is not None
        assert wanted.verdict is not None
        got, unscaled = one.verdict.signals, wanted.verdict.signals
        assert got is not None
        assert unscaled is not None
        if policy is SCORE:
            assert one.tokens == wanted.tokens
            np.testing.assert_allclose(got["neurons"], unscaled["neurons"], rtol=RELATIVE, atol=1e-4)
        else:
            assert not np.allclose(got.prompt_score, unscaled.prompt_score, rtol=RELATIVE)


def test_scaled_keys_do_not_reach_plain_requests(
    tight: Harness, alone: list[Produced], prompts: list[list[int]]
) -> None:
    i = max(range(50), key=lambda k: len(prompts[k]))
    tight.produce([prompts[i]], LENGTHS[i], [Policy(Mode.SCORE, 0.5, scale=0.0)])
    (plain,) = tight.produce([prompts[i]], LENGTHS[i])
    assert plain.verdict is not None
    assert alone[i].verdict is not None
    got, wanted = plain.verdict.signals, alone[i].verdict.signals
    assert got is not None
    assert wanted is not None
    np.testing.assert_allclose(got["neurons"], wanted["neurons"], rtol=RELATIVE, atol=1e-4)


def test_given_text_scores_as_it_did_when_generated(
    tight: Harness, alone: list[Produced], prompts: list[list[int]]
) -> None:
    for prompt, one in list(zip(prompts, alone, strict=True))[:12]:
        given = tight.run(tight.engine.measure(prompt, one.tokens, 1.0, f"given-{id(one)}"))
        assert one.verdict is not None
        generated = one.verdict.signals
        assert generated is not None
        assert np.isfinite(given["neurons"]).all()
        np.testing.assert_allclose(given.prompt_score, generated.prompt_score, rtol=RELATIVE, atol=1e-4)
        np.testing.assert_allclose(given["neurons"][:-1], generated["neurons"][:-1], rtol=RELATIVE, atol=1e-4)
        np.testing.assert_allclose(given["entropy"], generated["entropy"], rtol=RELATIVE, atol=1e-4)
        np.testing.assert_allclose(given["logprob"], generated["logprob"], rtol=RELATIVE, atol=1e-4)


def test_neurons_are_told_apart(tight: Harness, prompts: list[list[int]], reader: Reader, headed: Bundle) -> None:
    assert max(map(len, prompts[:32])) > 64, "some prompts must be cut into chunks"
    assert_told_apart(tight, reader, headed, prompts[:32], LENGTHS[:32])


def test_a_grammar_does_not_hide_the_model_s_own_doubt(
    tight: Harness, prompts: list[list[int]], reader: Reader, headed: Bundle
) -> None:
    """Entropy and log-probability are the model's own, measured before the grammar rules tokens out."""
    choices = ["Japan", "Germany"]
    (one,) = tight.produce(prompts[:1], 8, grammar=StructuredOutputsParams(choice=choices), ignore_eos=False)
    assert reader.tokenizer.decode(one.tokens, skip_special_tokens=True).strip() in choices
    (wanted,) = reference(reader, headed, prompts[:1], [one.tokens])
    got = signals(one)
    count = len(got)  # the token that ends the answer is not one of its own
    np.testing.assert_allclose(got["entropy"], wanted["entropy"][:count], rtol=RELATIVE, atol=1e-4)
    np.testing.assert_allclose(got["logprob"], wanted["logprob"][:count], rtol=RELATIVE, atol=1e-4)
    behind = np.array(one.logprobs[:count]) - got["logprob"]
    assert behind.min() > -1e-4
    assert behind.max() > 0.1, "what vLLM reports is measured behind the grammar"


def test_a_seeded_request_with_a_long_prompt(tight: Harness, prompts: list[list[int]]) -> None:
    """vLLM's CPU engine dies of one whose prompt is cut into chunks; ours lives on, and draws the same again."""

    async def draw(seed: int) -> list[int]:
        params = SamplingParams(
            max_tokens=12, temperature=1.0, seed=seed, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
        )
        prompt = {"type": "token", "prompt_token_ids": max(prompts, key=len)}
        async for output in tight.engine.generate(prompt, params, f"seeded-{seed}-{len(drawn)}"):
            last = output
        return list(last.outputs[0].token_ids)

    drawn: list[list[int]] = []
    for seed in (1, 2, 1):
        tight.run(tight.engine.reset_prefix_cache())
        drawn.append(tight.run(draw(seed)))
    assert len(max(prompts, key=len)) > 64
    assert drawn[0] == drawn[2] != drawn[1]


def test_no_slot_is_left_claimed(tight: Harness) -> None:
    assert tight.engine.pool.in_use == 0


def test_an_abandoned_request_frees_its_slot(tight: Harness, prompts: list[list[int]]) -> None:
    async def abandon() -> None:
        params = SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        prompt = {"type": "token", "prompt_token_ids": prompts[0]}
        stream = tight.engine.generate(prompt, params, "abandoned")
        async for _ in stream:
            assert tight.engine.pool.in_use == 1
            break
        await stream.aclose()

    tight.run(abandon())
    assert tight.engine.pool.in_use == 0


def test_plain_vllm_says_the_same(vanilla: Harness, alone: list[Produced], prompts: list[list[int]]) -> None:
    """Fifty greedy answers of vLLM without the guard."""
    assert_plain_says(vanilla, prompts, alone)


def assert_plain_says(vanilla: Harness, prompts: list[list[int]], guarded_said: list[Produced]) -> None:
    """The same first tokens, and the same log-probabilities bit for bit; each prompt by itself, nothing cached."""
    for prompt, one in zip(prompts, guarded_said, strict=False):
        vanilla.run(vanilla.engine.reset_prefix_cache())
        (plain,) = vanilla.produce([prompt], min(LENGTHS))
        assert plain.tokens == one.tokens[: min(LENGTHS)]
        assert plain.logprobs == one.logprobs[: min(LENGTHS)]


def _metric(name: str) -> float:
    from prometheus_client import REGISTRY

    return sum(s.value for family in REGISTRY.collect() for s in family.samples if s.name == name)


def preemptions() -> float:
    return _metric("vllm:num_preemptions_total")


def cached_tokens() -> float:
    return _metric("vllm:prefix_cache_hits_total")


def signals(one: Produced) -> TokenSignals:
    assert one.verdict is not None
    assert one.verdict.signals is not None
    return one.verdict.signals
