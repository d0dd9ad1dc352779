"""Serving in float16: a random checkpoint, and a token over which its activations overflow.

bfloat16 and float16 of other families are in ``test_families``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from guard.engine.context import Unscored
from guard.policy import Action, Mode, Policy
from guard.probe.cett import norms_of
from models.atlas.recipe.reference import Reader
from tests.engine.float16 import TIGHT, Model
from tests.engine.half import References
from tests.engine.harness import SCORE, Harness, guarded
from tests.engine.test_families import LAYERS, NEURONS

LONGEST = 8


@pytest.fixture(scope="module")
def model(reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.made(tmp_path_factory.mktemp("float16"), reader.tokenizer)


def test_the_checkpoint_is_what_it_should_be(model: Model) -> None:
    assert model.bundle.card.model.dtype == "float16"
    np.testing.assert_array_equal(norms_of(model.folder, LAYERS, NEURONS), model.exact.norms.numpy())
    for reader, finite in ((model.exact, True), (model.rounded, False)):
        with torch.no_grad():
            assert reader.model(torch.tensor([model.over(0)])).logits[0, -1].isfinite().all() == finite


@pytest.fixture(scope="module")
def serving(model: Model) -> Iterator[Harness]:
    """Its self-test has passed."""
    harness = guarded(model.folder, model.bundle, TIGHT)
    yield harness
    harness.close()


@pytest.fixture(scope="module")
def references(model: Model) -> References:
    return References(model.exact, model.rounded, model.bundle)


def test_scores(serving: Harness, model: Model, references: References) -> None:
    assert str(serving.engine.model_config.dtype) == "torch.float16", "as the bundle says"
    prompts = model.prompts[:16]
    produced = serving.produce(prompts, LONGEST)
    references.hold(produced, prompts)
    answers = [one.tokens for one in produced]
    given = [
        serving.run(serving.engine.measure(prompt, answer, 1.0, f"given-{n}"))
        for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    references.hold_signals(given, prompts, answers)


def test_what_overflows_is_not_scored_and_its_neighbours_are(
    serving: Harness, model: Model, references: References
) -> None:
    abstain = Policy(Mode.ABSTAIN, 1.0)
    prompts = [model.over(n) if n in (2, 5) else model.prompts[n] for n in range(12)]
    policies = [abstain if n == 5 else SCORE for n in range(12)]
    for _ in range(4):  # but for the first time in cache memory in which the first overflowed
        produced = serving.produce(prompts, LONGEST, policies)
        for number, action in ((2, Action.PASS), (5, Action.ABSTAINED)):
            verdict = produced[number].verdict
            assert verdict is not None
            assert (verdict.reason, verdict.risk, verdict.decision.action) == (Unscored.NOT_FINITE, None, action)
        others = [n for n in range(12) if n not in (2, 5)]
        references.hold([produced[n] for n in others], [prompts[n] for n in others])
        serving.run(serving.engine.reset_prefix_cache())


def test_given_text_that_overflows_is_not_scored(serving: Harness, model: Model) -> None:
    async def score(answer: list[int]) -> Unscored | None:
        return (await serving.engine.score(model.prompts[0], answer, SCORE, f"score-{answer}")).reason

    assert serving.run(score([5, 6, 7])) is None
    assert serving.run(score([5, model.bomb, 7])) is Unscored.NOT_FINITE
