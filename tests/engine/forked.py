"""Engine processes forked from one that has imported vLLM already, in place of processes that import it again.

The guard's own fork server (``guard.launch.forkserver``) is one command's. This one is a test session's, and imports
the app, too. What an engine's processes do after their imports is the same. Servers that are started by command have a
fork server each, as an operator's do; a ``Program`` is a server whose first process is forked, too, and is forked anew
for the others.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import connection, forkserver, process, reduction
from typing import Any

from guard.ipc import parent
from guard.launch import forkserver as ours

# What no import reads may differ from the fork server's environment; a process is told. With any other difference (the
# interpreted Triton, other threads) there is another fork server, whose imports see it.
TOLD = {
    "PYTEST_CURRENT_TEST",
    "LOCAL_WORLD_SIZE",
    "VLLM_DIST_IDENT",
    "COLUMNS",
    "LINES",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
    # Of clients and compilers that tests run in their own process.
    "LITELLM_LOCAL_MODEL_COST_MAP",
    "TIKTOKEN_CACHE_DIR",
    # vLLM looks these up when an engine starts.
    "VLLM_CACHE_ROOT",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_PLUGINS",
}

# At most two: the first, whose environment is that of most engines, and the last that another one needed. None: any.
_servers: list[tuple[forkserver.ForkServer, dict[str, str] | None]] = []
_lock = threading.Lock()


def install() -> None:
    """Have all that this process would spawn forked, and what those processes spawn, too."""
    ours.start = lambda: None
    ours.fits = lambda: True
    ours.install()
    forkserver.connect_to_new_process = _connect


def serve_alike(environment: dict[str, str]) -> None:
    """In the fork server: the processes that it forks have theirs forked by it."""
    install()
    server = forkserver._forkserver  # whose address each process is given
    server.ensure_running = lambda: None  # it would start one of its own
    _servers.append((server, _untold(environment)))


def from_here() -> None:
    """What this process starts is forked of it as it is now, in its session: before its first thread."""
    _servers[:] = [(_OfProgram(), None)]


def _untold(environment: Any) -> dict[str, str]:
    """What an import may read. Settings of a server are read when it starts."""
    told = {name for name in environment if name in TOLD or name.startswith("HGUARD_")}
    return {name: value for name, value in environment.items() if name not in told}


def _connect(fds: list[int]) -> tuple[int, int]:
    with _lock:
        wanted = _untold(os.environ)
        for server, has in _servers:
            if has is None or has == wanted:
                return server.connect_to_new_process(fds)
        if len(_servers) == 2:
            os.close(_servers.pop()[0]._forkserver_alive_fd)  # it ends after the last of its processes
        server = forkserver.ForkServer()
        server.set_forkserver_preload([f"{__name__.rpartition('.')[0]}.preloaded"])
        _servers.append((server, wanted))
        return server.connect_to_new_process(fds)


class Program:
    """A module's ``main`` in a session of its own; of ``subprocess.Popen`` as much as a server's tests use.

    ``first`` is called in it before anything else.
    """

    def __init__(self, module: str, arguments: Sequence[str], first: Callable[[], None] | None = None) -> None:
        install()
        ours, theirs = os.pipe()
        with os.fdopen(theirs, "w") as output:
            self._process = _Told(module, [*arguments], output.fileno(), first)
            self._process.start()
        process._children.discard(self._process)  # those that tests count are engines
        self.stdout = os.fdopen(ours)
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if (status := self.poll()) is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Told(ours.Process):
    """Runs a program; it ends with this process, if nobody ended it before."""

    _output: Any  # a descriptor, here and there under another number

    def __init__(self, module: str, arguments: list[str], output: int, first: Callable[[], None] | None) -> None:
        super().__init__(name=module)
        self._module, self._arguments, self._output, self._first = module, arguments, output, first

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_output": reduction.DupFd(self._output)}

    def run(self) -> None:
        self._target = self._work
        super().run()

    def _work(self) -> None:
        os.setsid()
        output = self._output.detach()
        for standard in (1, 2):
            os.dup2(output, standard)
        os.close(output)
        if self._first is not None:
            self._first()
        from_here()
        parent.die_with_parent()
        sys.argv = [self._module, *self._arguments]
        sys.exit(importlib.import_module(self._module).main(self._arguments))


class _OfProgram(forkserver.ForkServer):
    """Forked from this process, in whose session it and its processes are, before the first thread is there."""

    def __init__(self) -> None:
        super().__init__()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(connection.arbitrary_address("AF_UNIX"))
            listener.listen()
            self._forkserver_address = listener.getsockname()
            alive, self._forkserver_alive_fd = os.pipe()
            self._forkserver_pid = os.fork()
            if self._forkserver_pid == 0:
                os.close(self._forkserver_alive_fd)
                server = forkserver._forkserver
                _servers[:] = [(server, None)]
                try:
                    forkserver.main(listener.detach(), alive, [])
                finally:
                    os._exit(0)
            os.close(alive)

    def ensure_running(self) -> None:
        """It is, as long as this process."""
