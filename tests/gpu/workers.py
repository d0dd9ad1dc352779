"""A worker that lost its taps, for the self-test to find."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from guard.worker.layer import GuardRowParallelLinear

if TYPE_CHECKING or torch.cuda.is_available():
    from guard.worker.cuda import GuardGPUWorker as Worker
else:
    from guard.worker.cpu import GuardCPUWorker as Worker


class BlindWorker(Worker):
    """Reports every tap, and has none: the layers forget theirs before the graphs are captured."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        for module in self.model_runner.model.modules():
            if isinstance(module, GuardRowParallelLinear):
                module.tapped = False
