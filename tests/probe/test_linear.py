"""Linear heads that ``hallucination_probes`` saved."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from guard.errors import BundleError
from guard.probe.foreign.linear import CONFIG, HEAD, LARGEST, is_linear, read_linear

LAYERS, HIDDEN = 6, 10
WEIGHT, BIAS = torch.ones(1, HIDDEN), torch.zeros(1)


def saved(folder: Path, config: Any = None, head: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    said = {"layer_idx": 3, "hidden_size": HIDDEN, "target_layer_name": "model.layers.3"}
    (folder / CONFIG).write_text(json.dumps(said if config is None else config))
    torch.save(torch.nn.Linear(HIDDEN, 1).state_dict() if head is None else head, folder / HEAD)
    return folder


def test_its_score_is_that_of_the_saved_module(tmp_path: Path) -> None:
    module = torch.nn.Linear(HIDDEN, 1).to(torch.bfloat16)
    folder = saved(tmp_path / "theirs", head=module.state_dict())
    for path in (folder, folder / CONFIG, folder / HEAD):
        assert is_linear(path)
        probe = read_linear(path, LAYERS, HIDDEN)
        assert probe.head.layer.tolist() == [3]
        x = torch.randn(7, 1, HIDDEN)
        found = probe.head.score(x.numpy()) + probe.bias
        with torch.no_grad():
            wanted = module.float()(x)[:, 0, 0]
        torch.testing.assert_close(torch.from_numpy(found).float(), wanted)


def test_parameters_and_views_are_numbers_as_others_are(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(1, HIDDEN))
    kept = {"weight": weight, "bias": torch.tensor([-2.0])}
    probe = read_linear(saved(tmp_path / "theirs", head=kept), LAYERS, HIDDEN)
    assert probe.bias == -2.0
    torch.testing.assert_close(torch.from_numpy(probe.head.weight[0]), weight.detach()[0])


def test_a_file_that_unpacks_to_more(tmp_path: Path) -> None:
    folder = saved(tmp_path / "theirs", head={"weight": torch.zeros(1, LARGEST // 2), "bias": BIAS})
    with zipfile.ZipFile(folder / HEAD) as packed:
        held = {name: packed.read(name) for name in packed.namelist()}
    with zipfile.ZipFile(folder / HEAD, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in held.items():
            packed.writestr(name, content)
    assert (folder / HEAD).stat().st_size < LARGEST // 8
    with pytest.raises(BundleError, match="larger than 16 MiB"):
        read_linear(folder, LAYERS, HIDDEN)


def test_what_is_none(tmp_path: Path) -> None:
    folder = saved(tmp_path / "theirs")
    assert not is_linear(folder / "other.json")
    (folder / HEAD).unlink()
    assert not is_linear(folder)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ([], "does not say which layer"),
        ({"layer_idx": "3", "hidden_size": HIDDEN}, "does not say which layer"),
        ({"layer_idx": 3}, "does not say which layer"),
        ({"layer_idx": 6, "hidden_size": HIDDEN}, "reads layer 6, and the model's go from 0 to 5"),
        ({"layer_idx": -1, "hidden_size": HIDDEN}, "reads layer -1"),
        ({"layer_idx": 3, "hidden_size": 11}, "its model's states have 11 numbers, this one's 10"),
    ],
)
def test_faults_of_the_configuration(tmp_path: Path, config: Any, says: str) -> None:
    with pytest.raises(BundleError, match=says):
        read_linear(saved(tmp_path / "theirs", config), LAYERS, HIDDEN)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ({}, "holds nothing, and not a weight"),
        ({"weight": WEIGHT}, r"holds weight \[1, 10\], and not"),
        ({"weight": torch.ones(2, HIDDEN), "bias": BIAS}, r"holds weight \[2, 10\], bias \[1\]"),
        ({"weight": WEIGHT, "bias": BIAS, "more": BIAS}, "more"),
        ({"weight": WEIGHT * torch.nan, "bias": BIAS}, "not finite"),
        ({"weight": WEIGHT, "bias": BIAS / 0}, "not finite"),
        ([WEIGHT, BIAS], "not a state dict of plain tensors alone"),
        ({"weight": torch.ones(1, 11), "bias": BIAS}, "its head reads 11 numbers, probe_config.json says 10"),
        ({"weight": WEIGHT.to_sparse(), "bias": BIAS}, "not a state dict of plain tensors"),
        ({"weight": torch.ones(1, HIDDEN, device="meta"), "bias": BIAS}, "not a state dict of plain tensors"),
        ({"weight": WEIGHT.to(torch.complex64), "bias": BIAS}, "not a state dict of plain tensors"),
        ({"weight": torch.zeros(1, 1).expand(1, 10**9), "bias": BIAS}, "not a state dict of plain tensors"),
        ({"weight": WEIGHT, "bias": 0.5}, "not a state dict of plain tensors alone"),
        ({"weight": WEIGHT, "bias": Path("elsewhere")}, "not a state dict of plain tensors alone"),
    ],
)
def test_faults_of_the_head(tmp_path: Path, head: Any, says: str) -> None:
    with pytest.raises(BundleError, match=says):
        read_linear(saved(tmp_path / "theirs", head=head), LAYERS, HIDDEN)


class Program:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_a_file_that_is_a_program_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="not a state dict of plain tensors alone"):
        read_linear(saved(tmp_path / "theirs", head={"weight": WEIGHT, "bias": Program()}), LAYERS, HIDDEN)
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", [b"", b"\0" * 20, b"PK\x03\x04" + b"\0" * 100])
def test_a_file_that_is_broken(tmp_path: Path, content: bytes) -> None:
    (saved(tmp_path / "theirs") / HEAD).write_bytes(content)
    with pytest.raises(BundleError, match="not a state dict of plain tensors alone"):
        read_linear(tmp_path / "theirs", LAYERS, HIDDEN)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    with (saved(tmp_path / "theirs") / HEAD).open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(BundleError, match="larger than 16 MiB"):
        read_linear(tmp_path / "theirs", LAYERS, HIDDEN)


def test_a_head_on_an_adapted_model(tmp_path: Path) -> None:
    folder = saved(tmp_path / "theirs")
    (folder / "adapter_config.json").touch()
    with pytest.raises(BundleError, match="merge the adapter into the model"):
        read_linear(folder, LAYERS, HIDDEN)
