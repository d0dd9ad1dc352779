"""The server's life over uvicorn: it serves, drains when it is told to end, and ends when its engine dies.

SIGTERM or SIGINT starts the drain: new requests are refused while what is in flight finishes, for at most
``drain_seconds``; a second signal ends it at once. Either way the exit status is 0, because the end was asked for.
SIGHUP has the probe read again; where it says that the terminal is gone, it is an end like the others.
When the engine dies, its callers are told, and the exit status is 1, so that a supervisor starts the server anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.ingress.admission import DRAINING, ENGINE_DEAD, Admission
from app.server.protocol import HttpProtocol
from guard.errors import GuardError
from guard.launch.engines import warn

_POLL_SECONDS = 0.05
_LINGER_SECONDS = 2  # what is cut short gets this long to say so
_LAST_WORDS_SECONDS = 2.0  # after the engine's death probes can still read a 503
_STREAM_ENDS_SECONDS = 5.0  # and its streams end with an error of vLLM's


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would close its socket at the first one."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Signals:
    """How often the operator asked for the end; SIGHUP starts ``on_hangup``."""

    def __init__(self, admission: Admission, on_hangup: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.count = 0
        self._admission, self._on_hangup = admission, on_hangup
        self._terminal = _has_terminal()
        self._started: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._note)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def _hang_up(self) -> None:
        if self._terminal and not _has_terminal():
            self._note()
        elif not self.count:
            task = asyncio.create_task(self._on_hangup())
            self._started.add(task)
            task.add_done_callback(self._started.discard)

    def _note(self) -> None:
        self.count += 1
        if self._admission.closing is None:
            self._admission.close(DRAINING)


async def serve(
    app: FastAPI,
    sock: socket.socket,
    *,
    engine: Any,
    admission: Admission,
    drain_seconds: float,
    keep_alive_seconds: int,
    ready: Callable[[], None],
    on_hangup: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """Serve to the end; ``ready`` is called once requests are accepted. Raises GuardError when the engine died."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        http=HttpProtocol,
        ws="none",
        timeout_keep_alive=keep_alive_seconds,
        timeout_graceful_shutdown=_LINGER_SECONDS,
    )
    server = _Server(config)
    # vLLM's error handlers end "the server" when its engine has died; here that takes longer than a flag.
    app.state.server = SimpleNamespace(should_exit=False)
    signals = _Signals(admission, on_hangup)
    running = asyncio.create_task(server.serve(sockets=[sock]))
    await _until(lambda: server.started or running.done())
    if server.started:
        ready()
        await _until(lambda: signals.count > 0 or engine.errored or running.done())
    died = engine.errored and signals.count == 0
    if died:
        admission.close(ENGINE_DEAD)
        await _until(lambda: signals.count > 0, _LAST_WORDS_SECONDS)
        await _until(lambda: admission.requests == 0 or signals.count > 0, _STREAM_ENDS_SECONDS - _LAST_WORDS_SECONDS)
    elif signals.count:
        await _drain(admission, signals, engine, drain_seconds)
    admission.cut_short()
    await _until(lambda: admission.requests == 0, _LINGER_SECONDS)
    server.should_exit = True
    await running
    if died:
        raise GuardError("the engine has died, so the server has ended; a supervisor should start it again")


def _has_terminal() -> bool:
    """Whether a terminal controls this process."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


async def _drain(admission: Admission, signals: _Signals, engine: Any, seconds: float) -> None:
    """Wait until nothing is in flight, the time is up, or a second signal says not to."""
    if admission.requests:
        print(
            f"hguard: draining: up to {seconds:g} s for what is in flight, requests: {admission.requests}; the same "
            "signal again ends it at once",
            flush=True,
        )
    await _until(lambda: admission.requests == 0 or signals.count > 1 or engine.errored, seconds)
    if engine.errored:
        warn("the engine ended before its answers did; they are incomplete")
    elif admission.requests:
        warn(f"{admission.requests} requests in flight were cancelled")


async def _until(condition: Callable[[], bool], seconds: float = float("inf")) -> None:
    """Wait until ``condition`` holds, at most this long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition() and loop.time() < deadline:  # noqa: ASYNC110 - neither uvicorn nor vLLM has an event for us
        await asyncio.sleep(_POLL_SECONDS)
