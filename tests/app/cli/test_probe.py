"""``hguard probe``: each command end to end on atlas, without an engine; what is wrong is one line and status 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from app.cli.main import main
from app.settings import ATLAS
from guard.probe.bundle import Bundle, load_bundle
from tests.measured import with_heads
from tests.probe.stand_in import Hub, stand_in

PROBE = str(ATLAS / "probe")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with stand_in(monkeypatch, str(tmp_path / "cache")) as running:
        yield running


@pytest.fixture
def imported(capsys: pytest.CaptureFixture[str]) -> Bundle:
    """The neurons of atlas's own probe, taken out and put into a new bundle."""
    assert main(["probe", "export", PROBE, "--out", "list.csv"]) == 0
    assert main(["probe", "import", "list.csv", "atlas", "--out", "imported"]) == 0
    capsys.readouterr()
    return load_bundle("imported")


def refused(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("hguard: ")
    assert says in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("file", ["list.csv", "list.json"])
def test_export_and_import(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    original = load_bundle(PROBE)
    assert main(["probe", "export", PROBE, "--out", file]) == 0
    assert f"{len(original.neuron)} neurons of {original.card.id} are in {file}" in capsys.readouterr().out
    assert main(["probe", "import", file, "atlas", "--out", "new", "--id", "new-probe", "--dtype", "bfloat16"]) == 0
    bundle = load_bundle("new")
    out = capsys.readouterr().out
    assert f"new-probe, revision {bundle.revision}, is in new; it is not calibrated yet" in out
    assert "hguard calibrate atlas --probe new --data" in out
    for name in ("layer", "neuron", "coefficient", "folded"):
        np.testing.assert_array_equal(getattr(bundle, name), getattr(original, name))
    assert bundle.card.training.model_dump(exclude_none=True) == {"method": "imported", "answers": {}}
    assert (bundle.card.intercept, bundle.card.thresholds, bundle.card.metrics) == (0, {}, {})
    assert bundle.card.model.dtype == "bfloat16"
    assert bundle.card.model.fingerprint == original.card.model.fingerprint
    assert not bundle.calibrated
    assert not bundle.readout.uses_draws
    assert original.calibrated


def test_nothing_serves_or_judges_what_is_not_calibrated(
    imported: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    says = "probe atlas-imported is not calibrated: run `hguard calibrate atlas --probe imported --data "
    refused(["serve", "atlas", "--probe", "imported"], says, capsys)
    refused(["serve", "atlas", "--probe", "imported", "--threshold", "0.5"], says, capsys)
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "Where is Texas?", "answers": ["United States"]}\n')
    command = ["eval", "atlas", "--probe", "imported", "--data", str(questions), "--json", "out.json"]
    refused(command, says, capsys)


def test_calibrate_takes_it_as_far_as_the_engine(
    imported: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from guard.harness import engines

    class Started(Exception):
        pass

    def guarded(self: object, bundle: Bundle) -> None:
        assert bundle.revision == imported.revision
        raise Started

    monkeypatch.setattr(engines.RealEngines, "guarded", guarded)
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "Where is Texas?", "answers": ["United States"]}\n')
    with pytest.raises(Started):
        main(["calibrate", "atlas", "--probe", "imported", "--data", str(questions), "--out", "calibrated"])


def test_a_list_of_others_must_be_fit_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Path("list.json").write_text('[{"layer": 0, "position": 1, "coefficient": 0.5}]')
    command = ["probe", "import", "list.json", "atlas", "--out", "new"]
    refused(command, "list.json, line 1: layer, position, coefficient are the names of tools whose coeff", capsys)
    refused([*command, "--refit"], "give questions with --data", capsys)
    refused([*command, "--data", "questions.jsonl"], "--data is for --refit", capsys)
    assert not Path("new").exists()


def test_refit_is_a_fit_of_the_listed_neurons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As far as the engine: which neurons, under which name and settings."""
    from guard.training import pipeline
    from guard.training.config import FitConfig

    seen: list[pipeline.Fit] = []

    class Started(Exception):
        pass

    def run(self: pipeline.Fit, engines: object, out: Path) -> None:
        seen.append(self)
        raise Started

    monkeypatch.setattr(pipeline.Fit, "run", run)
    Path("list.csv").write_text("position,layer\n3,1\n5,0\n")
    Path("questions.jsonl").write_text('{"question": "Where is Texas?", "answers": ["United States"]}\n')
    command = ["probe", "import", "list.csv", "atlas", "--out", "new", "--refit", "--data", "questions.jsonl"]
    with pytest.raises(Started):
        main([*command, "--samples", "1", "--seed", "7"])
    with pytest.raises(Started):
        main(["fit", "atlas", "--neurons", "list.csv", "--out", "other", "--data", "questions.jsonl"])
    one, other = seen
    width = load_bundle(PROBE).card.model.neurons_per_layer
    assert one._neurons == other._neurons == (5, width + 3)
    assert (one._id, one._config, one._ablation_questions) == ("atlas-imported", FitConfig(samples=1, seed=7), 0)
    assert (other._id, other._config, other._ablation_questions) == ("atlas-probe", FitConfig(), 0)
    assert json.loads(Path("new/work/settings.json").read_text())["neurons"] == [5, width + 3]


def test_a_probe_of_hprobes(capsys: pytest.CaptureFixture[str]) -> None:
    model = load_bundle(PROBE).card.model
    tensors = {
        "clf_coef": np.array([[0.5, 0.0, -1.0]]),
        "clf_intercept": np.array([0.25]),
        "top_k_idx": np.array([2, 0, model.neurons_per_layer + 1]),
        "col_mean": np.array([0.1, 0.2, 0.3]),
        "col_std": np.array([0.5, 1.0, 0.25]),
    }
    Path("theirs").mkdir()
    save_file(tensors, "theirs/probe.safetensors")
    card = {"config": {"layers": [1, 3], "intermediate_dim": model.neurons_per_layer}}
    Path("theirs/probe.json").write_text(json.dumps(card))
    assert main(["probe", "import", "theirs", "atlas", "--out", "new"]) == 0
    bundle = load_bundle("new")
    assert (bundle.layer.tolist(), bundle.neuron.tolist()) == ([1, 3], [2, 1])
    np.testing.assert_allclose(bundle.coefficient, [1.0, -4.0], rtol=1e-6)
    assert bundle.card.intercept == pytest.approx(0.25 - 0.1 + 1.2)
    assert not bundle.calibrated


def test_a_linear_head_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    hidden = 256
    head = torch.nn.Linear(hidden, 1)
    Path("theirs").mkdir()
    torch.save(head.state_dict(), "theirs/probe_head.bin")
    Path("theirs/probe_config.json").write_text(json.dumps({"layer_idx": 2, "hidden_size": hidden}))
    command = ["probe", "import", "theirs", "atlas", "--out", "new"]
    refused([*command, "--refit"], "--refit fits neurons, and this is a head", capsys)
    assert main(command) == 0
    assert "it is not calibrated yet" in capsys.readouterr().out
    bundle = load_bundle("new")
    assert (len(bundle.neuron), bundle.layers_read, bundle.calibrated) == (0, {"block": [2]}, False)
    np.testing.assert_allclose(bundle.heads["block"].weight, head.weight.detach())
    assert bundle.readout.answer.bias == pytest.approx(head.bias.item())
    assert main(["probe", "verify", "new", "--model", "atlas"]) == 0
    assert "block        a linear head on layers 2" in capsys.readouterr().out
    assert main(["probe", "show", "new"]) == 0
    assert "none: heads alone" in capsys.readouterr().out
    for name in ("list.json", "list.csv"):
        refused(["probe", "export", "new", "--out", name], "atlas-imported reads no neurons", capsys)
        assert not Path(name).exists()


def test_a_linear_head_of_another_width(capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs").mkdir()
    torch.save(torch.nn.Linear(8, 1).state_dict(), "theirs/probe_head.bin")
    Path("theirs/probe_config.json").write_text(json.dumps({"layer_idx": 2, "hidden_size": 8}))
    says = "its model's states have 8 numbers, this one's 256"
    refused(["probe", "import", "theirs", "atlas", "--out", "new"], says, capsys)
    assert not Path("new").exists()
    narrow = with_heads(load_bundle(PROBE), Path("narrow"), 8)
    says = "its states are 256 wide, and the probe's head on residual is of 8"
    refused(["probe", "verify", str(narrow.path), "--model", "atlas"], says, capsys)


@pytest.mark.parametrize("name", ["layer", "neuron"])
def test_a_list_for_a_larger_model(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_bundle(PROBE).card.model
    limits = {"layer": model.layers, "neuron": model.neurons_per_layer}
    row = ["1", *(str(limits[column] if column == name else 0) for column in limits)]
    Path("list.csv").write_text(f"weight,layer,neuron\n{','.join(row)}\n")
    says = f"list.csv, line 2: {name} {limits[name]} is outside the model's 0..{limits[name] - 1}"
    refused(["probe", "import", "list.csv", "atlas", "--out", "new"], says, capsys)
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "nowhere", "--out", "list.csv"], "probe.json is missing"),
        (["export", PROBE, "--out", "list.txt"], "list.txt: a list of neurons is a .csv or a .json file"),
        (["import", "list.csv", "nowhere", "--out", "new"], "neither a folder nor"),
        (["import", "list.csv", "atlas", "--out", "new"], "list.csv cannot be read"),
        (["import", "list.tsv", "atlas", "--out", "new"], "list.tsv: a list of neurons is a .csv or a .json file"),
        (["show", "hf://no-owner"], "not of the form hf://owner/name@revision"),
        (["verify", "nowhere"], "probe.json is missing"),
        (["push", PROBE, "owner/name"], "not of the form"),
        (["push", "nowhere", "hf://owner/name"], "probe.json is missing"),
        (["pull", "owner/name", "--out", "new"], "not of the form"),
    ],
)
def test_refusals(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["probe", *arguments], says, capsys)
    assert not Path("new").exists()


def test_a_bundle_cannot_be_called_anything(capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.csv").write_text("layer,neuron,weight\n0,0,1\n")
    command = ["probe", "import", "list.csv", "atlas", "--out", "new", "--id", "../new"]
    refused(command, "cannot be called '../new'", capsys)


def test_verify(imported: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "verify", PROBE, "--model", "atlas"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "files",
        "card",
        "tensors",
        "distance",
        "calibration",
        "reference",
        "model",
    ]
    assert load_bundle(PROBE).revision in lines[1]
    assert main(["probe", "verify", "imported"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["files", "card", "tensors", "calibration", "reference"]
    assert "none: `hguard calibrate` comes first" in lines[3]
    assert "none: `hguard probe reference` makes one" in lines[4]


def test_verify_against_another_model(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["probe", "verify", str(bundle.path), "--model", "atlas"], "was not fit on this model", capsys)


def test_verify_of_a_changed_file(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with (bundle.path / "probe.safetensors").open("ab") as file:
        file.write(b"\0")
    refused(["probe", "verify", str(bundle.path)], "sha256 differs", capsys)


def test_push_show_verify_and_pull(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    revision = load_bundle(PROBE).revision
    assert main(["probe", "push", PROBE, "hf://owner/name", "--private", "--message", "The first"]) == 0
    address = capsys.readouterr().out.strip()
    commit = hub.repos["owner/name"].refs["main"]
    assert address == f"hf://owner/name@{commit}"
    message, files = hub.repos["owner/name"].commits[commit]
    readme = files["README.md"].decode()
    assert message == "The first"
    assert "| answers | n | wrong | AUROC stack | AUROC neurons |" in readme
    assert all(f"| {group} | {report.n} |" in readme for group, report in load_bundle(PROBE).card.metrics.items())
    assert "base_model" not in readme
    assert "hguard serve atlas --probe hf://owner/name\n" in readme

    assert main(["probe", "show", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["revision"] == revision
    assert main(["probe", "verify", address, "--model", "atlas"]) == 0
    assert commit in capsys.readouterr().out
    assert main(["probe", "export", "hf://owner/name", "--out", "list.csv"]) == 0
    capsys.readouterr()
    assert main(["probe", "pull", "hf://owner/name@main", "--out", "pulled"]) == 0
    said = capsys.readouterr().out
    assert said == f"{load_bundle(PROBE).card.id}, revision {revision}, of {address}, is in pulled\n"
    assert load_bundle("pulled").revision == revision


def test_an_imported_bundle_says_on_the_hub_what_it_lacks(
    hub: Hub, imported: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "push", "imported", "hf://owner/name"]) == 0
    repo = hub.repos["owner/name"]
    readme = repo.commits[repo.refs["main"]][1]["README.md"].decode()
    assert "**not calibrated**" in readme
    assert "hguard calibrate atlas --probe hf://owner/name --data" in readme
    assert "AUROC" not in readme


def test_what_the_hub_refuses(hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    refused(["probe", "pull", "hf://owner/name", "--out", "new"], "there is no such repository", capsys)
    refused(["probe", "verify", "hf://owner/name"], "there is no such repository", capsys)
    monkeypatch.delenv("HF_TOKEN")
    refused(["probe", "push", PROBE, "hf://owner/name"], "run `hf auth login` or set HF_TOKEN", capsys)


@pytest.mark.usefixtures("imported")
def test_a_bundle_is_not_written_over(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("imported/probe.json").read_bytes()
    again = ["probe", "import", "list.csv", "atlas", "--out", "imported"]
    refused(again, "imported holds a bundle already: give another --out, or remove that one", capsys)
    assert main(["probe", "push", PROBE, "hf://owner/name"]) == 0
    refused(["probe", "pull", "hf://owner/name", "--out", "imported"], "imported holds a bundle already", capsys)
    assert Path("imported/probe.json").read_bytes() == before
