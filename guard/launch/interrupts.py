"""Ctrl-C is for the process that a person started: it decides what becomes of the answers in flight.

A terminal sends it to every process of a command. The engine's would end at once, and cut short what the server drains.
So they would at SIGHUP, which a terminal sends as it goes, and which has the server read its probe again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

FOR_THE_SERVER = {signal.SIGINT, signal.SIGHUP}


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
    """While an engine starts: its processes see neither signal, and here SIGINT ends the start at once.

    A blocked signal stays blocked in what a process starts, from its first instruction on; a handler would come after
    its imports, and vLLM sets its own. asyncio would tell the task that starts the engine, and that does not wait.
    Raises KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are not ours, and nobody presses Ctrl-C
        yield
        return
    start, handler = BaseProcess.start, signal.signal(signal.SIGINT, _end)
    BaseProcess.start = _start_blocked(start)  # type: ignore[method-assign]
    try:
        yield
    except _Interrupted:
        raise KeyboardInterrupt from None
    finally:
        BaseProcess.start = start  # type: ignore[method-assign]
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """While a coroutine works for minutes and awaits nothing: Ctrl-C ends it at once.

    asyncio would tell its task at the next await, and a person would take the command for dead. Raises
    KeyboardInterrupt.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # not ours, or ignored, as of what a shell runs in the background
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


class _Interrupted(BaseException):
    """Of SIGINT: vLLM takes a KeyboardInterrupt while it waits for its engine, and waits on."""


def _end(number: int, frame: object) -> None:
    for child in multiprocessing.active_children():
        child.kill()  # an engine that starts would first finish that
    raise _Interrupted


def _start_blocked(start: Any) -> Any:
    def blocked(process: BaseProcess) -> None:
        resource_tracker.ensure_running()  # spawning would start it, and unblock the signal after that
        before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_SERVER)
        try:
            start(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    return blocked
