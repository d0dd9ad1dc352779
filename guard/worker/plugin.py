"""The ``vllm.general_plugins`` entry point: runs in every process of vLLM before any model is built."""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Register the op and the tapped layer, and tie this process to the server; vLLM may call this more than once."""
    from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot

    from guard.ipc import startup
    from guard.ipc.parent import die_with_parent
    from guard.worker import ops
    from guard.worker.layer import GuardRowParallelLinear

    die_with_parent()
    startup.watch()
    clear_float16()
    ops.register()
    name = "RowParallelLinear"
    taken = op_registry_oot.get(name)
    if taken is None:
        PluggableLayer.register_oot(name=name)(GuardRowParallelLinear)
    elif taken is not GuardRowParallelLinear:
        from guard.errors import UnsupportedError

        raise UnsupportedError(
            f"another plugin ({taken.__module__}) replaces vLLM's {name} already; "
            "name the plugins to load in VLLM_PLUGINS"
        )


def clear_float16() -> None:
    """Have every scheduler and worker of this process clear new blocks of float16; vLLM 0.26 never does."""
    from vllm.v1.kv_cache_interface import KVCacheConfig

    needed: Any = getattr(KVCacheConfig, "needs_kv_cache_zeroing", None)
    if not isinstance(needed, property) or getattr(needed.fget, "__module__", None) == __name__:
        return
    own: Any = needed.fget
    KVCacheConfig.needs_kv_cache_zeroing = property(lambda config: bool(own(config)) or _holds_float16(config))


def _holds_float16(config: Any) -> bool:
    import torch

    return any(getattr(group.kv_cache_spec, "dtype", None) == torch.float16 for group in config.kv_cache_groups)
