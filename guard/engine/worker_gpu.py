"""The worker for CUDA."""

from __future__ import annotations

from vllm.v1.worker.gpu_worker import Worker

from guard.engine.worker import GuardWorkerMixin


class GuardGPUWorker(GuardWorkerMixin, Worker):
    """vLLM's CUDA worker, tapped (V1 model runner)."""
