"""Cache blocks of float16 models are cleared before another request gets them.

Attention multiplies what lies behind the end of a sequence in its last block by zero, which leaves NaN as NaN: one
answer whose activations overflowed would make later ones, of anybody, NaN too. vLLM clears blocks where it has a reason
of its own (``KVCacheConfig.needs_kv_cache_zeroing``, 0.32: state-space layers, caches of several precisions), which is
extended here. It costs a memset of each new block. bfloat16 and float32 do not overflow.
"""

from __future__ import annotations

from typing import Any


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
