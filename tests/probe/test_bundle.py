"""What a bundle may not be: each fault is refused by name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save

from guard.errors import BundleError, RequestError
from guard.probe.bundle import Bundle, load_bundle, require_calibrated, save_bundle
from guard.probe.card import StackParameters
from guard.probe.signals import OPTIONAL
from tests.conftest import make_card, make_tensors
from tests.measured import with_heads

ATLAS_PROBE = Path(__file__).parents[2] / "models/atlas/probe"


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    card = json.loads((folder / "probe.json").read_text())
    edit(card)
    (folder / "probe.json").write_text(json.dumps(card))


def put_tensors(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Replace the tensors and keep the card's hash true, so that only their content is at fault."""
    raw = save(tensors)
    (folder / "probe.safetensors").write_bytes(raw)
    rewrite(folder, lambda card: card.update(tensors_sha256=hashlib.sha256(raw).hexdigest()))


def test_round_trip(bundle: Bundle) -> None:
    again = load_bundle(bundle.path)
    assert again.card == bundle.card
    np.testing.assert_array_equal(again.coefficient, make_tensors()["coefficient"])
    assert again.h_neurons == 3
    assert again.revision == bundle.revision


def test_revision_is_the_hash_of_what_the_file_says() -> None:
    """So a release in which a card may say more leaves the revisions of older bundles as they were."""
    said = json.loads((ATLAS_PROBE / "probe.json").read_text())
    expected = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
    assert load_bundle(ATLAS_PROBE).revision == expected


def test_revision_follows_the_content(bundle: Bundle, tmp_path: Path) -> None:
    other = make_tensors()
    other["coefficient"] = other["coefficient"] * 2
    assert save_bundle(tmp_path / "other", make_card(), other).revision != bundle.revision


@pytest.mark.parametrize("name", ["probe.json", "probe.safetensors"])
def test_missing_file(bundle: Bundle, name: str) -> None:
    (bundle.path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(bundle.path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no probe bundle at"):
        load_bundle(tmp_path / "nowhere")


def test_corrupt_tensors(bundle: Bundle) -> None:
    file = bundle.path / "probe.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(BundleError, match="sha256 differs"):
        load_bundle(bundle.path)


def test_not_safetensors(bundle: Bundle) -> None:
    raw = b"not a safetensors file"
    (bundle.path / "probe.safetensors").write_bytes(raw)
    rewrite(bundle.path, lambda card: card.update(tensors_sha256=hashlib.sha256(raw).hexdigest()))
    with pytest.raises(BundleError, match="not a readable safetensors file"):
        load_bundle(bundle.path)


@pytest.mark.parametrize("text", ["{", "[]", "\ud800".encode("utf-8", "surrogatepass").decode("latin1"), "[" * 100_000])
def test_corrupt_card(bundle: Bundle, text: str) -> None:
    (bundle.path / "probe.json").write_text(text, encoding="latin1")
    with pytest.raises(BundleError):
        load_bundle(bundle.path)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda card: card.update(schema_version=1), "schema version 1, and this release reads version 2"),
        (lambda card: card.pop("schema_version"), "schema version None"),
        (lambda card: card.pop("model"), "model: Field required"),
        (lambda card: card.update(surprise=1), "surprise"),
        (lambda card: card["readout"].update(window=0), "readout.window"),
        (lambda card: card["readout"]["answer"]["signals"]["entropy"].update(scale=0), "answer.signals.entropy.scale"),
        (lambda card: card["readout"]["answer"].update(signals={}), "readout.answer.signals"),
        (
            lambda card: card["readout"]["token"]["signals"].update(mood={"mean": 0, "scale": 1, "weight": 1}),
            "does not measure mood; it measures neurons, entropy, logprob",
        ),
        (lambda card: card["readout"]["answer"].update(bias=float("nan")), "readout.answer.bias"),
        (lambda card: card.update(id="../../etc"), "id"),
        (lambda card: card["model"].update(dtype="int3"), "model.dtype"),
        (lambda card: card["readout"].update(isotonic=[[0, 0.1], [0, 0.2]]), "isotonic points must ascend"),
        (lambda card: card["readout"].update(isotonic=[[0, 0.4], [1, 0.2]]), "isotonic points must ascend"),
        (lambda card: card["readout"].update(isotonic=[[0, 0.1], [1, 1.2]]), "readout.isotonic"),
        (lambda card: card["readout"].update(prompt_platt=[1.0, 0.0]), "needs both its calibration"),
        (lambda card: card["training"].update(C=None), "C cannot be left out of l1-logistic-regression"),
        (lambda card: card["training"].pop("answers"), "training.answers: Field required"),
    ],
)
def test_wrong_card(bundle: Bundle, edit: Callable[[dict[str, Any]], None], says: str) -> None:
    rewrite(bundle.path, edit)
    with pytest.raises(BundleError, match=says):
        load_bundle(bundle.path)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("coefficient", np.array([1, np.nan, 2, 1, 1], np.float32), "not finite"),
        ("folded", np.array([1, np.inf, 2, 1, 1], np.float32), "not finite"),
        ("layer", np.array([0, 0, 1, 4, 3], np.int32), r"layer index is outside 0..3"),
        ("layer", np.array([-1, 0, 1, 3, 3], np.int32), r"layer index is outside 0..3"),
        ("neuron", np.array([3, 7, 0, 64, 2], np.int32), r"neuron index is outside 0..63"),
        ("neuron", np.array([3, 3, 0, 63, 2], np.int32), "listed twice"),
        ("neuron", np.array([3, 7], np.int32), "differ in length"),
        ("neuron", np.array([[3, 7, 0, 63, 2]], np.int32), "one-dimensional int32"),
        ("neuron", np.array([3, 7, 0, 63, 2], np.int64), "one-dimensional int32"),
        ("usual", np.array([1, 2], np.float32), "differ in length"),
        ("usual", np.array([1, np.nan, 2, 1, 1], np.float32), "not finite"),
        ("usual", np.array([1, 2, 3, 4, 5], np.float64), "one-dimensional float32"),
        ("right_risks", np.array([0.5, 0.1], np.float32), "not ascending"),
        ("wrong_risks", np.array([0.5, 0.1], np.float32), "not ascending"),
        ("wrong_risks", np.array([0.5, np.inf], np.float32), "not finite"),
        ("right_prompt_risks", np.array([0.5, 0.1], np.float32), "not ascending"),
        ("right_prompt_risks", np.array([0.1, np.nan], np.float32), "not finite"),
        ("right_prompt_risks", np.array([0.1, 0.5], np.float32), "needs both its calibration"),
    ],
)
def test_wrong_tensors(bundle: Bundle, name: str, value: np.ndarray, says: str) -> None:
    put_tensors(bundle.path, {**make_tensors(), name: value})
    with pytest.raises(BundleError, match=says):
        load_bundle(bundle.path)


def test_no_neurons(bundle: Bundle) -> None:
    empty = {name: value[:0] if name != "right_risks" else value for name, value in make_tensors().items()}
    put_tensors(bundle.path, empty)
    with pytest.raises(BundleError, match="no neurons"):
        load_bundle(bundle.path)


def test_missing_tensor(bundle: Bundle) -> None:
    tensors = make_tensors()
    del tensors["folded"]
    put_tensors(bundle.path, tensors)
    with pytest.raises(BundleError, match="'folded' is missing"):
        load_bundle(bundle.path)


def test_what_no_answers_stand_behind_is_not_calibrated(bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.calibrated
    require_calibrated(bundle, "model")
    none = save_bundle(tmp_path / "none", make_card(), {**make_tensors(), "right_risks": np.zeros(0, np.float32)})
    assert not none.calibrated
    with pytest.raises(
        BundleError, match=r"small-probe is not calibrated: run `hguard calibrate model --probe .*none "
    ):
        require_calibrated(none, "model")


def test_a_risk_before_generation_has_thresholds_of_its_own(bundle: Bundle, foreseeing: Bundle) -> None:
    assert foreseeing.has_prompt_risk
    assert not bundle.has_prompt_risk
    assert foreseeing.readout.prompt_risk(0.0) == 0.5
    assert foreseeing.prompt_threshold(0.1) == pytest.approx(0.9, abs=1e-6)
    assert bundle.readout.prompt_risk(0.0) is None
    with pytest.raises(RequestError, match="no risk before generation"):
        bundle.prompt_threshold(0.1)


# -- heads -------------------------------------------------------------------------------------------------------------


def test_heads_are_read_as_they_were_written(bundle: Bundle, tmp_path: Path) -> None:
    headed = with_heads(bundle, tmp_path / "headed", 8)
    assert load_bundle(headed.path).heads == headed.heads == headed.tapped_heads
    assert headed.measured == bundle.measured | set(OPTIONAL)
    of_heads = {"residual": [0, 3], "attention": [1, 3], "block": [0, 3], "distance": [2]}
    assert headed.layers_read == {"neurons": [0, 1, 3], **of_heads}
    assert not headed.reads_as(bundle)
    assert not headed.reads_as(with_heads(bundle, tmp_path / "another", 8, seed=6))
    assert headed.reads_as(load_bundle(headed.path))


def test_a_head_that_counts_in_no_risk_is_not_tapped(bundle: Bundle, tmp_path: Path) -> None:
    headed = with_heads(bundle, tmp_path / "headed", 8)
    idle = save_bundle(tmp_path / "idle", bundle.card, headed.tensors)
    assert idle.heads == headed.heads
    assert set(idle.tapped_heads) == {"distance"}, "it never does, and is"
    assert idle.measured == bundle.measured | {"distance"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"residual_layer": None}, "'residual_layer' is missing, and the other of its head is there"),
        ({"attention_weight": None}, "'attention_weight' is missing, and the other of its head is there"),
        ({"residual_layer": None, "residual_weight": None}, "its readout reads residual, and it has no head for that"),
        ({"residual_layer": np.array([0, 4], np.int32)}, r"'residual_layer' must ascend, within 0\.\.3"),
        ({"residual_layer": np.array([-1, 3], np.int32)}, r"'residual_layer' must ascend, within 0\.\.3"),
        ({"residual_layer": np.array([3, 0], np.int32)}, r"'residual_layer' must ascend, within 0\.\.3"),
        ({"residual_layer": np.array([2], np.int32)}, "must have a row for each layer"),
        ({"residual_weight": np.ones((2, 0), np.float32)}, "must have a row for each layer"),
        ({"residual_weight": np.full((2, 8), np.nan, np.float32)}, "'residual_weight' has values that are not finite"),
        ({"residual_weight": np.ones(8, np.float32)}, "'residual_weight' must be two-dimensional float32"),
        ({"residual_weight": np.ones((2, 8), np.float64)}, "'residual_weight' must be two-dimensional float32"),
        ({"residual_layer": np.zeros((2, 1), np.int32)}, "'residual_layer' must be one-dimensional int32"),
    ],
)
def test_wrong_heads(bundle: Bundle, tmp_path: Path, change: dict[str, np.ndarray | None], says: str) -> None:
    headed = with_heads(bundle, tmp_path / "headed", 8)
    changed: dict[str, Any] = {**headed.tensors, **change}
    put_tensors(headed.path, {name: tensor for name, tensor in changed.items() if tensor is not None})
    with pytest.raises(BundleError, match=says):
        load_bundle(headed.path)


@pytest.fixture
def headed(bundle: Bundle, tmp_path: Path) -> Bundle:
    return with_heads(bundle, tmp_path / "headed", 8)


def test_a_distance_is_measured_and_counts_in_no_risk(headed: Bundle) -> None:
    assert "distance" in headed.measured
    assert "distance" not in headed.readout.used
    assert load_bundle(headed.path).heads["distance"] == headed.heads["distance"]
    answer = headed.card.readout.answer
    weighed = answer.model_dump()
    weighed["signals"]["distance"] = {"mean": 0.0, "scale": 1.0, "weight": 1.0}
    with pytest.raises(ValidationError, match="distance counts in no risk"):
        StackParameters.model_validate(weighed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"distance_layer": np.array([0, 1], np.int32)}, "'distance_layer' must name one layer"),
        ({"distance_weight": np.zeros((0, 9), np.float32)}, "have a row for each axis"),
        ({"distance_weight": np.full((2, 9), np.nan, np.float32)}, "'distance_weight' has values that are not finite"),
    ],
)
def test_a_distance_that_cannot_be_read_is_refused(
    headed: Bundle, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(BundleError, match=re.escape(said)):
        save_bundle(tmp_path / "other", headed.card, {**headed.tensors, **changed})


def test_a_limit_without_a_distance_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    readout = bundle.card.readout.model_copy(update={"distance_limit": 1.0})
    with pytest.raises(BundleError, match="a limit of the distance, and there is no head for that"):
        save_bundle(tmp_path / "other", bundle.card.model_copy(update={"readout": readout}), bundle.tensors)


def test_a_distance_decides_not_what_can_be_scored_beside_a_probe(headed: Bundle, tmp_path: Path) -> None:
    """It makes no risk: a shadow probe with one may stand beside a probe without, and the other way round."""
    plain = {name: one for name, one in headed.tensors.items() if not name.startswith("distance")}
    without = save_bundle(tmp_path / "without", headed.card, plain)
    assert headed.reads_within(without)
    assert without.reads_within(headed)
