"""The ``vllm.general_plugins`` entry point: runs in every process of vLLM before any model is built."""

from __future__ import annotations


def register() -> None:
    """Register the op and the tapped layer, and tie this process to the server; vLLM may call this more than once."""
    from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot

    from guard.ipc import startup
    from guard.ipc.parent import die_with_parent
    from guard.worker import blocks, ops
    from guard.worker.layer import GuardRowParallelLinear

    die_with_parent()
    startup.watch()
    blocks.clear_float16()
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
