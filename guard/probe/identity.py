"""Which model is this? Read from its folder, without loading it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, cast

from guard.errors import BundleError
from guard.probe.card import ModelIdentity

DTYPES = ("float32", "bfloat16", "float16")
_SAMPLE = 64 << 10  # bytes read of each block
_BLOCK = 16 << 20  # a weights file is sampled once in each block of this size


def weights_fingerprint(folder: Path) -> str:
    """sha256 over every safetensors file's name, size, header, and 64 KiB of each 16 MiB of data.

    Any re-save, fine-tune or quantisation changes it, and a 140 GB checkpoint is read in seconds.
    Raises BundleError when the folder holds no safetensors weights.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BundleError(f"{folder} holds no .safetensors weights to identify the model by")
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode())
        with file.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(min(header, 100 << 20)))
            for offset in range(8 + header, size, _BLOCK):
                stream.seek(offset)
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()


def chat_template_hash(folder: Path) -> str:
    """sha256 of the chat template in the folder, or of nothing when it has none."""
    separate = folder / "chat_template.jinja"
    if separate.is_file():
        text = separate.read_text(encoding="utf-8")
    else:
        config = folder / "tokenizer_config.json"
        text = (
            str(json.loads(config.read_text(encoding="utf-8")).get("chat_template") or "") if config.is_file() else ""
        )
    return hashlib.sha256(text.encode()).hexdigest()


def model_config(folder: Path) -> dict[str, Any]:
    """The text part of ``config.json``. Raises BundleError when there is none, or it is of no family known here."""
    file = folder / "config.json"
    if not file.is_file():
        raise BundleError(f"{folder} is not a model folder: config.json is missing")
    config = json.loads(file.read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    for key in ("num_hidden_layers", "intermediate_size"):
        if not isinstance(config.get(key), int):
            raise BundleError(f"{file} gives no {key}: not a dense model with an mlp.down_proj in each layer")
    return cast("dict[str, Any]", config)


# What changes nothing of the forward pass: where the model comes from, how it was trained, which tokens end what.
_INERT = frozenset(
    {"_name_or_path", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache", "pretraining_tp"}
    | {"bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id"}
    | {"initializer_range", "attention_dropout", "hidden_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop"}
    | {"id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params"}
    | {"return_dict", "output_attentions", "output_hidden_states", "quantization_config"}
)
_OF_ROPE = ("rope_parameters", "rope_scaling", "rope_theta")


def forward_config(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says of the text model's forward pass; how it spells rotary embeddings does not count.

    Whatever is not known to change nothing is in it. Raises BundleError as ``model_config`` does.
    """
    config = model_config(folder)
    kept = {name: value for name, value in config.items() if name not in {*_INERT, *_OF_ROPE} and value is not None}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(rope, dict):
        rope = {"rope_type" if name == "type" else name: value for name, value in rope.items()}
        theta = {} if config.get("rope_theta") is None else {"rope_theta": config["rope_theta"]}
        rope = {"rope_type": "default", **theta, **rope}
    return {**kept, "rope": rope}


def _stored(config: dict[str, Any]) -> str:
    """The precision that a model's configuration names; float32, which saves without a word, where it names none."""
    return str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")


def identify(
    folder: Path, model_id: str, engine: str, dtype: str | None = None, revision: str | None = None
) -> ModelIdentity:
    """The identity of the model in ``folder``, to be written into a bundle; ``dtype`` as stored unless it is given.

    Raises BundleError for a precision that is not supported.
    """
    config = model_config(folder)
    quantization = config.get("quantization_config", {}).get("quant_method")
    stored = dtype or _stored(config)
    if stored not in DTYPES:
        raise BundleError(
            f"{folder} is stored in {stored}, which is not supported; give one of {', '.join(DTYPES)} as --dtype"
        )
    return ModelIdentity(
        id=model_id,
        revision=revision,
        fingerprint=weights_fingerprint(folder),
        dtype=cast("Literal['float32', 'bfloat16', 'float16']", stored),
        quantization=quantization,
        chat_template_sha256=chat_template_hash(folder),
        layers=config["num_hidden_layers"],
        neurons_per_layer=config["intermediate_size"],
        engine=engine,
    )


def differences(expected: ModelIdentity, folder: Path) -> tuple[list[str], list[str]]:
    """(fatal, tolerable) differences between the model a bundle names and the one in ``folder``, as phrases."""
    actual = identify(folder, expected.id, expected.engine, expected.dtype, expected.revision)
    fatal = [
        f"{name.replace('_', ' ')} is {getattr(actual, name)}, the probe's is {getattr(expected, name)}"
        for name in ("layers", "neurons_per_layer", "quantization")
        if getattr(actual, name) != getattr(expected, name)
    ]
    if actual.fingerprint != expected.fingerprint:
        stored = _stored(model_config(folder))
        another = "" if stored == expected.dtype else f"; these are {stored}, the probe was fit in {expected.dtype}"
        found, wanted = actual.fingerprint[:12], expected.fingerprint[:12]
        fatal.append(f"its weights differ (fingerprint {found}, the probe's {wanted}{another})")
    tolerable = []
    if actual.chat_template_sha256 != expected.chat_template_sha256:
        tolerable.append("its chat template differs")
    return fatal, tolerable
