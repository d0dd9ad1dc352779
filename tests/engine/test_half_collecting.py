"""Collecting in float16: a random checkpoint, and a token over which its activations overflow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from guard.engine.activations import CollectingEngine, Sampled, Span, new_means
from guard.errors import FitError
from guard.evaluation.baseline_data import SLOTS, Greedy, gather
from guard.evaluation.baselines import baselines
from guard.harness.activations import file_of
from guard.harness.engines import RealEngines
from guard.harness.questions import question_start
from guard.harness.store import StageStore
from guard.ipc.collecting import Part, Site, Table
from guard.judge.spans import find_span, token_offsets, tokens_of
from guard.probe.bundle import Bundle
from models.atlas.recipe.reference import Reader, stream
from tests.engine.float16 import PROMPTS, TIGHT, Model
from tests.engine.half import assert_near
from tests.engine.harness import Harness
from tests.engine.test_families import LAYERS, NEURONS

LONGEST = 8
MEANS, LEADS = (Site.NEURONS, Part.SPAN), (Site.NEURONS, Part.LAST_PROMPT)
OVERFLOW = r"not finite in float16, first in the MLP of layer 1: .*bfloat16 or float32.*what was done before is kept"

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def model(reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.made(tmp_path_factory.mktemp("float16"), reader.tokenizer)


@pytest.fixture(scope="module")
def collecting(model: Model) -> Iterator[Harness]:
    kept = {"sites": (Site.RESIDUAL, Site.ATTENTION, Site.BLOCK), "question": True}
    harness = Harness(RealEngines(model.folder, "float16", SLOTS, extra=TIGHT, **kept).collecting)
    yield harness
    harness.close()


def greedy(
    harness: Harness, prompts: list[list[int]], folder: Path
) -> tuple[dict[int, Sampled], str | None, Array, Array]:
    """(answers by prompt, what ended it early, means, leads)."""
    files = {table: folder / file_of(table) for table in (MEANS, LEADS)}
    for path in files.values():
        new_means(path, len(prompts), LAYERS, NEURONS)

    async def run() -> tuple[dict[int, Sampled], str | None]:
        found: dict[int, Sampled] = {}
        try:
            async for index, answer in harness.engine.answer(prompts, range(len(prompts)), LONGEST, files):
                found |= {index: answer}
        except FitError as error:
            return found, str(error)
        return found, None

    found, error = harness.run(run())
    return found, error, np.load(files[MEANS]), np.load(files[LEADS])


def assert_collected(model: Model, numbers: list[int], found: dict[int, Sampled], means: Array) -> None:
    """The means of these prompts' answers, which lie in the same order, are transformers' in float16."""
    prompts = [model.prompts[number] for number in numbers]
    fed = [found[number].tokens[: None if found[number].ended else -1] for number in numbers]
    assert_near(means * model.exact.norms.numpy(), *model.whole(prompts, fed))


def test_greedy_answers_and_their_neurons(collecting: Harness, model: Model, tmp_path: Path) -> None:
    found, error, means, leads = greedy(collecting, model.prompts, tmp_path)
    assert error is None
    assert len(found) == PROMPTS > SLOTS
    assert {one.ended for one in found.values()} == {True, False}
    assert_collected(model, list(range(PROMPTS)), found, means)
    assert_near(leads * model.exact.norms.numpy(), *model.whole(model.prompts, [[]] * PROMPTS))
    answers = [found[number].tokens for number in range(PROMPTS)]
    for name in ("entropy", "logprob"):
        exact, rounded = (
            np.concatenate([getattr(one, name) for one in reader.read(model.prompts, answers)])
            for reader in (model.exact, model.rounded)
        )
        got = np.concatenate([found[number].draws[name] for number in range(PROMPTS)]).astype(np.float32)
        assert_near(got, rounded, exact)


@torch.no_grad()
def states(reader: Reader, prompts: list[list[int]], fed: list[list[int]], begins: int) -> dict[Table, Array]:
    """Means that transformers finds, [answers, layers, width]: of what attention is given, of what it puts out, and of
    what each layer returns."""
    found: dict[Table, list[list[torch.Tensor]]] = {}
    for prompt, answer in zip(prompts, fed, strict=True):
        seen: dict[Site, list[torch.Tensor]] = {Site.RESIDUAL: [], Site.ATTENTION: [], Site.BLOCK: []}
        hooks = []
        for layer in reader.model.model.layers:
            for site, module in ((Site.RESIDUAL, layer.self_attn.q_proj), (Site.ATTENTION, layer.self_attn.o_proj)):
                keep = seen[site].append
                hooks.append(module.register_forward_pre_hook(lambda _, given, keep=keep: keep(given[0][0].float())))
            keep = seen[Site.BLOCK].append
            hooks.append(layer.register_forward_hook(lambda *told, keep=keep: keep(stream(told[2])[0].float())))
        reader.model(torch.tensor([[*prompt, *answer]]))
        for hook in hooks:
            hook.remove()
        last = len(prompt) - 1
        places = {Part.SPAN: slice(last, None), Part.LAST_PROMPT: slice(last, last + 1)}
        for part, place in (*places.items(), (Part.QUESTION, slice(begins, last + 1))):
            for site, layers in seen.items():
                found.setdefault((site, part), []).append([one[place].mean(0) for one in layers])
    return {table: torch.stack([torch.stack(one) for one in rows]).numpy() for table, rows in found.items()}


def test_states_of_answers_and_questions(collecting: Harness, model: Model, tmp_path: Path) -> None:
    """In chunks of 64 tokens, beside other sequences: as transformers has them, of each prompt by itself."""
    begins, prompts = question_start(model.exact.tokenizer), model.prompts[:12]
    assert 0 < begins < min(map(len, prompts)) - 1
    files = {
        (site, part): tmp_path / file_of((site, part)) for site in Site if site is not Site.OUTPUT for part in Part
    }
    for (site, _), path in files.items():
        width = NEURONS if site is Site.NEURONS else collecting.engine.width(site)
        new_means(path, len(prompts), LAYERS, width)

    async def answers() -> dict[int, Sampled]:
        engine: CollectingEngine = collecting.engine
        return {i: one async for i, one in engine.answer(prompts, range(len(prompts)), LONGEST, files, begins)}

    found = collecting.run(answers())
    fed = [found[i].tokens[: None if found[i].ended else -1] for i in range(len(prompts))]
    exact, rounded = (states(reader, prompts, fed, begins) for reader in (model.exact, model.rounded))
    for table in rounded:
        assert_near(np.load(files[table]), rounded[table], exact[table])
    asked = np.load(files[Site.NEURONS, Part.QUESTION]) * model.exact.norms.numpy()
    whole = model.whole([prompt[: begins + 1] for prompt in prompts], [prompt[begins + 1 :] for prompt in prompts])
    assert_near(asked, *whole)


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
            collecting.run(collecting.engine.collect(part, range(start, start + len(part)), {MEANS: tmp_path / name}))
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
    new_means(tmp_path / "outputs.npy", 4, LAYERS, collecting.engine.width(Site.OUTPUT))
    spans = [Span(prompt, len(prompt) - 4, len(prompt)) for prompt in (*model.prompts[:3], model.over(3))]
    files = {table: tmp_path / file_of(table) for table in (MEANS, (Site.OUTPUT, Part.SPAN))}
    with pytest.raises(FitError, match=f"activations of 1 of 4 answers are {OVERFLOW}"):
        collecting.run(collecting.engine.collect(spans, range(4), files))
    collected = [np.load(path)[:3] for path in files.values()]
    assert all(np.isfinite(one).all() for one in collected)
    collecting.run(collecting.engine.collect(spans[:3], range(3), files))
    for path, before in zip(files.values(), collected, strict=True):
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
    work = StageStore(tmp_path / "work", {})
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
