"""``hguard fit`` and ``hguard calibrate``: what is wrong is said before any engine starts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from app.cli.main import main
from app.settings import ATLAS

ROW = {"question": "Where is Texas?", "answers": ["United States"]}


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return str(path)


@pytest.mark.parametrize("command", ["fit", "calibrate"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--judge-url", "http://judge/v1"], "--judge-url and --judge-model go together"),
        (["--judge-model", "some"], "--judge-url and --judge-model go together"),
    ],
)
def test_half_a_judge(
    command: str, options: list[str], says: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "atlas", "--data", data, "--out", str(tmp_path / "out"), *options]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--min-agreement", "0"], "--min-agreement 0: Input should be greater than 0"),
        (["--max-neuron-fraction", "2"], "--max-neuron-fraction 2: Input should be less than or equal to 1"),
        (["--temperature", "-1"], "--temperature -1: Input should be greater than or equal to 0"),
        (["--samples", "-1", "--slots", "0"], "--slots 0: Input should be greater than or equal to 1"),
        (["--max-tokens", "0"], "--max-tokens 0: Input should be greater than or equal to 1"),
        (["--seed", "x"], "--seed x: Input should be a valid integer"),
        (
            ["--keep", "residual,logits"],
            "--keep logits: Input should be 'residual', 'attention', 'block' or 'question'",
        ),
    ],
)
def test_numbers_that_make_no_sense(
    options: list[str], says: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "atlas", "--data", data, "--out", str(tmp_path / "out"), *options]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--signals", "margin"], "without neurons a probe reads heads: name one of residual, attention, block"),
        (["--signals", "none"], "without neurons a probe reads heads"),
        (["--span", "fact"], "--span fact is what neurons are fit on"),
    ],
)
def test_without_neurons_there_must_be_a_head(
    options: list[str], says: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", "atlas", "--data", data, "--out", str(tmp_path / "out"), "--neurons", "none"]
    assert main([*command, *options]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["fit", "calibrate"])
def test_no_questions(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "atlas", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "no questions at" in capsys.readouterr().err


def test_a_probe_of_another_model(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "model"
    other.mkdir()
    (other / "config.json").write_text(
        (ATLAS / "config.json").read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 5')
    )
    save_file({"weight": np.zeros(1, np.float32)}, other / "model.safetensors")
    command = ["calibrate", str(other), "--probe", str(ATLAS / "probe"), "--data", data, "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "was not fit on this model" in capsys.readouterr().err
