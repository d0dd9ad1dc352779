"""What the fork server of ``forked`` imports: what both processes of an engine would, not the worker's own modules."""

import os

AT_START = dict(os.environ)  # vLLM adds to it when it is imported

import vllm.v1.engine.core  # noqa: E402
import vllm.v1.executor.multiproc_executor  # noqa: E402

import guard.worker.layer  # noqa: E402
from tests.engine import forked  # noqa: E402

PRELOADED = vllm, guard
forked.serve_alike(AT_START)
