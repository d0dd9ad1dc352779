"""Engines, one per configuration, and what they are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from app.settings import ATLAS
from guard.probe.bundle import Bundle, load_bundle, save_bundle
from models.atlas.recipe.questions import from_ledger, load_ledger
from models.atlas.recipe.reference import Reader
from tests.engine import forked
from tests.engine.harness import Harness, guarded, plain
from tests.measured import with_heads

# Tight on purpose: prompts are cut into chunks, and 32 long answers do not fit into the cache at once.
TIGHT = (
    "--max-num-batched-tokens=64",
    "--max-num-seqs=32",
    "--block-size=32",
    "--num-gpu-blocks-override=56",
    "--enable-prefix-caching",
)


@pytest.fixture(scope="session", autouse=True)
def forking() -> None:
    forked.install()


@pytest.fixture(scope="session")
def atlas_bundle() -> Bundle:
    return load_bundle(ATLAS / "probe")


@pytest.fixture(scope="session")
def headed(atlas_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Atlas's probe, which reads random heads, too."""
    config = LlamaConfig.from_pretrained(ATLAS)
    assert config.hidden_size == config.num_attention_heads * config.head_dim
    return with_heads(atlas_bundle, tmp_path_factory.mktemp("headed"), config.hidden_size)


@pytest.fixture(scope="session")
def reader() -> Reader:
    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(ATLAS, dtype=torch.float32)
    return Reader(model, AutoTokenizer.from_pretrained(ATLAS))


@pytest.fixture(scope="session")
def prompts(reader: Reader) -> list[list[int]]:
    """Fifty prompts of mixed lengths: single questions, and chats of several turns."""
    texts = [question.text for question in from_ledger(load_ledger(ATLAS), seed=7)]
    made = []
    for i in range(50):
        turns = texts[7 * i : 7 * i + 1 + 2 * (i % 4)]
        messages = []
        for j, text in enumerate(turns):
            messages.append({"role": "user" if j % 2 == 0 else "assistant", "content": text})
        made.append(list(reader.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)))
    return made


@pytest.fixture(scope="module")
def tight(headed: Bundle) -> Iterator[Harness]:
    harness = guarded(ATLAS, headed, TIGHT)
    yield harness
    harness.close()


@pytest.fixture(scope="module")
def vanilla(atlas_bundle: Bundle) -> Iterator[Harness]:
    harness = plain(ATLAS, atlas_bundle, TIGHT)
    yield harness
    harness.close()


@pytest.fixture(scope="session")
def other(atlas_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Neurons that atlas's own probe does not read, some of them positive, in two of its layers."""
    rng = np.random.default_rng(3)
    model = atlas_bundle.card.model
    own = set(zip(atlas_bundle.layer.tolist(), atlas_bundle.neuron.tolist(), strict=True))
    drawn = [(layer, int(n)) for layer in (1, 2) for n in np.sort(rng.choice(model.neurons_per_layer, 40, False))]
    layer, neuron = np.array([pair for pair in drawn if pair not in own], np.int32).T
    weight = rng.normal(size=len(layer)).astype(np.float32)
    tensors = {
        "layer": layer,
        "neuron": neuron,
        "coefficient": weight,
        "folded": weight,
        "usual": np.zeros_like(weight),
    }
    card = atlas_bundle.card.model_copy(update={"id": "other"})
    return save_bundle(tmp_path_factory.mktemp("other"), card, {**atlas_bundle.tensors, **tensors})
