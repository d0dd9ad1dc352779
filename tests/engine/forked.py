"""Engine processes forked from one that has imported vLLM already, in place of processes that import it again.

vLLM's CPU backend spawns an engine's two processes, and each would import torch and vLLM for nine seconds. Here a fork
server imports them once, and does nothing else: no thread and no engine is in it when it forks. What an engine's
processes do after their imports is the same. Servers that are started by command spawn theirs, as an operator's do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection, context, forkserver
from multiprocessing.process import parent_process
from typing import Any

import guard.ipc.parent
from guard.ipc.score_table import PATH_VARIABLE

# What no import reads may differ from the fork server's environment; a process is told. With any other difference (the
# interpreted Triton, other threads, another cache) there is another fork server, whose imports see it.
TOLD = {PATH_VARIABLE, "PYTEST_CURRENT_TEST", "LOCAL_WORLD_SIZE", "VLLM_DIST_IDENT", "COLUMNS", "LINES"}

# At most two: the first, whose environment is that of most engines, and the last that another one needed.
_servers: list[tuple[forkserver.ForkServer, dict[str, str]]] = []
_lock = threading.Lock()


def install() -> None:
    """Have all that this process would spawn forked, and what those processes spawn, too."""
    multiprocessing.get_context = _get_context
    forkserver.connect_to_new_process = _connect


def serve_alike(environment: dict[str, str]) -> None:
    """In the fork server: the processes that it forks have theirs forked by it."""
    install()
    guard.ipc.parent.die_with_parent = _die_with_parent
    server = forkserver._forkserver  # whose address each process is given
    server.ensure_running = lambda: None  # it would start one of its own
    _servers.append((server, _untold(environment)))


def _untold(environment: Any) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in TOLD}


def _get_context(method: str | None = None, spawning: Any = multiprocessing.get_context) -> Any:
    return _Context() if method == "spawn" else spawning(method)


def _connect(fds: list[int]) -> tuple[int, int]:
    with _lock:
        wanted = _untold(os.environ)
        for server, has in _servers:
            if has == wanted:
                return server.connect_to_new_process(fds)
        if len(_servers) == 2:
            os.close(_servers.pop()[0]._forkserver_alive_fd)  # it ends after the last of its processes
        server = forkserver.ForkServer()
        server.set_forkserver_preload([f"{__name__.rpartition('.')[0]}.preloaded"])
        _servers.append((server, wanted))
        return server.connect_to_new_process(fds)


class _Process(context.ForkServerProcess):
    """Is what a spawned process would be: with the environment of its parent, and ended when that ends."""

    def start(self) -> None:
        self.environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        super().run()


class _Context(context.ForkServerContext):
    Process = _Process


def _die_with_parent() -> None:
    """In place of the guard's own, which would die with the fork server."""
    parent = parent_process()
    if parent is not None and guard.ipc.parent.VARIABLE in os.environ:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
