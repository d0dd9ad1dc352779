"""The per-worker buffers that the compiled forward pass and the runner's adapter share (vLLM 0.26 and 0.32)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.engine.config import TapConfig
from guard.engine.step import Step
from guard.probe.taps import TapSpec


@dataclass(slots=True)
class Taps:
    """score, alpha: float32 [max_num_batched_tokens], allocated once, addresses never change.

    ranks: over how many tensor-parallel ranks a layer's neurons are spread. damping: whether any row's alpha differs
    from 1 in this step.
    """

    spec: TapSpec
    score: torch.Tensor
    alpha: torch.Tensor
    ranks: int = 1
    damping: bool = False
    tapped_layers: int = 0

    def begin(self, step: Step) -> None:
        """Fill alpha and clear score, before the forward pass."""
        damp = step.roster.damp
        damping = bool((damp != 1).any())
        if damping:
            self.fill_alpha(np.repeat(damp, step.scheduled))
        elif self.damping:
            self.alpha.fill_(1)
        self.damping = damping
        self.score.zero_()

    def fill_alpha(self, values: NDArray[np.float32]) -> None:
        """Set the first rows' alpha, without waiting for the device."""
        host = torch.from_numpy(values)
        if self.alpha.is_cuda:
            host = host.pin_memory()  # torch keeps it until the copy is done
        self.alpha[: len(values)].copy_(host, non_blocking=True)

    def total(self, rows: int) -> torch.Tensor:
        """The first rows' scores over all ranks, float32 [rows]: a tensor of its own, which no later step clears.

        Every rank must call it when any does.
        """
        score = self.score[:rows].clone()
        if self.ranks == 1:
            return score
        from vllm.distributed import tensor_model_parallel_all_reduce

        return tensor_model_parallel_all_reduce(score)


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
            ranks=vllm_config.parallel_config.tensor_parallel_size,
        )
    return found
