"""The command line and the settings: one source of truth, refusals in one line."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import guard
from app.cli.flags import add_flags
from app.cli.main import main
from app.resolver import SHIPPED
from app.settings import ATLAS, Ceilings, GuardDefaults, RequestLimits, Settings, settings_from
from guard.errors import GuardError
from guard.probe.bundle import Bundle, load_bundle, save_bundle
from tests.measured import with_heads

NOTHING = np.empty(0, np.float32)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_flags_over_environment_over_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("hguard.toml").write_text('port = 1111\nmode = "flag"\ntarget_fpr = 0.1\n')
    monkeypatch.setenv("HGUARD_PORT", "2222")
    monkeypatch.setenv("HGUARD_MODE", "abstain")
    settings = settings_from({"port": "3333"})
    assert (settings.port, settings.mode.value, settings.target_fpr) == (3333, "abstain", 0.1)


def test_nothing_heavy_is_imported_before_the_environment_is_prepared() -> None:
    """vLLM reads it when it is imported, and torch makes its cache."""
    program = "import sys, app.cli.main; print({'torch', 'vllm', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ATLAS.parents[1], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, says in (
        ("--version", f"hguard {guard.__version__}\n"),
        ("--help", "Serve a language model that notices"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([flag])
        assert ended.value.code == 0
        assert says in capsys.readouterr().out


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"port": "0"}, "port"),
        ({"port": "web"}, "port"),
        ({"mode": "panic"}, "mode"),
        ({"threshold": "1.5"}, "threshold"),
        ({"target_fpr": "0"}, "target_fpr"),
        ({"slots": "-1"}, "slots"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, str], says: str) -> None:
    with pytest.raises(GuardError, match=says):
        settings_from(values)


def test_an_unknown_key_in_the_file_is_refused() -> None:
    Path("hguard.toml").write_text("prot = 1\n")
    with pytest.raises(GuardError, match="prot"):
        settings_from({})


@pytest.mark.parametrize("text", [b"port = ", b"\xff", b"port = 1\nport = 2\n"])
def test_a_file_that_cannot_be_read(text: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    Path("hguard.toml").write_bytes(text)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err.startswith("hguard: hguard.toml cannot be read: ")


def test_a_wrong_variable_is_named_by_any_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HGUARD_PORT", "abc")
    assert main(["probe", "verify", "atlas", "--model", "atlas"]) == 1
    assert "wrong settings: port: " in capsys.readouterr().err


def test_a_reader_that_has_had_enough() -> None:
    command = f"{sys.executable} -m app.cli.main probe show atlas --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], cwd=ATLAS.parents[1], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{", "")


def test_show(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "show", str(bundle.path), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert (card["id"], card["h_neurons"], card["neurons"]) == ("small-probe", 3, 5)
    assert card["tapped_layers"] == [0, 1, 3]


def test_heads_are_shown(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    headed = str(with_heads(bundle, tmp_path / "headed", 8).path)
    assert main(["probe", "show", headed]) == 0
    shown = capsys.readouterr().out
    assert "residual      a linear head on layers 0, 3, 8 numbers each\n" in shown
    assert "those of the calibration, of layer 2, along 64 axes, 8 numbers each\n" in shown
    assert main(["probe", "verify", headed]) == 0
    assert "attention    a linear head on layers 1, 3; finite, ascending\n" in capsys.readouterr().out
    assert main(["probe", "show", headed, "--json"]) == 0
    heads = {"residual": [0, 3], "attention": [1, 3], "block": [0, 3], "distance": [2]}
    assert json.loads(capsys.readouterr().out)["heads"] == heads


@pytest.mark.parametrize("name", ["atlas", "smollm2"])
def test_show_in_twenty_lines(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    card = load_bundle(SHIPPED[name]).card
    assert main(["probe", "show", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 120
    assert lines[0].split()[1] == f"{card.id},"
    (whole,) = (line for line in lines if line.startswith("on all "))
    metrics = card.metrics["all"]
    assert f"{metrics.wrong} of {metrics.n} wrong; AUROC {metrics.auroc['stack'].value:.3f}" in whole
    (five,) = (line for line in lines if line.startswith("at 5.0% "))
    assert f"threshold {card.thresholds['0.05']:.3f}" in five


def test_show_says_what_is_not_calibrated(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    bare = save_bundle(bundle.path.parent / "bare", bundle.card, {**bundle.tensors, "right_risks": NOTHING})
    assert main(["probe", "show", str(bare.path)]) == 0
    assert "calibration   none: `hguard calibrate` comes first" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["serve", "atlas", "--tensor-parallel-size", "2"],
            "go behind --, as in `hguard serve ... -- --tensor-parallel",
        ),
        (
            ["fit", "m", "--out", "o", "--data", "d", "--seeed=1"],
            "--seeed=1 is no option of hguard fit; vLLM's options go",
        ),
        (["probe", "show", "atlas", "--all"], "unrecognized arguments: --all"),
    ],
)
def test_options_that_are_not_its_own(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_the_flags_of_serve_stand_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    said = capsys.readouterr().out
    titles = [kind.model_config["title"] for kind in (Settings, GuardDefaults, Ceilings, RequestLimits)]
    places = [said.index(f"\n{title}:\n") for title in titles]
    assert places == sorted(places)
    assert "None" not in said
    assert "--mode {off,score,flag,abstain}" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["probe", "show", "nowhere"], "probe.json is missing"),
        (["serve", "nowhere"], "neither a folder nor"),
        (["serve", "/nowhere/model"], "is the volume that holds it mounted?"),
        (["serve", "."], "config.json is missing; is the right volume mounted there?"),
        (["serve", str(ATLAS)], "no probe for"),
        (["serve", str(ATLAS), "--probe", "nowhere"], "probe.json is missing"),
        (["serve", str(ATLAS), "--probe", "hf://no-owner"], "not of the form"),
        (["serve", "--port", "99999"], "port"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("hguard: ")
    assert says in error
    assert len(error.strip().splitlines()) == 1


def test_a_probe_for_another_model(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(
        json.dumps({"num_hidden_layers": 4, "intermediate_size": 64, "dtype": "float32"})
    )
    save_file({"w": np.zeros(3, np.float32)}, str(model / "model.safetensors"))
    assert main(["serve", str(model), "--probe", str(bundle.path)]) == 1
    assert "was not fit on this model: its weights differ" in capsys.readouterr().err


def test_engine_arguments_not_for_probe(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "show", str(bundle.path), "--", "--enforce-eager"]) == 2
    assert "probe does not start vLLM" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "means"), [([], None), (["--explain-neurons"], True), (["--no-explain-neurons"], False)]
)
def test_a_flag_that_may_be_left_out_takes_no_value(given: list[str], means: bool | None) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Settings)
    parsed = parser.parse_args(given)
    assert settings_from(vars(parsed)).explain_neurons is means
