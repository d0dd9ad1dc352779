"""Quantised checkpoints (compressed-tensors), made here by rounding to nearest: what is read of them is what the model
goes on with, as far from what its weights stand for, in float32, as its own rounding is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoTokenizer

from app.settings import ATLAS
from guard.errors import FitError
from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle
from guard.probe.cett import norms_of
from models.atlas.recipe.reference import Reader
from tests.engine.explained import assert_told_apart
from tests.engine.half import scores, size
from tests.engine.harness import SCORE, Harness, guarded
from tests.engine.test_families import HEADS, LAYERS, SHAPE, random_bundle
from tests.engine.test_parity import LENGTHS, reference, signals

Tensors = dict[str, torch.Tensor]
SMALL = ["--max-num-batched-tokens=64", "--max-num-seqs=32"]
GROUP = 32
EIGHT = {"num_bits": 8, "type": "int", "symmetric": True}
FOUR = {"num_bits": 4, "type": "int", "symmetric": True}


def int8(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """One scale for each row; activations are rounded token by token. (what is saved, what it stands for)."""
    scale = (weight.abs().amax(1, keepdim=True) / 127).bfloat16()
    rounded = (weight / scale.float()).round().clamp(-127, 127)
    return {name: rounded.to(torch.int8), f"{name}_scale": scale}, rounded * scale.float()


def int4(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """One scale for each 32 numbers of a row, eight numbers to an int32; activations stay as they are."""
    grouped = weight.reshape(len(weight), -1, GROUP)
    scale = (grouped.abs().amax(2, keepdim=True) / 7).bfloat16()
    rounded = (grouped / scale.float()).round().clamp(-8, 7)
    eight = (rounded.flatten(1).to(torch.int32) + 8).unflatten(1, (-1, 8))
    packed = sum(eight[:, :, at] << (4 * at) for at in range(8))
    saved = {f"{name}_packed": packed, f"{name}_scale": scale[:, :, 0], f"{name}_shape": torch.tensor(weight.shape)}
    return saved, (rounded * scale.float()).flatten(1)


FORMATS: dict[str, tuple[str, Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]], dict[str, Any]]] = {
    "W8A8": (
        "int-quantized",
        int8,
        {
            "weights": {**EIGHT, "strategy": "channel"},
            "input_activations": {**EIGHT, "strategy": "token", "dynamic": True},
        },
    ),
    "W4A16": (
        "pack-quantized",
        int4,
        {"weights": {**FOUR, "strategy": "group", "group_size": GROUP}, "input_activations": None},
    ),
}


def checkpoint(name: str, folder: Path) -> Reader:
    """A random Qwen3 in this format; and what its weights stand for."""
    kind, rounded, group = FORMATS[name]
    tokenizer = AutoTokenizer.from_pretrained(ATLAS)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SHAPE, **HEADS, vocab_size=len(tokenizer)))
    model.to(torch.bfloat16).save_pretrained(folder)
    model.float()
    kept: Tensors = {}
    with torch.no_grad():
        for key, weight in model.state_dict().items():
            if key.endswith("proj.weight"):
                saved, stands_for = rounded(key, weight)
                kept |= saved
                weight.copy_(stands_for)
            else:
                kept[key] = weight.bfloat16()
    save_file({key: one.contiguous() for key, one in kept.items()}, folder / "model.safetensors", {"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    said["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": {"targets": ["Linear"], **group}},
        "ignore": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(said))
    return Reader(model, tokenizer)


@pytest.fixture(scope="module", params=sorted(FORMATS))
def quantised(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Harness, Reader, Bundle]]:
    folder = tmp_path_factory.mktemp(request.param)
    reader = checkpoint(request.param, folder)
    bundle = random_bundle(reader, folder)
    harness = guarded(folder, bundle, SMALL)
    yield harness, reader, bundle
    harness.close()


def test_what_is_read(quantised: tuple[Harness, Reader, Bundle], prompts: list[list[int]]) -> None:
    harness, reader, bundle = quantised
    assert (bundle.card.model.quantization, bundle.card.model.dtype) == ("compressed-tensors", "bfloat16")
    short = [prompt for prompt in prompts if len(prompt) < 200][:12]
    produced = harness.produce(short, LENGTHS[:12])
    wanted = reference(reader, bundle, short, [one.tokens for one in produced])
    for name in bundle.layers_read:
        got, exact = scores([signals(one) for one in produced], name), scores(wanted, name)
        assert 0 < size(got - exact) < 0.03 * size(exact)
    assert_told_apart(harness, reader, bundle, short[:4], LENGTHS[:4], near=0.05)


def test_neurons_are_scaled(quantised: tuple[Harness, Reader, Bundle], prompts: list[list[int]]) -> None:
    harness, *_ = quantised
    plain, off, again = harness.produce(prompts[:1] * 3, 8, [SCORE, Policy(Mode.SCORE, 0.5, scale=0.0), SCORE])
    assert plain.tokens == again.tokens
    np.testing.assert_allclose(signals(again)["neurons"], signals(plain)["neurons"], rtol=1e-3, equal_nan=True)
    changed = signals(off)["neurons"][0] - signals(plain)["neurons"][0]
    assert abs(changed) > 0.01 * abs(signals(plain)["neurons"][0]), "later layers see what was switched off"


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_column_norms_are_those_of_what_the_weights_stand_for(name: str, tmp_path: Path) -> None:
    reader = checkpoint(name, tmp_path)
    np.testing.assert_allclose(norms_of(tmp_path, LAYERS, SHAPE["intermediate_size"]), reader.norms.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("scale", "stands_for"),
    [
        (torch.tensor(0.5), lambda w: w * 0.5),
        (torch.tensor([2.0]), lambda w: w * 2),
        (torch.tensor([1.0, 2.0, 3.0, 4.0]), lambda w: w * torch.tensor([[1.0], [2.0], [3.0], [4.0]])),
        (
            torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
            lambda w: w * torch.kron(torch.tensor([[1, 2], [3, 4]]), torch.ones(2, 3)),
        ),
    ],
    ids=["one", "one in a list", "of rows", "of blocks"],
)
def test_scales_of_float8(
    scale: torch.Tensor, stands_for: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    weight = torch.randn(4, 6).to(torch.float8_e4m3fn)
    name = "model.layers.0.mlp.down_proj.weight"
    save_file({name: weight, f"{name}_scale": scale}, tmp_path / "model.safetensors")
    np.testing.assert_allclose(norms_of(tmp_path, 1, 6)[0], stands_for(weight.float()).norm(dim=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"qweight": torch.zeros(4, 6, dtype=torch.int32)}, "qweight is of a quantisation whose column norms are not"),
        ({"weight": torch.zeros(4, 6), "weight_scale_inv": torch.ones(1)}, "weight_scale_inv is of a quantisation"),
        ({"weight": torch.zeros(4, 6, dtype=torch.int8)}, "is torch.int8, and the file has no .*weight_scale"),
        (
            {"weight": torch.zeros(4, 6, dtype=torch.int8), "weight_scale": torch.ones(4, 4)},
            r"has the shape \[4, 4\], of which \[4, 6\] is no multiple",
        ),
        (
            {"weight_packed": torch.zeros(4, 6, dtype=torch.int8), "weight_scale": torch.ones(4, 1)},
            "is torch.int8, and not int4 packed",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_name(tensors: Tensors, says: str, tmp_path: Path) -> None:
    named = {f"model.layers.0.mlp.down_proj.{name}": one for name, one in tensors.items()}
    save_file(named, tmp_path / "model.safetensors")
    with pytest.raises(FitError, match=says):
        norms_of(tmp_path, 1, 6)
