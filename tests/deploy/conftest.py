"""Prometheus' own tools, and a server to look at."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from deploy.live import tool
from tests.deploy.metrics import names_of
from tests.engine.server import Server


@pytest.fixture(scope="session")
def promtool() -> str:
    found = tool("promtool")
    if found is None:
        pytest.skip("promtool is not installed: apt install prometheus")
    return found


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A real one, small enough for a burst to fill its queue."""
    server = Server(["--loosest-mode=off", "--max-queue=4", "--", "--max-num-seqs=4"])
    yield server
    server.stop()


@pytest.fixture(scope="session")
def exposed(server: Server) -> set[str]:
    """The names of all metrics, after one request: those of HTTP begin with the first."""
    body = {"model": "atlas", "messages": [{"role": "user", "content": "Where is Kandy?"}]}
    httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).raise_for_status()
    return names_of(httpx.get(f"{server.url}/metrics", timeout=60).text)
