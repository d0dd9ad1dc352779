"""Probes that hprobes saved: the same decisions on CETT as it is, and each fault by its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression

from guard.errors import BundleError
from guard.probe.foreign.hprobes import is_hprobes, read_hprobes

LAYERS, WIDTH = 6, 10
USED = [1, 3, 5]  # of every other layer, as with a stride of 2


def saved(folder: Path, config: object = None, **changed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """A probe as hprobes 0.9 saves it: CETT float64 [answers, layers * width], and its decisions on these."""
    rng = np.random.default_rng(0)
    cett = rng.gamma(2, 1, (200, LAYERS * WIDTH)) * np.exp(rng.normal(-5, 1, LAYERS * WIDTH))
    read = np.concatenate([np.arange(layer * WIDTH, (layer + 1) * WIDTH) for layer in USED])
    index = rng.permutation(len(read))[:20]
    features = cett[:, read][:, index]
    mean, deviation = features.mean(0), features.std(0)
    standard = (features - mean) / (deviation + 1e-8)
    wrong = standard[:, 0] - standard[:, 1] + rng.normal(size=200) > 0
    model = LogisticRegression(l1_ratio=1.0, solver="liblinear", C=0.1, random_state=0).fit(standard, wrong)
    tensors = {
        "clf_coef": model.coef_,
        "clf_intercept": model.intercept_,
        "top_k_idx": index,
        "col_mean": mean,
        "col_std": deviation,
        "X_train": standard.astype(np.float32),
    }
    folder.mkdir(exist_ok=True)
    save_file({k: v for k, v in {**tensors, **changed}.items() if v is not None}, folder / "probe.safetensors")
    card = {"config": {"layers": USED, "intermediate_dim": WIDTH}} if config is None else config
    (folder / "probe.json").write_text(json.dumps(card))
    return cett, model.decision_function(standard)


@pytest.mark.parametrize("name", ["", "probe.json", "probe.safetensors"])
def test_decisions_are_the_same_on_cett_as_it_is(tmp_path: Path, name: str) -> None:
    cett, decisions = saved(tmp_path / "probe")
    assert is_hprobes(tmp_path / "probe" / name)
    found = read_hprobes(tmp_path / "probe" / name, LAYERS, WIDTH)
    assert 0 < len(found.layer) < 20
    assert set(found.layer.tolist()) <= set(USED)
    own = cett[:, found.layer * WIDTH + found.neuron] @ found.weight + found.intercept
    np.testing.assert_allclose(own, decisions, rtol=1e-4, atol=1e-4)


def test_what_is_none(tmp_path: Path) -> None:
    saved(tmp_path / "probe")
    assert not is_hprobes(tmp_path)
    assert not is_hprobes(tmp_path / "probe" / "list.csv")
    (tmp_path / "probe" / "probe.safetensors").unlink()
    assert not is_hprobes(tmp_path / "probe")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ([], "is no probe of hprobes"),
        ({"config": {"layers": [0]}}, "is no probe of hprobes"),
        ({"config": {"layers": ["0"], "intermediate_dim": WIDTH}}, "is no probe of hprobes"),
        ({"config": {"layers": [0, 6], "intermediate_dim": WIDTH}}, "its layers go to 6, the model's to 5"),
        ({"config": {"layers": [], "intermediate_dim": WIDTH}}, "its layers go to -1"),
        ({"config": {"layers": USED, "intermediate_dim": 11}}, "has 11 neurons in a layer, this one 10"),
        ({"config": {"layers": [0], "intermediate_dim": WIDTH}}, "points past its 1 layers of 10 neurons"),
    ],
)
def test_faults_of_the_card(tmp_path: Path, config: object, says: str) -> None:
    saved(tmp_path / "probe", config)
    with pytest.raises(BundleError, match=says):
        read_hprobes(tmp_path / "probe", LAYERS, WIDTH)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"col_std": None}, r"lacks col_std.*--refit"),
        ({"clf_coef": np.zeros((1, 20))}, "every coefficient is 0"),
        ({"clf_coef": np.zeros((2, 20))}, "not of one length"),
        ({"clf_coef": np.full((1, 20), np.nan)}, "not finite"),
        ({"clf_coef": np.full((1, 20), 1e300)}, "not finite in float32"),
        ({"col_std": np.full(20, -1.0)}, "negative"),
        ({"top_k_idx": np.full(20, 30)}, "points past its 3 layers"),
        ({"top_k_idx": np.full(20, 3), "clf_coef": np.ones((1, 20))}, "names a neuron twice"),
    ],
)
def test_faults_of_the_tensors(tmp_path: Path, changed: dict[str, np.ndarray | None], says: str) -> None:
    saved(tmp_path / "probe", **changed)
    with pytest.raises(BundleError, match=says):
        read_hprobes(tmp_path / "probe", LAYERS, WIDTH)


def test_a_file_that_is_broken(tmp_path: Path) -> None:
    saved(tmp_path / "probe")
    (tmp_path / "probe" / "probe.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(BundleError, match=r"probe\.safetensors cannot be read"):
        read_hprobes(tmp_path / "probe", LAYERS, WIDTH)
    (tmp_path / "probe" / "probe.json").write_text("{")
    with pytest.raises(BundleError, match="is no probe of hprobes"):
        read_hprobes(tmp_path / "probe", LAYERS, WIDTH)
