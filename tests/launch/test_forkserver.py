"""The fork server with a light module in place of vLLM. That a server uses it: ``tests/engine/test_shutdown.py``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIGHT = """
import os
from guard.launch import forkserver
forkserver.serve(forkserver.read_at_import(os.environ))
"""
PROGRAM = """
import multiprocessing, os, signal, sys, time

from guard.ipc import parent
from guard.launch import forkserver

PINS = dict(zip(sys.argv[1::2], sys.argv[2::2]))

def engine(depth):
    parent.die_with_parent()
    asked = multiprocessing.parent_process().pid
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    print(os.getpid(), os.getppid(), os.getppid() == asked, blocked, os.environ["HGUARD_TOLD"], flush=True)
    os.environ["HGUARD_TOLD"] += " and more"
    if depth:
        os.environ.update(PINS)
        multiprocessing.get_context("spawn").Process(target=engine, args=(depth - 1,)).start()
    time.sleep(60)

if __name__ == "__main__":
    os.environ[parent.VARIABLE] = "1"
    forkserver.PRELOADED = "light"
    forkserver.start()
    os.environ["HGUARD_TOLD"] = "told"
    with forkserver.in_place_of_spawning():
        process = multiprocessing.get_context("spawn").Process(target=engine, args=(1,))
        process.start()
    print("started", flush=True)
    time.sleep(60)
"""


@contextmanager
def program(folder: Path, *differs: str) -> Iterator[tuple[subprocess.Popen[str], list[list[str]]]]:
    """It, and what its engine's two processes say."""
    (folder / "light.py").write_text(LIGHT)
    (folder / "program.py").write_text(PROGRAM)
    environment = {
        "HGUARD_API_KEYS": "a-secret-key",
        "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[2])]),
    }
    command = [sys.executable, folder / "program.py", *differs]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            said = [running.stdout.readline().split(maxsplit=4) for _ in range(3)]
            yield running, [line for line in said if len(line) == 5]
        finally:
            running.kill()


def test_processes_are_forked_and_end_with_who_asked(tmp_path: Path) -> None:
    with program(tmp_path) as (running, said):
        (first, server, *one), (second, same, *other) = said
        assert (one, other) == (["False", "True", "told\n"], ["False", "True", "told and more\n"])
        assert server == same
        assert b"a-secret-key" not in Path("/proc", server, "environ").read_bytes()
        running.send_signal(signal.SIGKILL)
        running.wait()
        deadline = time.monotonic() + 20
        while any(Path("/proc", pid).exists() for pid in (first, second)):
            assert time.monotonic() < deadline, "a process of the engine lives on"
            time.sleep(0.02)


def test_what_imports_would_have_read_otherwise_is_spawned(tmp_path: Path) -> None:
    """As vLLM pins the threads of a worker, not of the process that starts it."""
    with program(tmp_path, "GOMP_CPU_AFFINITY", "0") as (_, said):
        assert [line[2] for line in said] == ["False", "True"]
