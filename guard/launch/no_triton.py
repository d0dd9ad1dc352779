"""Triton stays out where vLLM would load it only to switch it off: on CPUs, where it has no backend for them.

vLLM warns of that in each process, and at its end Triton's bindings list what they leaked: both look like faults. Where
Triton has a backend for CPUs, or is loaded already, nothing happens. Written against vLLM 0.32 (``triton_utils``).
"""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

_VARIABLE = "HGUARD_NO_TRITON"  # for the processes that this one starts


def leave_out() -> None:
    """Have ``import triton`` fail here and in the processes that this one starts, as if it were not installed."""
    if "triton" in sys.modules or _has_cpu_backend():
        return
    os.environ[_VARIABLE] = "1"
    _block()


def _has_cpu_backend() -> bool:
    found = find_spec("triton")
    folders = [] if found is None else found.submodule_search_locations or []
    named = "cpu" in {entry.name for entry in entry_points(group="triton.backends")}
    return named or any((Path(folder) / "backends" / "cpu").is_dir() for folder in folders)


def _block() -> None:
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]  # what import and find_spec take for none
    # torch would warn in its turn that there is none, of each custom op.
    logging.getLogger("torch._library.triton").addFilter(_tells_more)


def _tells_more(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Triton not available")


if _VARIABLE in os.environ:  # a process that is spawned imports the command, and with it this, before vLLM
    _block()
