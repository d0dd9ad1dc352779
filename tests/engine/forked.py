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
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection, forkserver, process, reduction
from typing import Any

from guard.ipc import parent
from guard.launch import forkserver as ours
from guard.launch.engines import prepare_environment

SHARED = "TESTS_FORK_SERVER"  # the address of one that the processes of a session share

# The first, whose imports most engines need, and the last that another one needed: one of interpreted kernels. With
# what imports read of the environment; None: any.
_servers: list[tuple[forkserver.ForkServer, dict[str, str] | None]] = []
_lock = threading.Lock()


def share() -> None:
    """Start one for all processes of a session, while they collect."""
    before = dict(os.environ)
    prepare_environment()  # as the command does, before vLLM is imported
    os.environ.update(ours.added_by_vllm())
    server = _new()
    server.ensure_running()
    _servers.append((server, _read(os.environ)))
    os.environ.clear()
    os.environ.update(before, **{SHARED: str(server._forkserver_address)})


def install() -> None:
    """Have all that this process would spawn forked, and what those processes spawn, too."""
    ours.start = lambda: None
    ours.fits = lambda: True
    ours.install()
    forkserver.connect_to_new_process = _connect
    if SHARED in os.environ and not _servers:
        _servers.append((_Shared(os.environ[SHARED]), _read({**os.environ, **ours.added_by_vllm()})))


def serve_alike(environment: Mapping[str, str]) -> None:
    """In the fork server: the processes that it forks have theirs forked by it."""
    install()
    server = forkserver._forkserver  # whose address each process is given
    server.ensure_running = lambda: None  # it would start one of its own
    _servers[:] = [(server, _read(environment))]


def from_here() -> None:
    """What this process starts is forked of it as it is now, in its session: before its first thread."""
    _servers[:] = [(_OfProgram(), None)]


def _read(environment: Mapping[str, str]) -> dict[str, str]:
    return {**ours.read_at_import(environment), "PYTHONPATH": environment.get("PYTHONPATH", "")}


def _connect(fds: list[int]) -> tuple[int, int]:
    with _lock:
        wanted = _read(os.environ)
        for server, has in _servers:
            if has is None or has == wanted:
                return server.connect_to_new_process(fds)
        if len(_servers) == 2:
            os.close(_servers.pop()[0]._forkserver_alive_fd)  # it ends after the last of its processes
        server = _new()
        _servers.append((server, wanted))
        return server.connect_to_new_process(fds)


def _new() -> forkserver.ForkServer:
    server = forkserver.ForkServer()
    server.set_forkserver_preload([f"{__name__.rpartition('.')[0]}.preloaded"])
    return server


class _Shared(forkserver.ForkServer):
    """Another process started it."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._forkserver_address = address
        _, self._forkserver_alive_fd = os.pipe()  # it ends with who started it

    def ensure_running(self) -> None:
        """It is, as long as the session."""


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
