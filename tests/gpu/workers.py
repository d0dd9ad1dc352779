"""A worker that lost its taps, for the canary to find."""

from __future__ import annotations

from typing import Any

from guard.engine.layer import GuardRowParallelLinear
from guard.engine.worker_gpu import GuardGPUWorker


class BlindWorker(GuardGPUWorker):
    """Reports every tap, and has none: the layers forget theirs before the graphs are captured."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        for module in self.model_runner.model.modules():
            if isinstance(module, GuardRowParallelLinear):
                module.tapped = False
