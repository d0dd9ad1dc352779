"""How many rows of logits given text may take: the API process cuts by it, the worker computes by it."""

from __future__ import annotations

from typing import Any

# Logits held at once, 32 MiB of them in float32, but never fewer rows than keep a matmul busy.
_LOGITS, _LEAST_ROWS = 1 << 23, 16
_CALLS = 4  # of ``compute_logits`` for given rows in one step


def rows_of_call(vocabulary: int) -> int:
    """How many rows of logits are computed at once."""
    return max(_LEAST_ROWS, _LOGITS // vocabulary)


def rows_of_step(vllm_config: Any) -> tuple[int, int | None]:
    """(given rows that the engine may have at once, block of the prefix cache); None where there is no such cache,
    or one that leaves no row of it out, and so no text in pieces."""
    cache = vllm_config.cache_config
    block = cache.block_size if cache.enable_prefix_caching and cache.block_size > 1 else None
    return _CALLS * rows_of_call(vllm_config.model_config.get_vocab_size()), block
