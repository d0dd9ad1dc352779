"""Engine processes end with the server, even when it is killed: vLLM's own would live on and hold their memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

VARIABLE = "HGUARD_OWNS_ENGINE"  # set by whoever starts an engine through us

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """In a process of an engine that we started: be killed when its parent ends. Elsewhere: nothing."""
    parent = multiprocessing.parent_process()
    if parent is None or VARIABLE not in os.environ or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent.pid:  # it ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)
