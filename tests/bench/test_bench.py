"""The benchmark's own arithmetic, its load on a scripted engine, and that the page is what the results say."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import app.cli.bench
from app.cli.main import main
from app.settings import ATLAS
from bench import report
from guard.bench import compare, load
from guard.bench.load import Measured, Work
from guard.bench.models.synthetic import SHAPES, Shape, write_chat_model, write_model, write_probe
from guard.bench.offline import neurons_alone
from guard.probe.bundle import load_bundle
from guard.probe.identity import chat_template_hash, weights_fingerprint


class ScriptedEngine:
    """Streams one token every ``tick`` of the loop; remembers how many requests were under way at once."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.prompts: list[tuple[int, ...]] = []

    async def generate(self, prompt: Any, params: Any, request_id: str) -> AsyncIterator[Any]:
        self.running += 1
        self.most = max(self.most, self.running)
        self.prompts.append(tuple(prompt["prompt_token_ids"]))
        for _ in range(params.max_tokens):
            await asyncio.sleep(0.001)
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1])])
        self.running -= 1


async def test_load_is_a_closed_loop_of_that_many_clients() -> None:
    engine, work = ScriptedEngine(), Work.random(100, 12, 4, 5, 3, seed=1)
    measured = await load.generate(engine, work, None)
    assert engine.most == 3
    assert sorted(engine.prompts) == sorted(tuple(p) for p in work.prompts)
    assert set(measured.values) == {"tokens/s", "time to first token, ms", "inter-token latency, ms"}
    assert 0 < measured.values["tokens/s"] < 3 * 1000
    assert measured.values["inter-token latency, ms"] >= 1


def test_the_same_seed_is_the_same_load() -> None:
    assert Work.random(100, 3, 4, 5, 3, 7).prompts == Work.random(100, 3, 4, 5, 3, 7).prompts
    assert Work.random(100, 3, 4, 5, 3, 7).prompts != Work.random(100, 3, 4, 5, 3, 8).prompts


async def test_ratios_are_taken_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speed drifts from round to round does not move the ratio."""
    monkeypatch.setattr(compare, "PAUSE_SECONDS", 0)
    order: list[tuple[str, int]] = []

    def run(mode: str, factor: float) -> compare.Run:
        async def one(seed: int) -> Measured:
            order.append((mode, seed))
            return Measured({"tokens/s": factor * (100 + 50 * seed)})

        return one

    rows = await compare.compare("m", 4, {"plain": run("plain", 1), "a": run("a", 0.9), "b": run("b", 0.5)}, rounds=6)
    assert [(row.mode, row.metric, round(row.ratio, 6)) for row in rows] == [
        ("a", "tokens/s", 0.9),
        ("b", "tokens/s", 0.5),
    ]
    assert rows[0].ratio_ci95 == pytest.approx((0.9, 0.9))
    assert rows[0].plain == 275, "the median of the rounds that count, without the one that warms up"
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert all({mode for mode, _ in one} == {"plain", "a", "b"} for one in rounds)
    assert all(len({seed for _, seed in one}) == 1 for one in rounds), "one seed in a round"
    assert len({one[0][0] for one in rounds}) > 1, "modes take turns at being first"


def test_the_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        noise = rng.normal(size=12) * 0.05
        ratio, (low, high) = compare.ratio_of(np.full(12, 10.0), 9.7 * np.exp(noise))
        assert low <= ratio <= high
        covered += low <= 0.97 <= high
    assert 85 <= covered <= 99


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_shapes_are_sound(shape: Any, tmp_path: Path) -> None:
    config = json.loads((write_model(shape, tmp_path) / "config.json").read_text())
    assert config["hidden_size"] % config["num_attention_heads"] == 0
    write_probe(shape, tmp_path / "probe")
    bundle = load_bundle(tmp_path / "probe")
    assert len(bundle.neuron) == shape.tapped * shape.neurons
    assert bundle.readout.uses_draws
    assert not neurons_alone(bundle.readout).uses_draws


def test_a_shape_that_chats_is_a_model_with_its_probe(tmp_path: Path) -> None:
    """With the speaker's vocabulary, whose special tokens it never says: a stream of them would have no frames."""
    bundle = write_chat_model(Shape("tiny", 64, 128, 2, 4, 2, 99, True, 2, 3), tmp_path, ATLAS)
    assert bundle.card.model.fingerprint == weights_fingerprint(tmp_path)
    assert bundle.card.model.chat_template_sha256 == chat_template_hash(ATLAS)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    said = model.get_output_embeddings().weight.abs().sum(1) > 0
    assert len(said) == len(tokenizer) == len(AutoTokenizer.from_pretrained(ATLAS))
    assert not said[tokenizer.all_special_ids].any()
    assert said[tokenizer.encode("Which country?", add_special_tokens=False)].all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--modes", "score,fast"], "--modes knows score, score+entropy, scale, risk, not fast"),
        (["--clients", "1,many"], "--clients many: Input should be a valid integer"),
        (["--rounds", "0"], "--rounds 0: Input should be greater than or equal to 1"),
        (["--clients", "0"], "--clients 0: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_options(options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--out", str(tmp_path / "out.json"), *options]) == 1
    assert says in capsys.readouterr().err


def test_the_page_is_what_the_results_say() -> None:
    page = report.PAGE.read_text()
    assert page == report.rendered(page, report.RESULTS), "run `make benchmarks`"


def test_a_ratio_that_says_nothing_is_left_out_by_name(tmp_path: Path) -> None:
    def row(metric: str, low: float, high: float) -> dict[str, Any]:
        numbers = {"plain": 1.0, "guarded": 1.0, "ratio": 1.0, "ratio_ci95": [low, high]}
        return {"model": "atlas", "mode": "score", "concurrency": 1, "metric": metric, **numbers}

    load = {"prompt": 1, "output": 1, "requests": 1, "rounds": 8}
    rows = [row("requests/s", 0.5, 1.5), row("inter-token latency p50, ms", 0.119, 70.769)]
    (tmp_path / "cpu.json").write_text(json.dumps({"engine": "", "machine": "", "load": load, "rows": rows}))
    page = report.rendered(f"{report.BEGIN}{report.END}", tmp_path)
    assert "| requests/s | 1 | 1 | 1.000 | 0.500 to 1.500 |" in page
    assert "| inter-token" not in page
    assert "factor of 3: score, 1 clients, inter-token latency p50, ms." in page


def test_a_folder_is_measured_under_its_own_name(tmp_path: Path) -> None:
    assert app.cli.bench._settings(str(tmp_path), None, False).served_model_name == tmp_path.name
    assert not [path.name for path in report.RESULTS.rglob("*.json") if f'"{tempfile.gettempdir()}' in path.read_text()]


def test_operations_say_what_was_measured() -> None:
    page = report.OPERATIONS.read_text()
    assert page == report.operations(page, report.RESULTS / "operations"), "run `make benchmarks`"


RESULTS = sorted(report.RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_have_their_form(path: Path) -> None:
    assert re.search("cpu|gpu", path.name)
    result = json.loads(path.read_text())
    assert {"engine", "machine"} <= set(result)
    if "rows" not in result:
        assert {"kernels", "profiles"} & set(result) if "gpu" in path.name else {"growth", "beside"} & set(result)
        return
    columns = {"model", "mode", "concurrency", "metric", "plain", "guarded", "ratio", "ratio_ci95"}
    for row in result["rows"]:
        assert set(row) == columns
        low, high = row["ratio_ci95"]
        assert low <= row["ratio"] <= high
