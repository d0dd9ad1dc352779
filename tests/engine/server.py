"""A server as an operator starts it: ``hguard serve`` in a process of its own.

By command its processes import all that they need, which takes a minute of one core. ``ForkedServer`` is for tests of
what a server says and does once it runs.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from app.settings import ATLAS
from guard.launch.engines import prepare_environment
from tests.engine import forked

READY_SECONDS = 240


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """Started and ready once constructed; raises when it did not come up."""

    module = "app.command"
    command: tuple[str, ...] = ("serve",)

    def __init__(self, arguments: Sequence[str] = (), port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = self._start(["--port", str(self.port), *arguments])
        self.lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        deadline = time.monotonic() + READY_SECONDS
        while not self._ready.wait(0.2):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                raise RuntimeError("the server did not come up:\n" + "".join(self.lines[-40:]))

    def _start(self, arguments: Sequence[str]) -> subprocess.Popen[str] | forked.Program:
        """Its first process, which leads a session."""
        command = [sys.executable, "-m", self.module, *self.command, *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line)
                if line.startswith("hguard: ") and " is ready" in line:
                    self._ready.set()

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """Ask it to end; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        status = self.process.wait(timeout=60)
        self._reader.join(timeout=30)  # the pipe closes once the engine's processes have ended too
        return status

    def descendants(self) -> list[int]:
        """Processes of its session that are still there."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.getsid(int(entry.name)) == self.process.pid and int(entry.name) != self.process.pid:
                        found.append(int(entry.name))
                except (ProcessLookupError, PermissionError):
                    continue
        return found


@functools.cache
def _configure() -> None:
    """vLLM adds to the environment when it makes a configuration: with all of it, engines have the same fork server."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    AsyncEngineArgs(model=str(ATLAS), enforce_eager=True).create_engine_config()


class ForkedServer(Server):
    """The same, but that its processes are forked from one that has imported vLLM and the app."""

    def _start(self, arguments: Sequence[str]) -> forked.Program:
        prepare_environment()  # as the command does, before vLLM is imported
        _configure()
        return forked.Program(self.module, [*self.command, *arguments])
