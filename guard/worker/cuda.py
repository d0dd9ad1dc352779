"""The worker for CUDA."""

from __future__ import annotations

from vllm.v1.worker.gpu_worker import Worker

from guard.worker.worker import RUNNER_V2, GuardWorkerMixin


class GuardGPUWorker(GuardWorkerMixin, Worker):
    """vLLM's CUDA worker, tapped. On the V2 runner only: V1's adapter would wait for the device in every step."""

    runners = (RUNNER_V2,)
