"""What a bundle remembers of its checkpoint: what counts as the same, and what a file may hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.settings import ATLAS, SMOLLM2
from guard.errors import BundleError
from guard.probe.bundle import Bundle, load_bundle, require_model, save_bundle
from guard.probe.identity import forward_config, identify
from guard.probe.reference import FILE, TOLERANCES, Reference, config_differences, write_reference
from tests.conftest import LAYERS, make_card, make_tensors
from tests.measured import with_heads

DTYPES = ("float32", "float16", "bfloat16")


def made(config: dict[str, Any] | None = None, dtype: Any = "float32") -> Reference:
    rng = np.random.default_rng(0)
    scores = {layer: rng.normal(size=7).round(4).tolist() for layer in (0, 1, LAYERS - 1)}
    return Reference(engine="an engine", dtype=dtype, config=config or {}, prompt=list(range(12)), scores=scores)


def with_head(reference: Reference) -> Reference:
    scores = {2: np.random.default_rng(1).normal(size=7).round(4).tolist()}
    return reference.model_copy(update={"heads": {"residual": scores}})


def measured(reference: Reference) -> dict[int, np.ndarray]:
    return {layer: np.array(scores, np.float32) for layer, scores in reference.scores.items()}


def differences(reference: Reference, scores: dict[int, np.ndarray], dtype: str, **heads: Any) -> list[str]:
    """Of the neurons' scores by layer, and of heads'."""
    return reference.differences({"neurons": scores, **heads}, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_layer_shard_or_norm_is_no_rounding(dtype: str) -> None:
    reference = made(dtype=dtype)
    right = measured(reference)
    assert differences(reference, right, dtype) == []
    swapped = {**right, 0: right[1], 1: right[0]}
    assert [line[:7] for line in differences(reference, swapped, dtype)] == ["layer 0", "layer 1"]
    half = {**right, 1: right[1] / 2}
    (line,) = differences(reference, half, dtype)
    assert line.startswith("layer 1 is 50.0% off, where ")
    scaled = {layer: 1.1 * scores for layer, scores in right.items()}
    assert differences(reference, scaled, dtype), "in all layers that is no rounding, though it may be in one"
    lost = {**right, 0: np.full_like(right[0], np.nan)}
    assert differences(reference, lost, dtype)


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 0.001), ("float16", 0.004), ("bfloat16", 0.03)])
def test_rounding_passes(dtype: str, rounding: float) -> None:
    reference, rng = made(dtype=dtype), np.random.default_rng(1)
    noisy = {layer: one + rounding * rng.normal(size=len(one)) for layer, one in measured(reference).items()}
    assert differences(reference, noisy, dtype) == []
    if dtype == "bfloat16":
        assert differences(reference, noisy, "float32") == [], "the coarser of two precisions says how near is near"
        assert differences(made(dtype="float32"), noisy, "float32")


def test_tolerances_widen_with_precision() -> None:
    assert list(TOLERANCES) == list(DTYPES)
    assert all(one.most < one.any < 0.35 for one in TOLERANCES.values()), "another layer is .35 off or more"


def test_a_layer_that_hardly_counts_may_stray(bundle: Bundle) -> None:
    reference = made()
    faint = reference.model_copy(update={"scores": {**reference.scores, 1: [1e-6] * 7}})
    assert differences(faint, {**measured(faint), 1: np.full(7, -1e-6)}, "float32") == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_head_is_held_to_its_own_layers(dtype: str) -> None:
    reference = with_head(made(dtype=dtype))
    own, right = measured(reference), np.array(reference.heads["residual"][2], np.float32)
    assert differences(reference, own, dtype, residual={2: right}) == []
    (line,) = differences(reference, own, dtype, residual={2: 1.5 * right})
    assert line.startswith("residual of layer 2 is 50.0% off, where ")
    (line,) = differences(reference, own, dtype, residual={2: right[::-1]})
    assert differences(reference, own, dtype, residual={2: np.full(7, np.nan)})
    assert differences(reference, {**own, 0: own[1]}, dtype, residual={2: right}), "neurons are held as ever"


def test_it_is_kept_beside_the_bundle_and_changes_no_revision(tmp_path: Path) -> None:
    plain = save_bundle(tmp_path / "probe", make_card(), make_tensors())
    assert plain.reference is None
    with_one = save_bundle(tmp_path / "probe", make_card(), make_tensors(), made())
    assert with_one.reference == made()
    assert with_one.revision == plain.revision
    assert load_bundle(with_one.path, with_reference=False).reference is None
    assert save_bundle(tmp_path / "probe", make_card(), make_tensors()).reference is None, "of an earlier bundle"


def test_one_with_a_head_is_read_as_it_was_written(tmp_path: Path) -> None:
    bare = save_bundle(tmp_path / "bare", make_card(), make_tensors())
    probe = with_heads(bare, tmp_path / "probe", 8)
    heads = {name: {layer: [0.5] * 7 for layer in layers} for name, layers in list(probe.layers_read.items())[1:]}
    reference = made().model_copy(update={"heads": heads})
    assert save_bundle(probe.path, probe.card, probe.tensors, reference).reference == reference
    write_reference(probe.path, made())
    with pytest.raises(BundleError, match="made for another probe"):
        load_bundle(probe.path)
    write_reference(bare.path, reference)
    with pytest.raises(BundleError, match="made for another probe"):
        load_bundle(bare.path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scores": {"0": [1.0] * 7}}, "made for another probe"),
        ({"scores": {str(layer): [1.0] * 6 for layer in (0, 1, 3)}}, "made for another probe"),
        ({"scores": {}}, "made for another probe"),
        ({"scores": {"0": [1.0, "x"]}}, "not a valid reference"),
        ({"prompt": []}, "not a valid reference: prompt"),
        ({"schema_version": 2}, "not a valid reference: schema_version"),
        ({"more": 1}, "not a valid reference: more"),
    ],
)
def test_what_is_none_is_refused(bundle: Bundle, change: dict[str, Any], says: str) -> None:
    write_reference(bundle.path, made())
    file = bundle.path / FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(BundleError, match=rf"{says}.*hguard probe reference"):
        load_bundle(bundle.path)
    assert load_bundle(bundle.path, with_reference=False).card == bundle.card


@pytest.mark.parametrize("text", ["", "[", "[]", "null", '{"scores": NaN}', '{"a": ' * 2000])
def test_what_is_no_json_is_refused(bundle: Bundle, text: str) -> None:
    (bundle.path / FILE).write_text(text)
    with pytest.raises(BundleError, match="not a valid reference"):
        load_bundle(bundle.path)


# -- config.json -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder like atlas's, whose weights are others'."""
    made = tmp_path / "model"
    made.mkdir()
    for name in ("config.json", "chat_template.jinja", "tokenizer_config.json"):
        (made / name).write_bytes((ATLAS / name).read_bytes())
    (made / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return made


def changed(folder: Path, **change: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}, "config.json has rope .*500000"),
        ({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}}, "linear"),
        ({"hidden_act": "gelu"}, "config.json has hidden_act 'gelu', the probe's 'silu'"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"sliding_window": 64}, "config.json has sliding_window 64, the probe's None"),
        ({"architectures": ["MistralForCausalLM"]}, "architectures"),
    ],
)
def test_what_changes_the_forward_pass_is_another_model(
    bundle: Bundle, folder: Path, change: dict[str, Any], says: str
) -> None:
    card = bundle.card.model_copy(update={"model": identify(folder, "like atlas", "an engine")})
    reference = made(forward_config(folder))
    fitting = replace(bundle, card=card, reference=reference)
    assert require_model(fitting, folder) == []
    changed(folder, **change)
    with pytest.raises(BundleError, match=f"was not fit on this model: .*{says}"):
        require_model(fitting, folder)
    assert require_model(replace(fitting, reference=None), folder) == [], "an older bundle does not say"


@pytest.mark.parametrize(
    "change",
    [
        {"transformers_version": "9.9", "dtype": "bfloat16", "torch_dtype": "bfloat16", "use_cache": False},
        {"eos_token_id": [1, 5], "_name_or_path": "elsewhere", "attention_dropout": 0.1, "sliding_window": None},
        {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": None},
        {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": {"type": "default"}},
    ],
)
def test_what_does_not_is_the_same(folder: Path, change: dict[str, Any]) -> None:
    before = forward_config(folder)
    changed(folder, **change)
    assert config_differences(before, forward_config(folder)) == []


@pytest.mark.parametrize("path", [ATLAS / "probe", ATLAS / "base" / "probe", SMOLLM2 / "probe"])
def test_what_ships_has_one(path: Path) -> None:
    shipped = load_bundle(path)
    assert shipped.reference is not None
    assert shipped.reference.dtype == shipped.card.model.dtype
    assert shipped.reference.config["hidden_act"] == "silu"
