"""The worker for vLLM's CPU backend. Its own module: importing vLLM's CPU worker changes the process."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from guard.worker.worker import RUNNER_V1, RUNNER_V2, GuardWorkerMixin


class GuardCPUWorker(GuardWorkerMixin, CPUWorker):
    """vLLM's CPU worker, tapped: on the V1 runner, or on V2 where Triton has a CPU backend."""

    runners = (RUNNER_V1, RUNNER_V2)
