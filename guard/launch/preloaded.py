"""What the fork server imports once, in place of each process of an engine: see ``guard.launch.forkserver``."""

import contextlib
import gc
import importlib
import os

from guard.ipc import parent
from guard.launch import forkserver, no_triton

MODULES = (
    "setproctitle",
    "vllm.model_executor.models.llama",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "guard.worker.cpu",
    "guard.worker.layer",
    "guard.worker.states",
)

with parent.death_kills():  # once it listens, it sees by itself that the command has ended
    read = forkserver.read_at_import(os.environ)
    no_triton.leave_out()
    with contextlib.suppress(Exception):  # what fails here fails, or not, in the process that needs it
        for name in MODULES:
            module = importlib.import_module(name)
            if name == "setproctitle":  # it finds its place in the environment before that is replaced
                module.getproctitle()
    gc.collect()
    gc.freeze()  # nor do collections of the forked ones go through all that was imported
    forkserver.serve(read)
