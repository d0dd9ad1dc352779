"""A further node of an engine that spreads over several machines (vLLM 0.32: ``vllm serve --headless``).

The first node has the API, the scheduler and the score table. The others run workers only, and vLLM's would wait for
ever on a first node that is gone.
"""

from __future__ import annotations

import socket
import threading
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from guard.errors import GuardError
from guard.launch import forkserver, support

# A machine that lost power says nothing: after so many seconds of silence ask so often, and give up.
_SILENCE, _INTERVAL, _TIMES = 10, 5, 3
_CONNECT_SECONDS = 5.0


def run_workers(args: Namespace, ready: Callable[[], None]) -> None:
    """Run this node's part of the engine until it ends; ``ready`` is called once it has begun.

    Raises UnsupportedError for arguments of another node, and GuardError when the engine ended: it never does so on
    this node's own account.
    """
    support.require_node(args, first=False)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    usage = UsageContext.OPENAI_API_SERVER
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config(usage_context=usage, headless=True)
    try:
        with forkserver.in_place_of_spawning():
            executor = MultiprocExecutor(config, monitor_workers=False)
    except RuntimeError as error:
        raise GuardError(f"this node's workers did not start: {error}") from error
    gone = threading.Event()
    try:
        line = connect(args.master_addr, args.master_port)
        threading.Thread(target=_watch, args=(line, gone, executor), daemon=True).start()
        ready()
        executor.start_worker_monitor(inline=True)
    finally:
        executor.shutdown()
    if gone.is_set():
        raise GuardError("the first node is gone, so this one has ended; a supervisor should start both again")
    raise GuardError(
        "a worker of this node has died, so the engine has ended; a supervisor should start all nodes again"
    )


def connect(host: str, port: int) -> socket.socket:
    """A connection to the first node that ends when that node does. Raises GuardError when there is none to be had.

    The port is that of torch's store, which the first node's first worker keeps open for as long as it lives.
    """
    try:
        line = socket.create_connection((host, port), _CONNECT_SECONDS)
    except OSError as error:
        raise GuardError(f"the first node does not answer at {host}:{port} ({error.strerror or error})") from None
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", _SILENCE), ("TCP_KEEPINTVL", _INTERVAL), ("TCP_KEEPCNT", _TIMES)):
        line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return line


def wait_for_end(line: socket.socket) -> None:
    """Return when the other side is gone, in whatever way."""
    with line:
        try:
            while line.recv(1024):
                pass
        except OSError:
            pass


def _watch(line: socket.socket, gone: threading.Event, executor: Any) -> None:
    wait_for_end(line)
    gone.set()
    executor.shutdown()
