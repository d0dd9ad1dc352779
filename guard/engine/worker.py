"""The workers: vLLM's own, with the step adapter bound to their runner (``v1/worker``, 0.32)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from guard.engine import state
from guard.engine.ring import PATH_VARIABLE, ScoreRing
from guard.engine.runner_v1 import StepAdapter
from guard.errors import TapError, UnsupportedError


class GuardWorkerMixin:
    """Binds the taps once the model is loaded, and reports on them."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        self.hguard_taps = state.current(self.vllm_config)  # type: ignore[attr-defined]
        if self.hguard_taps is None:
            raise TapError("this worker was started without a probe: additional_config['hguard'] is missing")
        runner = self.model_runner  # type: ignore[attr-defined]
        if not hasattr(runner, "_model_forward"):
            raise UnsupportedError(
                "vLLM built its V2 model runner, which this release does not tap; set VLLM_USE_V2_MODEL_RUNNER=0"
            )
        parallel = self.vllm_config.parallel_config  # type: ignore[attr-defined]
        StepAdapter(
            runner,
            self.hguard_taps,
            ScoreRing(Path(os.environ[PATH_VARIABLE])),
            parallel.tensor_parallel_size,
            writes=self.rank % parallel.tensor_parallel_size == 0,  # type: ignore[attr-defined]
        )

    def hguard_report(self) -> dict[str, Any]:
        """What this worker tapped, for the canary."""
        taps = self.hguard_taps
        return {"tapped": taps.tapped_layers if taps else 0, "expected": len(taps.spec.layers) if taps else 0}
