"""The worker for vLLM's CPU backend. Its own module: importing vLLM's CPU worker changes the process."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from guard.engine.worker import GuardWorkerMixin


class GuardCPUWorker(GuardWorkerMixin, CPUWorker):
    """vLLM's CPU worker, tapped."""
