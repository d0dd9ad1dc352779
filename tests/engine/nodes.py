"""Two machines on this one: network namespaces with a cable between them, each with shared memory of its own."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from guard.launch.engines import prepare_environment
from tests.engine import forked

FIRST, SECOND = "10.77.0.1", "10.77.0.2"
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWNET = 0x00020000, 0x08000000, 0x40000000  # linux/sched.h
_NAMES = ("hguard-a", "hguard-b")
_ASK = """
import sys, urllib.request
url, body = sys.argv[1:]
request = urllib.request.Request(url, body.encode() or None, {"content-type": "application/json"})
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


def available() -> bool:
    """Whether namespaces can be made here: it takes root, and a kernel that lets it."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "--net", "--mount", "--ipc", "true"], capture_output=True).returncode == 0


@contextmanager
def machines() -> Iterator[None]:
    """While this lasts, ``on`` can run programs on either."""
    _remove()
    try:
        for name in _NAMES:
            _ip("netns", "add", name)
        _ip("link", "add", "cable-a", "netns", _NAMES[0], "type", "veth", "peer", "name", "cable-b", "netns", _NAMES[1])
        for name, cable, address in zip(_NAMES, ("cable-a", "cable-b"), (FIRST, SECOND), strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
            _ip("-n", name, "link", "set", cable, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        _remove()


class Program:
    """``hguard`` on one of the machines; ``lines`` is what it printed."""

    def __init__(self, machine: int, arguments: Sequence[str]) -> None:
        prepare_environment()  # as the command does, before vLLM is imported
        self.process = forked.Program("app.cli.main", arguments, partial(_move, machine))
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self.process.stdout as output:
            self.lines.extend(output)

    def says(self, text: str, seconds: float = 240) -> None:
        """Wait until it prints ``text``. Raises RuntimeError with what it printed instead."""
        deadline = time.monotonic() + seconds
        while not any(text in line for line in self.lines):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no {text!r} from it:\n{''.join(self.lines[-40:])}")
            time.sleep(0.2)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=60)


def _move(machine: int) -> None:
    """Move this process there, with a /dev/shm of its own: or two could share memory that no two machines can."""
    cable, address = (("cable-a", FIRST), ("cable-b", SECOND))[machine]
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", _NAMES[machine]).open() as network:
        if libc.setns(network.fileno(), _CLONE_NEWNET) or libc.unshare(_CLONE_NEWNS | _CLONE_NEWIPC):
            raise OSError(ctypes.get_errno(), "the namespaces cannot be changed")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
    os.environ.update(VLLM_HOST_IP=address, GLOO_SOCKET_IFNAME=cable, NO_PROXY="*")


def ask(path: str, body: str | None = None) -> str:
    """What the server at the first machine answers to a caller on the second."""
    command = [
        "ip",
        "netns",
        "exec",
        _NAMES[1],
        sys.executable,
        "-c",
        _ASK,
        f"http://{FIRST}:8000{path}",
        body or "",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=90).stdout


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _remove() -> None:
    for name in _NAMES:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
