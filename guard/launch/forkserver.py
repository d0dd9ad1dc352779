"""On CPUs an engine's processes are forked from one that imports vLLM while the command itself does.

vLLM spawns its core, and the core its worker, one after the other, and each imports vLLM for nine seconds and has a
copy of its own in memory. The fork server does nothing but import: no thread runs in it, and no engine. A process that
it forks gets the environment of the one that asked for it. Where an import would have read another, it is spawned, as
vLLM means it. Written against vLLM 0.32 (``platforms/cpu.py``: what it adds to the environment of its processes).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from multiprocessing import context, forkserver, resource_tracker
from pathlib import Path
from typing import Any

from guard.launch import interrupts

PRELOADED = "guard.launch.preloaded"
# What libraries read when they are loaded, of what vLLM sets for its processes. All else they are told.
READ_AT_IMPORT = (
    *("LD_PRELOAD", "NUMEXPR_MAX_THREADS", "OMP_", "GOMP_", "KMP_AFFINITY", "KMP_BLOCKTIME", "KMP_TPAUSE"),
    *("TORCHINDUCTOR_COMPILE_THREADS", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS"),
)

_read: dict[str, str] | None = None  # by the fork server's imports


def start() -> None:
    """Start the fork server, once, before this process imports vLLM: that is the time that it has."""
    global _read
    if _read is not None or multiprocessing.parent_process() is not None:
        return
    os.environ.update(added_by_vllm())
    _read = read_at_import(os.environ)
    multiprocessing.set_forkserver_preload([PRELOADED])
    own = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("HGUARD_")}  # keys among them
    resource_tracker.ensure_running()  # it would be started with the fork server, and unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, interrupts.FOR_THE_SERVER)  # stay blocked in it
    try:
        forkserver.ensure_running()
    finally:
        os.environ.update(own)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def added_by_vllm() -> dict[str, str]:
    """What vLLM's CPU platform would add for its processes once it has a configuration, but for what is there."""
    added = {
        "NUMEXPR_MAX_THREADS": str(len(os.sched_getaffinity(0))),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1",
    }
    preloaded = os.environ.get("LD_PRELOAD", "")
    torch = find_spec("torch")
    has_openmp = any(name in preloaded for name in ("libomp", "libgomp", "libiomp"))
    if torch is not None and torch.origin is not None and not has_openmp:
        folder = Path(torch.origin).parent
        for libraries in (folder.parent / "torch.libs", folder / "lib"):
            for library in libraries.glob("libgomp*.so*"):
                return {**added, "LD_PRELOAD": f"{preloaded}:{library}" if preloaded else str(library)}
    return added


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """What the fork server's imports have read of it."""
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}


def fits() -> bool:
    """Whether a process that is started now would have imported what the fork server did."""
    return _read is not None and read_at_import(os.environ) == _read


def serve(read: dict[str, str]) -> None:
    """In the fork server: the processes that it forks have theirs forked by it."""
    global _read
    _read = read
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
    install()


@contextlib.contextmanager
def in_place_of_spawning() -> Iterator[None]:
    """While an engine starts."""
    spawning = multiprocessing.get_context
    install()
    try:
        yield
    finally:
        multiprocessing.get_context = spawning


def install() -> None:
    """What this process would spawn is forked from now on."""
    spawning: Any = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: _Context() if method == "spawn" else spawning(method)  # type: ignore[assignment]


class Process(context.SpawnProcess):
    """Runs with the environment of the process that starts it."""

    def start(self) -> None:
        self.environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        super().run()

    @staticmethod
    def _Popen(process: Any) -> Any:  # noqa: N802 - multiprocessing's name
        start = (context.ForkServerProcess if fits() else context.SpawnProcess)._Popen
        return start(process)


class _Context(context.SpawnContext):
    Process = Process
