"""Models to measure that need no download: real shapes, random weights, a probe of random neurons; and no model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from guard.probe.bundle import Bundle, save_bundle
from guard.probe.card import (
    SCHEMA_VERSION,
    ModelIdentity,
    ProbeCard,
    ReadoutParameters,
    StackParameters,
    Term,
    Training,
)
from guard.probe.identity import identify
from guard.probe.signals import ALWAYS


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes; ``neurons`` H-neurons in each of ``tapped`` of its layers."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    tapped: int
    neurons: int
    context: int = 4096


# Of no model; of Qwen2.5-0.5B and Llama-3.1-8B. The paper finds H-neurons in nearly all layers, a few in each.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-0.1b", 768, 3072, 12, 12, 4, 32_000, True, 11, 4),
        Shape("llama-0.5b", 896, 4864, 24, 14, 2, 151_936, True, 22, 4),
        Shape("llama-8b", 4096, 14336, 32, 32, 8, 128_256, False, 30, 5),
    )
}


STEP_VARIABLE = "HGUARD_BENCH_STEP_US"
# Microseconds of a step, and of each sequence in it, of an engine without a model: API processes keep up with that.
STEP = "2000,250"


def modelless(sequences: int) -> list[str]:
    """vLLM's arguments for an engine that computes nothing (``guard.bench.models.modelless``), for so many at once."""
    backend = "guard.bench.models.modelless.ModellessExecutor"
    return ["--distributed-executor-backend", backend, "--max-num-seqs", str(sequences)]


def write_model(shape: Shape, folder: Path) -> Path:
    """A model folder with a configuration and no weights, for ``--load-format dummy --skip-tokenizer-init``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def write_chat_model(shape: Shape, folder: Path, speaker: Path) -> Bundle:
    """A model folder with random weights in bfloat16 that chats with the tokenizer and template of ``speaker``, and has
    its vocabulary, of which it says only text; the bundle of random neurons for it, in ``probe/``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(speaker)
    tokenizer.save_pretrained(write_model(replace(shape, vocabulary=len(tokenizer)), folder))
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    # A stream of tokens that are no text has no frames: they are never the likeliest.
    said = [str(tokenizer.decode([i], skip_special_tokens=True)) for i in range(len(tokenizer))]
    mute = [i for i, text in enumerate(said) if not text.strip("\ufffd ")]
    with torch.no_grad():
        model.get_output_embeddings().weight[mute] = 0
    model.save_pretrained(folder)
    return write_probe(shape, folder / "probe", identity=identify(folder, shape.name, "none"))


def write_probe(
    shape: Shape,
    folder: Path,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    identity: ModelIdentity | None = None,
) -> Bundle:
    """A bundle of random neurons for ``shape``; what it says means nothing, what it costs does."""
    rng = np.random.default_rng(0)
    layers = np.sort(rng.choice(shape.layers, shape.tapped, replace=False)).repeat(shape.neurons)
    neuron = np.concatenate([rng.choice(shape.intermediate, shape.neurons, replace=False) for _ in range(shape.tapped)])
    coefficient = rng.normal(size=len(layers)).astype(np.float32)
    tensors: dict[str, NDArray[Any]] = {
        "layer": layers.astype(np.int32),
        "neuron": neuron.astype(np.int32),
        "coefficient": coefficient,
        "folded": coefficient,
        "right_risks": np.linspace(0.01, 0.99, 99, dtype=np.float32),
    }
    stack = StackParameters(signals={name: Term(mean=0.0, scale=1.0, weight=1.0) for name in ALWAYS}, bias=0.0)
    identity = identity or ModelIdentity(
        id=shape.name,
        fingerprint="0" * 64,
        dtype=dtype,
        chat_template_sha256="0" * 64,
        layers=shape.layers,
        neurons_per_layer=shape.intermediate,
        engine="none",
    )
    card = ProbeCard(
        schema_version=SCHEMA_VERSION,
        id=f"{shape.name}-random",
        model=identity,
        training=Training(
            method="random", labels="1-vs-1", C=1.0, seed=0, span="answer-tokens-and-last-prompt-token", answers={}
        ),
        intercept=0.0,
        readout=ReadoutParameters(window=8, answer=stack, platt=(1.0, 0.0), token=stack),
        thresholds={"0.05": 0.9},
        metrics={},
        tensors_sha256="0" * 64,
    )
    return save_bundle(folder, card, tensors)
