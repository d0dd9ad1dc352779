"""Ctrl-C while an engine starts. What a server does with it that serves: ``tests/engine/test_shutdown.py``."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from guard.launch.interrupts import at_once, kept_from_children

# Of its own: no test has started multiprocessing's helper yet, which unblocks signals when it starts.
PROGRAM = """
import multiprocessing, signal

def told(depth):
    print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()), flush=True)
    if depth:
        further(depth - 1)

def further(depth):
    process = multiprocessing.get_context("spawn").Process(target=told, args=(depth,))
    process.start()
    process.join()

if __name__ == "__main__":
    from guard.launch.interrupts import kept_from_children

    with kept_from_children():
        further(1)
    told(0)
    further(0)
"""


def test_processes_of_an_engine_never_see_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment, timeout=60)
    # An engine's first process, and one that it starts; the process that a person started, and what it starts later.
    assert done.stdout.split() == ["True", "True", "False", "False"], done.stderr


def test_a_start_ends_at_once() -> None:
    from vllm.utils.network_utils import zmq_socket_ctx

    before = signal.getsignal(signal.SIGINT)
    waiting = zmq_socket_ctx("inproc://interrupted", zmq.ROUTER, bind=True)  # as vLLM waits for its engine
    with pytest.raises(KeyboardInterrupt), kept_from_children(), waiting as socket, socket:
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_work_that_awaits_nothing_is_ended_at_once() -> None:
    """asyncio alone would let it come to its end."""
    went_on = []

    async def work(plain: bool) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        went_on.append(plain)
        await asyncio.sleep(0)

    async def guarded() -> None:
        with at_once():
            await work(False)

    # What a shell runs in the background ignores it, and so would these tests there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(work(True))
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(guarded())
        assert went_on == [True]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_ignores_it_goes_on_ignoring_it() -> None:
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with at_once():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)
