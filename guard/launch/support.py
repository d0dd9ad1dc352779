"""What can be guarded, and refusals by name for the rest.

Every refusal happens before or while the engine starts, never while it serves.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from guard.errors import UnsupportedError

_CACHE_SPACE = "VLLM_CPU_KVCACHE_SPACE"

# Options of vLLM that would generate text past the guard or misplace the taps, each with its reason.
_REFUSED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("--enable-lora", lambda a: bool(a.enable_lora), "LoRA layers bypass the tapped layer"),
    (
        "--pipeline-parallel-size",
        lambda a: a.pipeline_parallel_size > 1,
        "scores would have to be summed over its stages; --tensor-parallel-size spreads a model over nodes, too",
    ),
    (
        "--distributed-executor-backend",
        lambda a: a.nnodes > 1 and a.distributed_executor_backend not in (None, "mp"),
        "over several nodes (--nnodes) the guard knows vLLM's multiprocessing executor only",
    ),
    ("--data-parallel-size", lambda a: a.data_parallel_size > 1, "the score table serves one engine"),
    (
        "--api-server-count",
        lambda a: (getattr(a, "api_server_count", None) or 1) > 1,
        "score slots belong to one process",
    ),
    (
        "--prefill-context-parallel-size",
        lambda a: a.prefill_context_parallel_size > 1 or a.decode_context_parallel_size > 1,
        "a sequence's rows would lie on several ranks (so with --decode-context-parallel-size)",
    ),
    (
        "--enable-dbo",
        lambda a: bool(a.enable_dbo) or a.ubatch_size > 0,
        "half batches that overlap would share the score buffer (so with --ubatch-size)",
    ),
    (
        "--enable-batch-sharded-sampling",
        lambda a: bool(getattr(a, "enable_batch_sharded_sampling", None)),
        "each rank would sample other requests",
    ),
    (
        "--kv-sharing-fast-prefill",
        lambda a: bool(a.kv_sharing_fast_prefill),
        "prompt rows that skip layers would be scored as if they had not",
    ),
    ("--diffusion-config", lambda a: a.diffusion_config is not None, "tokens are not drawn one after the other"),
    (
        "--speculative-config",
        lambda a: any(
            getattr(a, name, None) is not None
            for name in ("speculative_config", "spec_method", "spec_model", "spec_tokens")
        ),
        "draft tokens would be scored as answers (so with --spec-method, --spec-model, --spec-tokens)",
    ),
    (
        "--quantization",
        lambda a: a.quantization is not None or getattr(a, "quantization_config", None) is not None,
        "no probe was fit on what it makes of the weights (so with --quantization-config); take a quantised one",
    ),
    ("--worker-cls", lambda a: a.worker_cls != "auto", "the guard brings its own worker"),
    (
        "--api-key",
        lambda a: bool(a.api_key),
        "vLLM's key check covers /v1 only and would leave /risk open; set HGUARD_API_KEYS instead",
    ),
    ("--enable-prompt-embeds", lambda a: bool(a.enable_prompt_embeds), "prompts without tokens cannot be positioned"),
    ("--ssl-keyfile", lambda a: bool(a.ssl_keyfile or a.ssl_certfile), "TLS is not passed on; end it in a gateway"),
    (
        "--tool-server",
        lambda a: a.tool_server is not None,
        "one response would be several generations with text of tools between them",
    ),
    ("--uds", lambda a: a.uds is not None, "the server listens on --host and --port"),
    ("--headless", lambda a: bool(getattr(a, "headless", False)), "there would be no API to guard"),
)


def require_device(distribution: str) -> None:
    """Raise UnsupportedError when this build of vLLM finds nothing to run on."""
    if distribution == "vllm-cpu":
        return
    import torch

    if torch.cuda.device_count() == 0:
        raise UnsupportedError(
            "vLLM's CUDA build sees no GPU: give the container one (docker run --gpus all), check the driver "
            "(nvidia-smi) and CUDA_VISIBLE_DEVICES, or use the CPU build (the image with ENGINE=cpu)"
        )


def cache_gibibytes() -> int:
    """What the CPU build's KV cache takes. Raises UnsupportedError for what vLLM would stumble over."""
    said = os.environ.get(_CACHE_SPACE) or "1"
    try:
        return int(said)
    except ValueError:
        raise UnsupportedError(f"{_CACHE_SPACE} is {said!r}, and vLLM takes whole GiB: set it to 1, 2, ...") from None


def require_supported(args: Any, environment: dict[str, str]) -> None:
    """Refuse what cannot be guarded among vLLM's parsed arguments and environment."""
    for option, used, why in _REFUSED:
        if used(args):
            raise UnsupportedError(f"{option} is not supported: {why}")
    if environment.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise UnsupportedError(
            "VLLM_USE_RUST_FRONTEND is not supported: the Rust front end bypasses the guard; unset it"
        )
    if environment.get("VLLM_ENABLE_RESPONSES_API_STORE", "0").lower() not in ("", "0", "false"):
        raise UnsupportedError(
            "VLLM_ENABLE_RESPONSES_API_STORE is not supported: a stored response is read without its verdict; unset it"
        )
    if environment.get("VLLM_API_KEY"):
        raise UnsupportedError(
            "VLLM_API_KEY is not supported: its check covers /v1 only and would leave /risk open; "
            "unset it, and set HGUARD_API_KEYS instead"
        )
    if environment.get("VLLM_MODEL_REDIRECT_PATH"):
        raise UnsupportedError(
            "VLLM_MODEL_REDIRECT_PATH is not supported: it would have vLLM load another model than the one that was "
            "compared with the probe; unset it, and name that model"
        )
    plugins = environment.get("VLLM_PLUGINS")
    if plugins is not None and "hguard" not in plugins.split(","):
        raise UnsupportedError(
            "VLLM_PLUGINS is set without hguard, so the taps would not load; add it or unset the variable"
        )


def require_node(args: Any, first: bool) -> None:
    """Refuse a node that has no part in an engine over several, or has the other one.

    Only the first node has the API, and the score table beside it: its worker of rank 0 holds each step's scores,
    summed over all ranks, so no other node's workers write.
    """
    if first and args.node_rank > 0:
        raise UnsupportedError("--node-rank above 0 is for `hguard worker`; the API is on the first node")
    if not first and (args.nnodes < 2 or args.node_rank < 1):
        raise UnsupportedError(
            "a worker node needs --nnodes 2 or more and --node-rank 1 or more after --, and the first node's "
            "--master-addr; the first node runs `hguard serve`"
        )


def require_dense(config: dict[str, Any], model: str) -> None:
    """Refuse neurons of a mixture of experts: its experts have no down_proj of their own to tap."""
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if config.get(key):
            raise UnsupportedError(
                f"{model} is a mixture of experts ({key}={config[key]}), whose neurons sit in fused kernels and cannot "
                "be read: fit heads alone (hguard fit --neurons none)"
            )
