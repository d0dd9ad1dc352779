"""A tiny model with a long context and a probe, and a cache of the Hub that has it under one name.

Its weights are random but for one thing: whatever a prompt ends in, it says ANSWER and ends, most surely. So tests that
need a thought, an answer and an end compare something. Under a grammar of JSON it closes whatever it has opened.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from guard.bench.models.synthetic import Shape, write_model, write_probe
from guard.probe.bundle import save_bundle
from guard.probe.identity import identify

SHAPE = Shape("random-llama", 128, 384, 3, 4, 2, 0, False, 3, 4, context=32_768)
LONGEST = 256
# A token each, and in no prompt. What tests look for in answers is among them; a thought comes first.
SKIPPED = tuple(f" lorem{i}" for i in range(30))  # any of these may be left out: drawn answers differ
ANSWER = (
    *("<think>", *(f" cogito{i}" for i in range(8)), "</think>", " Responsum"),
    *(" 312", " 30", " 610", *SKIPPED, " ipsum", " QED."),
)
JSON = ('"', "}", "]", ":", ",", "{", "[", " ")  # after one of them comes the end, or the first of them that may come
VOCABULARY = 8192  # tests name tokens up to 5000
NAME = "tests/random-llama"
# Which models the tests name; NAME stands in for each. Those of LoRA matter to no server: none gets it.
NAMES = (
    "HuggingFaceH4/zephyr-7b-beta",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "Qwen/Qwen2-1.5B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-8B",
    "charent/self_cognition_Alice",
    "claude-3-7-sonnet-latest",
    "facebook/opt-125m",
    "openai-community/gpt2",
    "typeof/zephyr-7b-beta-lora",
)
# The tests send tools, and contents of parts; of a random model it is enough that the prompt has them.
TEMPLATE = (
    "{{ bos_token }}{% if tools %}<|system|>{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "<|{{ m['role'] if m['role'] in ['assistant', 'system'] else 'user' }}|>"
    "{{ m['content'] or '' }}{% if m['role'] == 'assistant' and not (loop.last and not add_generation_prompt) %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_STRONG, _SURE, _CLOSES, _LESS = 8.0, 1.5, 0.4, 0.15
_REVISION = "0" * 40


def written(folder: Path, speaker: Path) -> Path:
    """A model folder with float32 weights, the tokenizer of ``speaker`` and, in ``probe/``, random neurons."""
    import torch
    from transformers import AddedToken, AutoConfig, AutoModelForCausalLM, AutoTokenizer

    shutil.rmtree(folder, ignore_errors=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(speaker)
    tokenizer.chat_template, tokenizer.model_max_length = TEMPLATE, SHAPE.context
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ANSWER])
    tokenizer.add_tokens([f"<extra-{i}>" for i in range(len(tokenizer), VOCABULARY)])
    shape = replace(SHAPE, vocabulary=len(tokenizer))
    write_model(shape, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}), encoding="utf-8")
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    _teach(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Under a grammar the model may not end by itself. vLLM takes this for the longest answer that anybody may ask for.
    limits = {"max_new_tokens": LONGEST, "eos_token_id": 1, "bos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(limits), encoding="utf-8")
    bundle = write_probe(shape, folder / "probe", "float32", identify(folder, shape.name, "none"))
    # Risks that stay below 1, the threshold of the run in mode abstain, at which nothing may be withheld.
    mild = bundle.card.readout.answer.model_copy(update={"weight": (0.01, 0.01, 0.01)})
    readout = bundle.card.readout.model_copy(update={"answer": mild, "token": mild})
    tensors = load_file(folder / "probe" / "probe.safetensors")
    save_bundle(folder / "probe", bundle.card.model_copy(update={"readout": readout}), tensors)
    return folder


def _teach(model: Any, tokenizer: Any) -> None:
    """Have each token of ANSWER foretell the next (or the one after that), the last one the end, all others the first.

    A token's embedding is dominated by one dimension, and a row of the head reads that of the token before it. The
    other logits stay those of random weights, near 0.
    """
    import torch

    chain, end = tokenizer.convert_tokens_to_ids(list(ANSWER)), model.config.eos_token_id
    document = [tokenizer.encode(text, add_special_tokens=False)[0] for text in JSON]
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    start, structure = len(chain), len(chain) + 1
    dimensions = [start] * len(embedding)
    for at, token in enumerate(chain):
        dimensions[token] = at
    for token in document:
        dimensions[token] = structure
    with torch.no_grad():
        for token, dimension in enumerate(dimensions):
            embedding[token, dimension] += _STRONG
        for at, token in zip((start, *range(len(chain)), structure), (*chain, end, end), strict=True):
            head[token, at] += _SURE
        for at in range(chain.index(tokenizer.convert_tokens_to_ids(SKIPPED[0])), start - 2):
            head[chain[at + 2], at] += _SURE
        for rank, token in enumerate(document, 1):
            head[token, structure] += _SURE - rank * _LESS
            head[token, :structure] += _CLOSES - rank * _LESS / 5


def hub(model: Path, home: Path) -> Path:
    """A ``HF_HOME`` in which NAME is ``model``."""
    shutil.rmtree(home, ignore_errors=True)
    entry = home / "hub" / f"models--{NAME.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(_REVISION, encoding="utf-8")
    (entry / "snapshots").mkdir()
    (entry / "snapshots" / _REVISION).symlink_to(model.resolve(), target_is_directory=True)
    return home


def renamed(tests: Path) -> Path:
    """``tests`` with NAME in the place of each of NAMES: one server can serve them all then."""
    for file in tests.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        made = text
        for name in NAMES:
            made = made.replace(f'"{name}"', f'"{NAME}"')
        if made != text:
            file.write_text(made, encoding="utf-8")
    return tests
