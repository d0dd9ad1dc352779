"""Why an engine did not start, in one line for the operator.

vLLM (0.32) logs what went wrong in the process that met it, and tells the others only that something did. So each of
an engine's processes leaves the first exception of its start beside the score table, where the server reads it. Where
the cause is known and has a remedy, that line says all, and the tracebacks on the way to it are left out.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import sys
from pathlib import Path

from guard.ipc.score_table import PATH_VARIABLE, cause_file, refusal_file
from guard.versions import engine_version

_LOGGERS = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor")

# What vLLM says when the KV cache has too little memory, and when it asks for more than there is.
_TOO_LITTLE = ("No available memory for the cache blocks", "is larger than the available KV cache memory")
_TOO_MUCH = ("on startup is less than desired", "is less than requested memory for kv")
_SHARED_MEMORY = re.compile(r"Insufficient space in /dev/shm[^\n']*")
_ADVICE = re.compile(r"(?:\. |')(?:Try |To resolve|On the CPU|Decrease |Reduce |See |, please check).*", re.DOTALL)
_REMEDIES = {
    ("vllm-cpu", _TOO_LITTLE): "raise VLLM_CPU_KVCACHE_SPACE (GiB), or lower --max-model-len after --",
    ("vllm-cpu", _TOO_MUCH): "lower VLLM_CPU_KVCACHE_SPACE (GiB), or give the engine more memory",
    ("vllm", _TOO_LITTLE): "raise --gpu-memory-utilization or lower --max-model-len, after --",
    ("vllm", _TOO_MUCH): "lower --gpu-memory-utilization after --, or end what else uses the GPU",
}
_KILLED = re.compile(r"Failed core proc\(s\): \{[^}]*: -9\b|WorkerProc initialization failed")


def watch() -> None:
    """In a process of an engine that we start: note what it fails of."""
    if multiprocessing.parent_process() is not None and PATH_VARIABLE in os.environ:
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_note)


def reason(table: Path, error: RuntimeError) -> str | None:
    """Why the engine of this table did not start, as far as it can be known; ``error`` is what vLLM raised here."""
    file = cause_file(table)
    text = file.read_text(encoding="utf-8") if file.is_file() else str(error)
    if (known := known_cause(text)) is not None:
        return known
    if _KILLED.search(text):
        return "one of its processes was killed, as the kernel does when memory runs out; give it more, or see dmesg"
    return " ".join(text.split()) if file.is_file() else None


def known_cause(text: str) -> str | None:
    """What vLLM says of memory, shortened, and what to do about it; None for anything else."""
    if (shared := _SHARED_MEMORY.search(text)) is not None:  # with its own remedy
        return shared[0].rstrip(".")
    distribution, _ = engine_version()
    for (build, phrases), remedy in _REMEDIES.items():
        if build == distribution and any(phrase in text for phrase in phrases):
            fact = " ".join(_ADVICE.sub("", text.split("error '")[-1]).removeprefix("ValueError: ").split())
            return f"too little memory for the KV cache: {fact.rstrip('.')}; {remedy}"
    return None


def _note(record: logging.LogRecord) -> bool:
    """A filter of vLLM's log: keeps the first exception of the start; lets through what the server will not explain."""
    table = Path(os.environ[PATH_VARIABLE])
    if not table.is_file():  # once the engine runs, the table has no name any more
        return True
    error, file = record.exc_info and record.exc_info[1], cause_file(table)
    if error and not file.is_file():
        file.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
    known = file.is_file() and known_cause(file.read_text(encoding="utf-8")) is not None
    if not (known or refusal_file(table).is_file()) or os.environ.get("VLLM_LOGGING_LEVEL") != "ERROR":
        return True  # also for whoever wants to see more
    # This process is about to end, and multiprocessing would print the same exception once more.
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    return False
