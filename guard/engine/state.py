"""The per-worker buffers that the compiled forward pass and the step adapter share (vLLM 0.32)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from guard.engine.config import TapConfig
from guard.probe.taps import TapSpec


@dataclass(slots=True)
class Taps:
    """score, alpha: float32 [max_num_batched_tokens], allocated once, addresses never change.

    damping: whether any row's alpha differs from 1 in this step.
    """

    spec: TapSpec
    score: torch.Tensor
    alpha: torch.Tensor
    damping: bool = False
    tapped_layers: int = 0


_taps: dict[str, Taps] = {}


def current(vllm_config: Any) -> Taps | None:
    """This worker's taps, made at the first call; None when no probe is configured."""
    config = TapConfig.find(vllm_config.additional_config)
    if config is None:
        return None
    found = _taps.get(config.sha256)
    if found is None:
        from vllm.platforms import current_platform

        rows = vllm_config.scheduler_config.max_num_batched_tokens
        device = torch.device(current_platform.device_type)
        found = _taps[config.sha256] = Taps(
            config.spec(),
            torch.zeros(rows, dtype=torch.float32, device=device),
            torch.ones(rows, dtype=torch.float32, device=device),
        )
    return found
