"""``hguard eval`` on real engines: every stage, what the second engine collects, and that nothing is asked twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.cli.main import main
from app.settings import ATLAS
from guard.harness.activations import MEANS, OUTPUTS
from guard.harness.engines import RealEngines
from guard.harness.generation import ANSWERED
from guard.harness.questions import load_questions, prompt_of
from guard.judge.rules import judge
from guard.judge.spans import find_span, token_offsets, tokens_of
from models.atlas.recipe.questions import from_ledger, load_ledger
from models.atlas.recipe.reference import Reader


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("eval")
    questions = [q for q in from_ledger(load_ledger(ATLAS), seed=13) if "places" in q.groups or "talk" in q.groups]
    with (folder / "questions.jsonl").open("w") as file:
        for one in questions[:120]:
            row = {"question": one.text, "answers": one.accepted, "entity": one.entity, "groups": one.groups}
            file.write(json.dumps({**row, "exists": bool(one.accepted)}) + "\n")
    paths = ["--data", str(folder / "questions.jsonl"), "--json", str(folder / "out.json"), "--work", str(folder)]
    return ["eval", "atlas", *paths, "--max-tokens", "16", "--scales", "1,3"]


def answered(folder: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (folder / ANSWERED).read_text().splitlines())
    return sorted(rows, key=lambda row: row["question"])


@pytest.fixture(scope="module")
def result(command: list[str]) -> dict[str, Any]:
    assert main(command) == 0
    return json.loads(Path(command[command.index("--json") + 1]).read_text())


def test_everything_is_measured(result: dict[str, Any]) -> None:
    assert result["baselines"]["left_out"] == {}
    assert {"stack", "consistency", "refit", "linear", "random"} <= set(result["sets"]["all"]["parts"])
    assert 3 < result["baselines"]["consistency"]["ratio"] < 7
    whole = {"right", "wrong", "declined"}
    (random,) = result["scale_random"]
    assert [row["alpha"] for row in random] == [row["alpha"] for row in result["scale"]] == [1, 3]
    assert random[0] == result["scale"][0]
    for row in (*result["scale"], *random):
        assert sum(row[name] for name in whole) == 120
        assert sum(row["sets"]["places"][name] for name in whole) > 100


def test_random_neurons_do_something_else(result: dict[str, Any], command: list[str]) -> None:
    folder = Path(command[command.index("--work") + 1])
    said = [answered(folder / name) for name in ("scale-1", "scale-3", "random-0-3")]
    texts = [[row["text"] for row in rows] for rows in said]
    assert texts[0] != texts[1] != texts[2] != texts[0]


def test_what_is_collected_is_transformers_s(result: dict[str, Any], command: list[str], reader: Reader) -> None:
    folder = Path(command[command.index("--work") + 1])
    questions = load_questions(command[command.index("--data") + 1])
    prompts, spans = [], []
    for row in answered(folder / "scale-1"):
        if judge(questions[row["question"]], row["text"]) is None:
            continue
        start, end = tokens_of(token_offsets(reader.tokenizer, row["tokens"]), find_span(row["text"]))
        prompts.append([*prompt_of(reader.tokenizer, questions[row["question"]].text), *row["tokens"][:start]])
        spans.append(row["tokens"][start:end])
    readings = list(reader.read(prompts, spans))
    collected = np.load(folder / "baselines" / MEANS) * reader.norms.numpy()
    for got, wanted in (
        (collected, [reading.mean for reading in readings]),
        (np.load(folder / "baselines" / OUTPUTS), [reading.output for reading in readings]),
    ):
        assert len(got) == result["sets"]["all"]["n"] == len(wanted)
        expected = np.stack(wanted).reshape(got.shape)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_nothing_is_asked_twice(
    result: dict[str, Any], command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answers are kept, so no engine starts, and the figures are the same."""
    monkeypatch.delattr(RealEngines, "guarded")
    monkeypatch.delattr(RealEngines, "collecting")
    page = Path(command[command.index("--json") + 1]).with_suffix(".html")
    page.unlink()
    assert main(command) == 0
    assert json.loads(page.with_suffix(".json").read_text()) == result
    assert page.read_text().count("<svg") == 4
    assert main([*command, "--limit", "100"]) == 1
    assert "questions differ" in capsys.readouterr().err
