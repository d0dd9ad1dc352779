"""float16 on real engines: what is collected and scored, and a token over which the activations overflow.

bfloat16 and float16 of other families are in ``test_families``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from app.settings import ATLAS
from guard.engine.call import Unscored
from guard.engine.collecting import CollectingEngine, Sampled, Span, new_means
from guard.errors import FitError
from guard.fit.baselines import baselines
from guard.fit.engines import RealEngines
from guard.fit.material import Greedy, gather
from guard.fit.questions import Question, prompt_of
from guard.fit.reader import Reader
from guard.fit.span import find_span, token_offsets, tokens_of
from guard.fit.weights import norms_of
from guard.fit.workspace import Workspace
from guard.policy import Action, Mode, Policy
from guard.probe.bundle import Bundle
from models.atlas.recipe.questions import from_ledger, load_ledger
from tests.engine.half import References, assert_near, overflowing
from tests.engine.harness import SCORE, Harness, Produced, guarded
from tests.engine.test_families import LAYERS, NEURONS, SHAPE, random_bundle
from tests.engine.test_parity import signals

LONGEST, SLOTS, PROMPTS = 8, 8, 40
TIGHT = ("--max-num-batched-tokens=64", "--max-num-seqs=32")
OVERFLOW = r"not finite in float16, first in the MLP of layer 1: .*bfloat16 or float32.*what was done before is kept"


@dataclass(frozen=True)
class Model:
    """A checkpoint in float16, the same in transformers, and the token over which it overflows."""

    folder: Path
    bundle: Bundle
    exact: Reader
    rounded: Reader
    bomb: int
    questions: list[Question]
    prompts: list[list[int]]

    def over(self, number: int) -> list[int]:
        """A prompt in the middle of which the activations overflow."""
        prompt = self.prompts[number]
        return [*prompt[:-2], self.bomb, *prompt[-2:]]

    def whole(self, prompts: list[list[int]], answers: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """(float16, float32): mean CETT over answers, [answers, layers, neurons]."""
        made = []
        for reader in (self.rounded, self.exact):
            means = [one.mean for one in reader.read(prompts, answers)]
            made.append(np.stack(means).reshape(-1, LAYERS, NEURONS))
        return made[0], made[1]


@pytest.fixture(scope="module")
def model(reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder, tokenizer = tmp_path_factory.mktemp("float16"), reader.tokenizer
    questions = from_ledger(load_ledger(ATLAS), seed=7)[:PROMPTS]
    prompts = [prompt_of(tokenizer, one.text) for one in questions]
    bomb = overflowing(folder, SHAPE, prompts)
    exact, rounded = (
        Reader(LlamaForCausalLM.from_pretrained(folder, dtype=dtype), tokenizer)
        for dtype in (torch.float32, torch.float16)
    )
    return Model(folder, random_bundle(exact, folder), exact, rounded, bomb, questions, prompts)


def test_the_checkpoint_is_what_it_should_be(model: Model) -> None:
    assert model.bundle.card.model.dtype == "float16"
    np.testing.assert_array_equal(norms_of(model.folder, LAYERS, NEURONS), model.exact.norms.numpy())
    for reader, finite in ((model.exact, True), (model.rounded, False)):
        with torch.no_grad():
            assert reader.model(torch.tensor([model.over(0)])).logits[0, -1].isfinite().all() == finite


# -- collecting --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collecting(model: Model) -> Iterator[Harness]:
    harness = Harness(RealEngines(model.folder, "float16", SLOTS, extra=TIGHT).collecting)
    yield harness
    harness.close()


def greedy(
    harness: Harness, prompts: list[list[int]], folder: Path
) -> tuple[dict[int, Sampled], str | None, np.ndarray, np.ndarray]:
    """(answers by prompt, what ended it early, means, leads)."""
    paths = folder / "means.npy", folder / "leads.npy"
    for path in paths:
        new_means(path, len(prompts), LAYERS, NEURONS)

    async def run() -> tuple[dict[int, Sampled], str | None]:
        found: dict[int, Sampled] = {}
        try:
            async for index, answer in harness.engine.answer(prompts, range(len(prompts)), LONGEST, *paths):
                found |= {index: answer}
        except FitError as error:
            return found, str(error)
        return found, None

    found, error = harness.run(run())
    return found, error, np.load(paths[0]), np.load(paths[1])


def assert_collected(model: Model, numbers: list[int], found: dict[int, Sampled], means: np.ndarray) -> None:
    """The means of these prompts' answers, which lie in the same order, are transformers' in float16."""
    prompts = [model.prompts[number] for number in numbers]
    fed = [found[number].tokens[: None if found[number].ended else -1] for number in numbers]
    assert_near(means * model.exact.norms.numpy(), *model.whole(prompts, fed))


def test_greedy_answers_and_their_neurons(collecting: Harness, model: Model, tmp_path: Path) -> None:
    found, error, means, leads = greedy(collecting, model.prompts, tmp_path)
    assert error is None
    assert len(found) == PROMPTS > 2 * SLOTS
    assert {one.ended for one in found.values()} == {True, False}
    assert_collected(model, list(range(PROMPTS)), found, means)
    assert_near(leads * model.exact.norms.numpy(), *model.whole(model.prompts, [[]] * PROMPTS))


def test_greedy_answers_in_one_pass_are_what_two_find(collecting: Harness, model: Model, tmp_path: Path) -> None:
    """Sampled first, and collected then; but for rounding, which depends on what else is in a batch."""
    found, _, means, leads = greedy(collecting, model.prompts, tmp_path)

    async def sampled() -> dict[int, Sampled]:
        engine: CollectingEngine = collecting.engine
        return {index: one async for index, (one,) in engine.sample(model.prompts, 1, LONGEST, 0.0, 0)}

    said = collecting.run(sampled())
    spans = []
    for number, prompt in enumerate(model.prompts):
        one = said[number]
        assert (one.tokens, one.text, one.ended) == (found[number].tokens, found[number].text, found[number].ended)
        fed = one.tokens[: None if one.ended else -1]
        spans.append(
            (Span([*prompt, *fed], len(prompt), len(prompt) + len(fed)), Span(prompt, len(prompt), len(prompt)))
        )
    for name, which, got in (("two.npy", 0, means), ("lead.npy", 1, leads)):
        new_means(tmp_path / name, PROMPTS, LAYERS, NEURONS)
        for start in range(0, PROMPTS, SLOTS):
            part = [one[which] for one in spans[start : start + SLOTS]]
            collecting.run(collecting.engine.collect(part, range(start, start + len(part)), tmp_path / name))
        wanted = np.load(tmp_path / name)
        np.testing.assert_allclose(got, wanted, rtol=0.01, atol=1e-3 * wanted.max())


def test_an_answer_that_overflows_takes_no_other_along(collecting: Harness, model: Model, tmp_path: Path) -> None:
    prompts = [model.over(n) if n == 3 else model.prompts[n] for n in range(PROMPTS)]
    found, error, means, _ = greedy(collecting, prompts, tmp_path)
    assert error is not None
    assert "activations of 1 of" in error
    assert 0 < len(found) < PROMPTS
    assert 3 not in found
    kept = sorted(found)
    assert_collected(model, kept, found, means[kept])
    # What is left goes on where it stopped, in the same slots.
    rest = [n for n in range(PROMPTS) if n not in found and n != 3]
    (tmp_path / "again").mkdir()
    more, error, means, _ = greedy(collecting, [model.prompts[n] for n in rest], tmp_path / "again")
    assert error is None
    assert_collected(model, rest, {rest[i]: one for i, one in more.items()}, means)


def test_given_text_that_overflows(collecting: Harness, model: Model, tmp_path: Path) -> None:
    new_means(tmp_path / "means.npy", 4, LAYERS, NEURONS)
    new_means(tmp_path / "outputs.npy", 4, LAYERS, collecting.engine.hidden)
    spans = [Span(prompt, len(prompt) - 4, len(prompt)) for prompt in (*model.prompts[:3], model.over(3))]
    paths = tmp_path / "means.npy", tmp_path / "outputs.npy"
    with pytest.raises(FitError, match=f"activations of 1 of 4 answers are {OVERFLOW}"):
        collecting.run(collecting.engine.collect(spans, range(4), *paths))
    collected = [np.load(path)[:3] for path in paths]
    assert all(np.isfinite(one).all() for one in collected)
    collecting.run(collecting.engine.collect(spans[:3], range(3), *paths))
    for path, before in zip(paths, collected, strict=True):
        np.testing.assert_allclose(np.load(path)[:3], before, rtol=1e-2, atol=1e-3 * np.abs(before).max())


class Running:
    """The engine that runs already, in place of one that would be started."""

    def __init__(self, engine: CollectingEngine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def collecting(self) -> AsyncIterator[CollectingEngine]:
        yield self._engine

    def guarded(self, bundle: Bundle) -> None:
        raise AssertionError("baselines need no engine that serves")


def test_baselines(collecting: Harness, model: Model, tmp_path: Path) -> None:
    found, _, _, _ = greedy(collecting, model.prompts, tmp_path)
    answers = [
        Greedy(i, one.tokens, model.exact.tokenizer.decode(one.tokens, skip_special_tokens=True), i % 2 == 0)
        for i, one in sorted(found.items())
        if one.tokens
    ]
    work = Workspace(tmp_path / "work", {})
    gathered = gather(Running(collecting.engine), work, model.bundle, model.questions, answers, LONGEST, print)
    material, lengths = collecting.run(gathered)
    prompts, parts = [], []
    for one in answers:
        start, end = tokens_of(token_offsets(model.exact.tokenizer, one.tokens), find_span(one.text))
        prompts.append([*model.prompts[one.question], *one.tokens[:start]])
        parts.append(one.tokens[start:end])
    assert_near(material.means * model.exact.norms.numpy(), *model.whole(prompts, parts))
    exact, rounded = ([one.output for one in r.read(prompts, parts)] for r in (model.exact, model.rounded))
    assert_near(material.outputs.reshape(len(answers), -1), np.stack(rounded), np.stack(exact))
    assert len(lengths) == PROMPTS
    made = baselines(material)
    assert made.left_out == {}
    assert all(np.isfinite(values).all() for values in made.scores.values())


# -- serving -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serving(model: Model) -> Iterator[Harness]:
    """Its canary has passed."""
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
    for _ in range(2):  # what overflowed stays in the cache's memory, which others get
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


def test_draws_are_what_a_guarded_engine_measures(
    serving: Harness, collecting: Harness, model: Model, tmp_path: Path
) -> None:
    found, _, _, _ = greedy(collecting, model.prompts[:8], tmp_path)
    produced: list[Produced] = serving.produce(model.prompts[:8], LONGEST, ignore_eos=False)
    for number, one in enumerate(produced):
        said = found[number]
        assert one.tokens[: len(said.tokens)] == said.tokens
        wanted = signals(one)
        np.testing.assert_allclose(said.entropy, wanted.entropy, rtol=1e-2, atol=1e-2)
        np.testing.assert_allclose(said.logprob, wanted.logprob, rtol=1e-2, atol=1e-2)
