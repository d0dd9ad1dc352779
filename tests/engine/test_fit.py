"""A whole fit on real engines, stopped on the way; what is collected inside vLLM is what transformers computes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from app.settings import ATLAS
from guard.engine.activations import CollectingEngine
from guard.errors import FitError
from guard.harness.activations import LEADS, MEANS
from guard.harness.answers import Example
from guard.harness.engines import RealEngines
from guard.harness.generation import ANSWERED
from guard.harness.store import StageStore
from guard.ipc.collecting import site_of
from guard.judge.question import Question
from guard.probe.bundle import Bundle, load_bundle
from guard.probe.cett import norms_of
from guard.probe.identity import identify
from guard.probe.signals import Source, TokenSignals, names
from guard.training import pipeline
from guard.training.config import CalibrationConfig, FitConfig
from guard.training.examples import ANSWERS, CHOSEN, SAMPLES, DataSplit
from guard.training.pipeline import FOUND, SHARES, Fit, whole
from guard.training.recalibration import recalibrate, unseen
from guard.training.selection import MEASURED, SUPPRESSED
from models.atlas.recipe.questions import from_ledger, load_ledger
from models.atlas.recipe.reference import Reader

OPTIONS = FitConfig(
    samples=2,
    max_tokens=16,
    slots=24,
    ablation_questions=40,
    signals="margin,top_mass,residual,attention,block,distance",
)
# Prompts and answers are cut into chunks, and 24 sequences do not fit into the cache at once.
TIGHT = ("--max-num-batched-tokens=64", "--block-size=32", "--num-gpu-blocks-override=20", "--max-num-seqs=64")


class StopError(Exception):
    """What Ctrl-C is to a person."""


class Engines(RealEngines):
    """Counts what is asked of them, and stops when answers are kept for the second time."""

    sampled = kept = guarded_starts = 0
    answered: ClassVar[list[int]] = []
    stop_at = 2

    @asynccontextmanager
    async def collecting(self) -> AsyncIterator[CollectingEngine]:
        async with super().collecting() as engine:
            sample, answer, keep = engine.sample, engine.answer, engine._keep

            def sampled(prompts: Any, *args: Any, **kwargs: Any) -> Any:
                Engines.sampled += len(prompts)
                return sample(prompts, *args, **kwargs)

            def answered(prompts: Any, *args: Any, **kwargs: Any) -> Any:
                Engines.answered.append(len(prompts))
                return answer(prompts, *args, **kwargs)

            async def stopped(*args: Any) -> Any:
                Engines.kept += 1
                if Engines.kept == Engines.stop_at:
                    raise StopError
                return await keep(*args)

            engine.sample, engine.answer, engine._keep = sampled, answered, stopped  # type: ignore[method-assign]
            yield engine

    def guarded(self, bundle: Bundle) -> Any:
        Engines.guarded_starts += 1
        return super().guarded(bundle)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    everything = from_ledger(load_ledger(ATLAS), seed=11)
    return [q for q in everything if "places" in q.groups or "languages" in q.groups][:360]


@pytest.fixture(scope="module")
def few_candidates() -> Iterator[None]:
    """Each takes an engine; a third would be treated as the second is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "CANDIDATES", 2)
        yield


@pytest.fixture(scope="module")
def fitted(
    questions: list[Question], tmp_path_factory: pytest.TempPathFactory, few_candidates: None
) -> tuple[Bundle, Path]:
    folder = tmp_path_factory.mktemp("fit")
    identity = identify(ATLAS, "atlas", "vllm-cpu")
    norms = norms_of(ATLAS, identity.layers, identity.neurons_per_layer)
    engines = Engines(ATLAS, identity.dtype, OPTIONS.slots, extra=TIGHT, sites=OPTIONS.sites, measured=OPTIONS.measured)

    def run() -> Bundle:
        work = StageStore(folder / "work", {"seed": 0})
        # The whole answer is its span, as for the reference.
        fit = Fit(work, questions, identity, norms, OPTIONS, "test", locate=lambda text: (0, len(text)))
        return asyncio.run(fit.run(engines, folder / "probe"))

    with pytest.raises(StopError):
        run()
    assert (Engines.answered, Engines.kept) == ([len(questions)], 2)
    return run(), folder / "work"


def test_nothing_is_done_twice(fitted: tuple[Bundle, Path], questions: list[Question]) -> None:
    _, folder = fitted
    work = StageStore(folder, {"seed": 0})
    chosen = work.rows(CHOSEN)
    answers = work.rows(ANSWERS)
    first, again = Engines.answered
    assert first == len(questions)
    assert OPTIONS.slots // 4 <= first - again < OPTIONS.slots, "what was kept before the stop is not answered again"
    assert sorted(row["question"] for row in answers) == list(range(len(questions)))
    data = DataSplit.of(questions, [Example(**row) for row in chosen], SHARES, OPTIONS.seed)
    train = [row for part, rows in data.parts.items() if part == "train" for row in rows]
    assert Engines.sampled == len(work.rows(SAMPLES)) >= len(train) > 0, "only training questions are sampled"
    assert all(row["certain"] for i, row in enumerate(chosen) if i in train)
    candidates = work.read_json(FOUND)
    assert Engines.guarded_starts == (len(candidates) + 1 if len(candidates) > 1 else 1)
    if len(candidates) > 1:
        right = work.read_json(SUPPRESSED)
        assert sorted(right) == sorted(f"{row['C']:g}" for row in candidates)
        assert all(0 < count <= OPTIONS.ablation_questions for count in right.values())


def test_collected_means_are_transformers_s(fitted: tuple[Bundle, Path], reader: Reader) -> None:
    _, folder = fitted
    chosen = [Example(**row) for row in StageStore(folder, {"seed": 0}).rows(CHOSEN)]
    asked = [one.question for one in chosen]
    collected = np.load(folder / MEANS)[asked] * norms_of(ATLAS, *reader.norms.shape)
    # The last token of an answer that was cut was never fed back.
    fed = [one.tokens if one.ended else one.tokens[:-1] for one in chosen]
    readings = list(reader.read([one.prompt for one in chosen], fed))
    wanted = np.stack([reading.mean for reading in readings]).reshape(collected.shape)
    assert len(chosen) > 100
    np.testing.assert_allclose(collected, wanted, rtol=1e-3, atol=1e-5 * wanted.max())
    for one, reading in zip(chosen, readings, strict=True):
        for name in one.draws:
            drawn = one.draws[name][: len(reading.entropy)]
            np.testing.assert_allclose(drawn, getattr(reading, name), rtol=1e-3, atol=1e-4)


def test_what_is_collected_with_an_answer_stands_for_what_is_measured_of_it(fitted: tuple[Bundle, Path]) -> None:
    bundle, folder = fitted
    work = StageStore(folder, {"seed": 0})
    chosen = [Example(**row) for row in work.rows(CHOSEN)]
    measured = {row["row"]: TokenSignals.from_dict(row) for row in work.rows(MEASURED.format(C=bundle.card.training.C))}
    assert len(measured) > 20
    assert set(bundle.heads) == {"residual", "attention", "block", "distance"}
    flat = bundle.layer.astype(int) * bundle.card.model.neurons_per_layer + bundle.neuron
    norms = norms_of(ATLAS, bundle.card.model.layers, bundle.card.model.neurons_per_layer).reshape(-1)[flat]
    for row, one in measured.items():
        forward = []
        for cett, part in ((MEANS, "span"), (LEADS, "last_prompt")):
            taken = np.load(folder / cett, mmap_mode="r")[chosen[row].question].reshape(-1)[flat]
            states = {n: np.load(folder / f"{site_of(n)}-{part}.npy", mmap_mode="r") for n in bundle.heads}
            scores = {
                name: head.score(states[name][[chosen[row].question]][:, head.layer])[0]
                for name, head in bundle.heads.items()
                if name != "distance" or part == "last_prompt"
            }
            forward.append({"neurons": float(taken * norms @ bundle.coefficient), **scores})
        made = whole(chosen[row], *forward)
        for name in ("neurons", *bundle.heads):
            near = {"rel": 1e-3, "abs": 1e-3 * (1 if name == "distance" else float(np.nanmax(np.abs(one[name]))))}
            assert made.last_prompt[name] == pytest.approx(one.last_prompt[name], **near)
            if name != "distance":
                assert np.nanmean(made[name]) == pytest.approx(np.nanmean(one[name]), **near)
        for name in names(Source.DRAW, OPTIONS.measured):
            np.testing.assert_allclose(made[name], one[name], rtol=1e-3, atol=1e-4)


def test_what_each_neuron_usually_contributes(fitted: tuple[Bundle, Path], questions: list[Question]) -> None:
    bundle, folder = fitted
    chosen = [Example(**row) for row in StageStore(folder, {"seed": 0}).rows(CHOSEN)]
    rows = DataSplit.of(questions, chosen, SHARES, OPTIONS.seed).parts["calibration"]
    flat = bundle.layer.astype(int) * bundle.card.model.neurons_per_layer + bundle.neuron
    means = np.load(folder / MEANS, mmap_mode="r")[[chosen[row].question for row in rows]].reshape(len(rows), -1)
    assert bundle.usual is not None
    np.testing.assert_allclose(bundle.usual, means[:, flat].mean(0) * bundle.folded, rtol=1e-4, atol=1e-7)
    stack = bundle.readout.answer  # whose mean is that of windows, and no answer here is much longer than one
    assert bundle.usual.sum() == pytest.approx(stack.mean[0], abs=0.3 * stack.scale[0])


def test_collected_leads_are_transformers_s(
    fitted: tuple[Bundle, Path], questions: list[Question], reader: Reader
) -> None:
    _, folder = fitted
    chosen = [Example(**row) for row in StageStore(folder, {"seed": 0}).rows(CHOSEN)]
    train = DataSplit.of(questions, chosen, SHARES, OPTIONS.seed).parts["train"]
    layers, neurons = reader.norms.shape
    every = np.divmod(np.arange(layers * neurons, dtype=np.int32), np.int32(neurons))
    first = [chosen[row] for row in train[:40]]
    readings = reader.read([one.prompt for one in first], [one.tokens for one in first], every)
    wanted = np.stack([reading.tokens[0] for reading in readings])
    leads = np.load(folder / LEADS)[[one.question for one in first]] * norms_of(ATLAS, layers, neurons)
    np.testing.assert_allclose(leads.reshape(len(first), -1), wanted, rtol=1e-3, atol=1e-5 * wanted.max())


def test_the_bundle_serves(fitted: tuple[Bundle, Path]) -> None:
    bundle, _ = fitted
    again = load_bundle(bundle.path)
    assert again.revision == bundle.revision
    assert bundle.h_neurons > 0
    assert bundle.readout.used == OPTIONS.measured - {"distance"}
    assert bundle.measured == OPTIONS.measured
    assert bundle.readout.distance_limit is not None, "so that a served answer is told whether it is in the domain"
    assert bundle.card.metrics["all"].auroc["stack"].value > 0.8
    assert {"0.10", "0.05"} >= set(bundle.card.thresholds) - {"0.01"}


def test_calibrating_for_other_questions(fitted: tuple[Bundle, Path], tmp_path: Path) -> None:
    """The same neurons; everything behind them anew, in one pass over the questions."""
    bundle, _ = fitted
    asked = [q for q in from_ledger(load_ledger(ATLAS), seed=12) if "codes" in q.groups or "fabricated" in q.groups]
    work = StageStore(tmp_path / "work", {})

    async def calibrated() -> Bundle:
        async with RealEngines(ATLAS, "float32", 1).guarded(bundle) as engine:
            return await recalibrate(
                work, engine, bundle, asked[:240], None, tmp_path / "out", "codes", CalibrationConfig(max_tokens=16)
            )

    new = asyncio.run(calibrated())
    assert new.neuron.tolist() == bundle.neuron.tolist()
    np.testing.assert_array_equal(new.train_questions, bundle.train_questions)
    assert new.card.id == "codes"
    assert new.card.readout != bundle.card.readout
    assert new.card.metrics["all"].n < 240
    assert "random" not in new.card.metrics["all"].auroc
    assert len(work.rows(ANSWERED)) == 240


def test_questions_that_neurons_were_found_on_are_left_out(
    fitted: tuple[Bundle, Path], questions: list[Question], tmp_path: Path
) -> None:
    bundle, folder = fitted
    chosen = [Example(**row) for row in StageStore(folder, {"seed": 0}).rows(CHOSEN)]
    train = [chosen[row].question for row in DataSplit.of(questions, chosen, SHARES, OPTIONS.seed).parts["train"]]
    assert bundle.train_questions is not None
    assert len(bundle.train_questions) == len(train)
    said: list[str] = []
    kept = unseen(bundle, questions, said.append)
    assert [q.text for q in kept] == [q.text for i, q in enumerate(questions) if i not in set(train)]
    assert said == [f"{len(train)} of {len(questions)} questions are left out: the probe's neurons were found on them"]
    with pytest.raises(FitError, match="neurons were found on all"):
        unseen(bundle, [questions[i] for i in train], said.append)
