"""A whole fit on real engines, stopped on the way; what is collected inside vLLM is what transformers computes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.settings import ATLAS
from guard.engine.collecting import CollectingEngine, new_means
from guard.fit.answers import Chosen
from guard.fit.asking import ANSWERED
from guard.fit.choose import CHOSEN, SAMPLES, Dealt
from guard.fit.collected import LEADS, MEANS, OUTPUTS
from guard.fit.engines import RealEngines
from guard.fit.pipeline import FOUND, SHARES, Fit, Options
from guard.fit.questions import Question
from guard.fit.reader import Reader
from guard.fit.recalibrate import recalibrate
from guard.fit.settle import SUPPRESSED
from guard.fit.weights import norms_of
from guard.fit.workspace import Workspace
from guard.probe.bundle import Bundle, load_bundle
from guard.probe.identity import identify
from models.atlas.recipe.questions import from_ledger, load_ledger

OPTIONS = Options("test", samples=2, longest=16, slots=24, suppress=40)
# Prompts and answers are cut into chunks, and 24 sequences do not fit into the cache at once.
TIGHT = ("--max-num-batched-tokens=64", "--block-size=32", "--num-gpu-blocks-override=20", "--max-num-seqs=64")


class StopError(Exception):
    """What Ctrl-C is to a person."""


class Engines(RealEngines):
    """Counts what is asked of them, and stops the second wave of the first run."""

    sampled = waves = guarded_starts = 0
    stop_at = 2

    @asynccontextmanager
    async def collecting(self) -> AsyncIterator[CollectingEngine]:
        async with super().collecting() as engine:
            sample, collect = engine.sample, engine.collect

            def counted(prompts: Any, *args: Any, **kwargs: Any) -> Any:
                Engines.sampled += len(prompts)
                return sample(prompts, *args, **kwargs)

            async def stopped(spans: Any, rows: Any, path: Path, _: Path | None = None) -> None:
                Engines.waves += 1
                if Engines.waves == Engines.stop_at:
                    raise StopError
                # A fit does without the layers' outputs; those of answers are collected here to be compared.
                beside = path.with_name(OUTPUTS) if path.name == MEANS else None
                if beside is not None and not beside.exists():
                    answers, layers, _width = np.load(path, mmap_mode="r").shape
                    new_means(beside, answers, layers, engine.hidden)
                await collect(spans, rows, path, beside)

            engine.sample, engine.collect = counted, stopped  # type: ignore[method-assign]
            yield engine

    def guarded(self, bundle: Bundle) -> Any:
        Engines.guarded_starts += 1
        return super().guarded(bundle)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    everything = from_ledger(load_ledger(ATLAS), seed=11)
    return [q for q in everything if "places" in q.groups or "languages" in q.groups][:360]


@pytest.fixture(scope="module")
def fitted(questions: list[Question], tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    folder = tmp_path_factory.mktemp("fit")
    identity = identify(ATLAS, "atlas", "vllm-cpu")
    norms = norms_of(ATLAS, identity.layers, identity.neurons_per_layer)
    engines = Engines(ATLAS, identity.dtype, OPTIONS.slots, extra=TIGHT)

    def run() -> Bundle:
        work = Workspace(folder / "work", {"seed": 0})
        # The whole answer is its span, as for the reference.
        fit = Fit(work, questions, identity, norms, OPTIONS, locate=lambda text: (0, len(text)))
        return asyncio.run(fit.run(engines, folder / "probe"))

    with pytest.raises(StopError):
        run()
    assert (Engines.sampled, Engines.waves) == (len(questions), 2)
    return run(), folder / "work"


def test_nothing_is_done_twice(fitted: tuple[Bundle, Path], questions: list[Question]) -> None:
    _, folder = fitted
    work = Workspace(folder, {"seed": 0})
    chosen = work.rows(CHOSEN)
    assert Engines.sampled == len(questions), "no question was sampled again"
    # The wave that was stopped is the only one that was begun twice.
    train = Dealt.of(questions, [Chosen(**row) for row in chosen], SHARES, OPTIONS.seed).parts["train"]
    assert Engines.waves == -(-len(chosen) // OPTIONS.slots) + -(-len(train) // OPTIONS.slots) + 1
    candidates = work.read_json(FOUND)
    assert Engines.guarded_starts == len(candidates)
    if len(candidates) > 1:
        right = work.read_json(SUPPRESSED)
        assert sorted(right) == sorted(f"{row['C']:g}" for row in candidates)
        assert all(0 < count <= OPTIONS.suppress for count in right.values())
    assert len(work.rows(SAMPLES)) == len(questions)


def test_collected_means_are_transformers_s(fitted: tuple[Bundle, Path], reader: Reader) -> None:
    _, folder = fitted
    chosen = [Chosen(**row) for row in Workspace(folder, {"seed": 0}).rows(CHOSEN)]
    collected = np.load(folder / MEANS) * norms_of(ATLAS, *reader.norms.shape)
    readings = list(reader.read([one.prompt for one in chosen], [one.tokens for one in chosen]))
    wanted = np.stack([reading.mean for reading in readings]).reshape(collected.shape)
    assert len(chosen) > 100
    np.testing.assert_allclose(collected, wanted, rtol=1e-3, atol=1e-5 * wanted.max())
    outputs = np.load(folder / OUTPUTS)
    wanted = np.stack([reading.output for reading in readings]).reshape(outputs.shape)
    np.testing.assert_allclose(outputs, wanted, rtol=1e-3, atol=1e-5 * wanted.max())


def test_collected_leads_are_transformers_s(
    fitted: tuple[Bundle, Path], questions: list[Question], reader: Reader
) -> None:
    _, folder = fitted
    chosen = [Chosen(**row) for row in Workspace(folder, {"seed": 0}).rows(CHOSEN)]
    train = Dealt.of(questions, chosen, SHARES, OPTIONS.seed).parts["train"]
    layers, neurons = reader.norms.shape
    every = np.divmod(np.arange(layers * neurons, dtype=np.int32), np.int32(neurons))
    first = [chosen[row] for row in train[:40]]
    readings = reader.read([one.prompt for one in first], [one.tokens for one in first], every)
    wanted = np.stack([reading.tokens[0] for reading in readings])
    leads = (np.load(folder / LEADS) * norms_of(ATLAS, layers, neurons)).reshape(len(train), -1)
    np.testing.assert_allclose(leads[:40], wanted, rtol=1e-3, atol=1e-5 * wanted.max())


def test_the_bundle_serves(fitted: tuple[Bundle, Path]) -> None:
    bundle, _ = fitted
    again = load_bundle(bundle.path)
    assert again.revision == bundle.revision
    assert bundle.h_neurons > 0
    assert bundle.card.metrics["all"].auroc["stack"].value > 0.8
    assert {"0.10", "0.05"} >= set(bundle.card.thresholds) - {"0.01"}


def test_calibrating_for_other_questions(fitted: tuple[Bundle, Path], tmp_path: Path) -> None:
    """The same neurons; everything behind them anew, in one pass over the questions."""
    bundle, _ = fitted
    asked = [q for q in from_ledger(load_ledger(ATLAS), seed=12) if "codes" in q.groups or "fabricated" in q.groups]
    work = Workspace(tmp_path / "work", {})

    async def calibrated() -> Bundle:
        async with RealEngines(ATLAS, "float32", 1).guarded(bundle) as engine:
            return await recalibrate(work, engine, bundle, asked[:240], None, tmp_path / "out", "codes", 16, 0)

    new = asyncio.run(calibrated())
    assert new.neuron.tolist() == bundle.neuron.tolist()
    assert new.card.id == "codes"
    assert new.card.readout != bundle.card.readout
    assert new.card.metrics["all"].n < 240
    assert "random" not in new.card.metrics["all"].auroc
    assert len(work.rows(ANSWERED)) == 240
