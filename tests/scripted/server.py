"""The real app over a scripted engine: in this process, or as a server of its own.

In this process ``scripted_app`` makes the app, for ``httpx.ASGITransport``; over that a response arrives whole, and a
caller cannot hang up. ``listening`` serves the app over a socket, where both are as they are.
``python -m tests.scripted.server`` takes the options of ``hguard serve``, and is that command in all but the engine.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from app.cli import main as command_line
from app.settings import Settings
from guard.launch import forkserver
from guard.launch.engines import prepare_environment
from guard.probe.bundle import Bundle
from tests.engine.server import ForkedServer, Server


class ScriptedServer(Server):
    """Started and ready once constructed."""

    module, command = "tests.scripted.server", ()


class ForkedScriptedServer(ForkedServer, ScriptedServer):
    """The same in a forked process."""


def over(app: FastAPI) -> httpx.AsyncClient:
    """A client of the app in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://scripted")


@asynccontextmanager
async def scripted_app(
    settings: Settings | None = None,
    bundle: Bundle | None = None,
    choose: Any = None,
    extra: Sequence[str] = (),
    **script: Any,
) -> AsyncIterator[FastAPI]:
    """What ``hguard serve`` would serve with these settings, arguments for vLLM (``extra``) and this bundle.

    ``script``: fields of ``Script`` that hold for every request, before its words change them; ``choose`` stands in
    place of both. ``app.state.engine_client`` is the GuardedEngine, its ``engine_core`` the ScriptedCore;
    ``app.state.server`` stands in for uvicorn's, which vLLM tells to exit when the engine died. The registry of metrics
    is the process's: it shows those of the app that was started last.
    """
    from app.server.app import guarded_app, plan
    from tests.scripted.engine import scripted_engine
    from tests.scripted.script import Script, by_words

    settings = settings or Settings()
    if bundle is not None:
        settings = settings.model_copy(update={"probe": str(bundle.path)})
    async with AsyncExitStack() as stack:
        stack.callback(forget_metrics)
        forget_metrics()
        with scripted_engine(choose or by_words(Script(**script))):
            app = await stack.enter_async_context(guarded_app(plan(settings, extra)))
        app.state.server = SimpleNamespace(should_exit=False)
        yield app


@asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[str]:
    """Serve ``app`` in this loop; yields the address."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    server.capture_signals = nullcontext
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        while not (server.started or serving.done()):  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


OURS = ("hguard_", "http_", "vllm:")


def forget_metrics() -> None:
    """Make room in the registry, as vLLM does for its own when an engine starts."""
    from prometheus_client import REGISTRY

    from app.telemetry.metrics import OwnRequestsMetrics

    for collector in list(REGISTRY._collector_to_names):
        if isinstance(collector, OwnRequestsMetrics) or getattr(collector, "_name", "").startswith(OURS):
            REGISTRY.unregister(collector)


def main(arguments: Sequence[str]) -> int:
    """``hguard serve`` with these arguments."""
    prepare_environment()
    forkserver.start = lambda: None  # no process is started that it could fork
    from tests.scripted.engine import scripted_engine

    with scripted_engine():
        return command_line.main(["serve", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
