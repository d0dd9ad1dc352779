"""Servers as processes of their own: started, waited for, and ended with all that they started."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from guard.bench.client import Address, Connection
from guard.errors import GuardError

HOST = "127.0.0.1"

_READY_SECONDS = 1800.0  # a large model's weights may come from a slow disk
_STOP_SECONDS = 30.0
_LAST_LINES = 20
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Command:
    """How to start one server. environment: what it has beside or instead of this process's own."""

    name: str
    arguments: Sequence[str]
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class ServerProcess:
    """A server. Its own process answers HTTP; vLLM's engine runs in processes below it.

    status: that of its exit, once it has ended.
    """

    address: Address
    pid: int
    status: int | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address.host}:{self.address.port}"

    def cpu_seconds(self) -> float:
        """What its own process, without the engine's, has taken of the processors since it started."""
        # In nanoseconds, where Linux counts them: the ticks of other counts are as long as a few requests.
        counted = list(Path(f"/proc/{self.pid}/task").glob("*/schedstat"))
        if counted:
            return 1e-9 * sum(map(_nanoseconds, counted))
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)


def _nanoseconds(schedstat: Path) -> int:
    """What one thread has taken."""
    try:
        return int(schedstat.read_text(encoding="ascii").split()[0])
    except OSError:  # it has just ended
        return 0


def guarded_server(*arguments: str, environment: Mapping[str, str] | None = None) -> Command:
    """``hguard serve`` with these arguments, on a free port."""
    port = free_port()
    own = [sys.executable, "-m", "app.cli.main", "serve", "--host", HOST, "--port", str(port)]
    return Command("hguard serve", [*own, *arguments], port, environment or {})


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving(command: Command, log: Path) -> AsyncIterator[ServerProcess]:
    """The server, answering; what it prints goes to ``log``. Raises GuardError when it does not come up.

    Nothing of it is left afterwards, whatever happened: not when this process is interrupted, nor when it is killed.
    """
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "guard.bench.processes", str(os.getpid())),
            *command.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **command.environment},
            start_new_session=True,
        )
    server = ServerProcess(Address(HOST, command.port), process.pid)
    try:
        await _ready(command.name, process, server.address, log)
        yield server
        if process.returncode is not None:
            raise GuardError(f"{command.name} ended while it was measured:\n{last_lines(log)}")
    finally:
        server.status = await _stop(process)


def last_lines(log: Path) -> str:
    """What a server printed last."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])


async def _ready(name: str, process: Process, address: Address, log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not await _healthy(address):
        if process.returncode is not None:
            raise GuardError(f"{name} did not come up (exit status {process.returncode}):\n{last_lines(log)}")
        if time.monotonic() > deadline:
            raise GuardError(f"{name} did not answer within {_READY_SECONDS:.0f} seconds:\n{last_lines(log)}")
        await asyncio.sleep(0.5)


async def _healthy(address: Address) -> bool:
    try:
        connection = await Connection.open(address)
    except OSError:
        return False
    try:
        return (await connection.request("GET", "/health")).status == 200
    except GuardError:
        return False
    finally:
        connection.close()


async def _stop(process: Process) -> int:
    """Ask it to end, then end what is left of its session: vLLM's engines run in processes of their own."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return await process.wait()


def _become(parent: int, arguments: list[str]) -> None:
    """Turn this new process into the server; the kernel ends it when ``parent`` is killed."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the line above
            return
    os.execvp(arguments[0], arguments)  # noqa: S606 - the server's own command line


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
