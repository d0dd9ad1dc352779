"""Engine processes end with the server, even when it is killed: vLLM's own would live on and hold their memory."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import connection

VARIABLE = "HGUARD_OWNS_ENGINE"  # set by whoever starts an engine through us

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """In a process of an engine that we started: be killed when the one that asked for it ends. Elsewhere: nothing."""
    parent = multiprocessing.parent_process()
    if parent is None or VARIABLE not in os.environ or not sys.platform.startswith("linux"):
        return
    if os.getppid() == parent.pid:
        _at_parents_death(signal.SIGKILL)
        if os.getppid() == parent.pid:
            return
    # A fork server's process is another one's child; or that ended before the lines above.
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def death_kills() -> Iterator[None]:
    """Within, this process is killed when its parent ends."""
    _at_parents_death(signal.SIGKILL)
    try:
        yield
    finally:
        _at_parents_death(0)


def _at_parents_death(number: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
