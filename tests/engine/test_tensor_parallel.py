"""Two ranks: each reads the neurons that it holds, and together they measure what one does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from app.settings import ATLAS
from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle
from models.atlas.recipe.reference import Reader
from tests.engine.explained import assert_told_apart
from tests.engine.harness import Harness, guarded
from tests.engine.test_exchange import assert_read, exchange
from tests.engine.test_parity import LENGTHS, RELATIVE, assert_measured, reference


@pytest.fixture(scope="module")
def two_ranks(headed: Bundle) -> Iterator[Harness]:
    harness = guarded(ATLAS, headed, ["--tensor-parallel-size=2", "--max-num-batched-tokens=64", "--max-num-seqs=32"])
    yield harness
    harness.close()


def test_scores_of_two_ranks(two_ranks: Harness, prompts: list[list[int]], reader: Reader, headed: Bundle) -> None:
    reports = two_ranks.run(two_ranks.engine.collective_rpc("hguard_report"))
    assert [report["tapped"] for report in reports] == [4, 4]
    produced = two_ranks.produce(prompts[:16], LENGTHS[:16])
    assert_measured(produced, reference(reader, headed, prompts[:16], [one.tokens for one in produced]))


def test_given_text_on_two_ranks(two_ranks: Harness, prompts: list[list[int]]) -> None:
    (one,) = two_ranks.produce(prompts[:1], 16)
    given = two_ranks.run(two_ranks.engine.measure(prompts[0], one.tokens, 1.0, "given"))
    assert one.verdict is not None
    generated = one.verdict.signals
    assert generated is not None
    np.testing.assert_allclose(given["neurons"][:-1], generated["neurons"][:-1], rtol=RELATIVE, atol=1e-4)
    np.testing.assert_allclose(given["entropy"], generated["entropy"], rtol=RELATIVE, atol=1e-4)


def test_scaling_reaches_both_ranks(
    two_ranks: Harness, prompts: list[list[int]], reader: Reader, headed: Bundle
) -> None:
    from models.atlas.recipe.trials import scaled

    (one,) = two_ranks.produce(prompts[:1], 16, [Policy(Mode.SCORE, 0.5, scale=0.5)])
    assert one.verdict is not None
    got = one.verdict.signals
    assert got is not None
    flat = headed.layer.astype(np.int64) * headed.card.model.neurons_per_layer + headed.neuron
    with scaled(reader, flat[headed.coefficient > 0], 0.5):
        (wanted,) = reference(reader, headed, prompts[:1], [one.tokens])
    # Draws are those of the scaled model; its neuron scores are not comparable, the hooks see |z| after scaling.
    np.testing.assert_allclose(got["entropy"], wanted["entropy"], rtol=RELATIVE, atol=1e-4)
    np.testing.assert_allclose(got["logprob"], wanted["logprob"], rtol=RELATIVE, atol=1e-4)


def test_neurons_are_told_apart(two_ranks: Harness, prompts: list[list[int]], reader: Reader, headed: Bundle) -> None:
    assert_told_apart(two_ranks, reader, headed, prompts[:8], LENGTHS[:8])


def test_neurons_are_exchanged(
    two_ranks: Harness, prompts: list[list[int]], reader: Reader, headed: Bundle, other: Bundle
) -> None:
    """In place: each rank takes its own neurons."""
    for bundle in (other, headed):
        two_ranks.run(exchange(two_ranks.engine, bundle))
        assert_read(two_ranks, reader, bundle, prompts[:8])
