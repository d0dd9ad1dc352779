"""Options of vLLM that would have it serve something else than the files that were compared with the probe's.

What follows ``--`` is parsed after the guard's own arguments and wins over them, so values are compared, not words:
a configuration file of vLLM (``--config``) or another spelling says the same. Written against vLLM 0.32
(``engine/arg_utils.py``).
"""

from __future__ import annotations

import hashlib
from argparse import Namespace
from dataclasses import dataclass

from guard import precision
from guard.errors import UnsupportedError
from guard.probe.card import ModelIdentity

_BEFORE = "name it before --, where it is compared with the probe"
_LAYERS = "the model would not be built as its own config.json says; fit a probe on a folder whose config.json says it"
_PROMPTS = "prompts would be made of other tokens than those that the probe was fit on; leave it out"
_ELSEWHERE = (
    "answers would go on from states that another process computed, with whatever model, where nothing is scored; "
    "leave it out"
)


@dataclass(frozen=True, slots=True)
class Override:
    """``option`` sets ``fields``; but for the guard's own values, ``same`` are those that change nothing served."""

    option: str
    fields: tuple[str, ...]
    why: str
    same: tuple[str, ...] = ()


REFUSED = (
    Override("--model", ("model", "model_tag"), _BEFORE),
    Override("--revision", ("revision",), _BEFORE),
    Override(
        "--served-model-name", ("served_model_name",), "name it before --, so that /risk and metrics have it, too"
    ),
    Override("--tokenizer", ("tokenizer", "tokenizer_revision"), _PROMPTS),
    Override("--tokenizer-mode", ("tokenizer_mode",), _PROMPTS, ("auto", "hf", "slow")),
    Override("--hf-overrides", ("hf_overrides",), _LAYERS),
    Override("--hf-config-path", ("hf_config_path",), _LAYERS),
    Override("--config-format", ("config_format",), _LAYERS, ("auto", "hf")),
    Override("--model-class-overrides", ("model_class_overrides",), _LAYERS),
    Override("--runner", ("runner",), "only models that generate are guarded", ("auto", "generate")),
    Override("--convert", ("convert",), "only models that generate are guarded", ("auto", "none")),
    Override(
        "--load-format",
        ("load_format",),
        "the weights would not be the .safetensors files that the probe was compared with; leave it out",
        ("auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "runai_streamer"),
    ),
    Override("--weight-transfer-config", ("weight_transfer_config",), "weights that change are not the probe's"),
    Override("--kv-transfer-config", ("kv_transfer_config",), _ELSEWHERE),
    Override("--kv-offloading-backend", ("kv_offloading_backend",), _ELSEWHERE),
    Override("--ec-transfer-config", ("ec_transfer_config",), _ELSEWHERE),
)


def require_own(args: Namespace, own: Namespace) -> None:
    """Raise UnsupportedError where ``args`` name another model than ``own``, the guard's own arguments alone."""
    for override in REFUSED:
        for field in override.fields:
            given, meant = getattr(args, field, None), getattr(own, field, None)
            if given == meant or str(given).lower() in override.same:
                continue
            if field == "tokenizer" and given == own.model:
                continue
            raise UnsupportedError(f"{override.option} after -- is not supported: {override.why}")


def differences(args: Namespace, fit_on: ModelIdentity, template: str | None) -> list[tuple[str, str]]:
    """(difference, remedy) where ``args`` serve the right model otherwise than the probe was fit on it.

    ``template``: what --chat-template says, None without it.
    """
    found = []
    dtype = precision.name_of(args.dtype)
    if dtype != fit_on.dtype:
        difference = f"--dtype {args.dtype} is not {fit_on.dtype}, which the probe was fit on"
        found.append((difference, f"leave it out, or fit a probe with `hguard fit --dtype {dtype}`"))
    if template is not None and hashlib.sha256(template.encode()).hexdigest() != fit_on.chat_template_sha256:
        found.append(("--chat-template is not the template that the probe was fit on", "leave it out"))
    if args.kv_cache_dtype != "auto" and precision.name_of(args.kv_cache_dtype) != dtype:
        difference = f"--kv-cache-dtype {args.kv_cache_dtype} is not {dtype}, in which the probe read the model"
        found.append((difference, "leave it out"))
    return found
