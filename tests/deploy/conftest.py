"""Prometheus' own tools, and the metrics that a server has."""

from __future__ import annotations

import pytest

from tests.deploy.metrics import exposed_by
from tests.deploy.prometheus import tool
from tests.scripted.server import ForkedScriptedServer


@pytest.fixture(scope="session")
def promtool() -> str:
    found = tool("promtool")
    if found is None:
        pytest.skip("promtool is not installed: apt install prometheus")
    return found


@pytest.fixture(scope="session")
def exposed() -> set[str]:
    """The names of all metrics. They are made in the API process, so a scripted engine has them all."""
    server = ForkedScriptedServer()
    try:
        return exposed_by(server.url)
    finally:
        server.stop()
