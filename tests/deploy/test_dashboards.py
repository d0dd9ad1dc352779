"""The dashboards: made of what is in ``make``, and each of their queries returns data from a live Prometheus."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from deploy.grafana import make
from tests.deploy.metrics import exposed_by, names_in
from tests.deploy.prometheus import DEPLOY, Prometheus, load, panels, prometheus, targets, tool
from tests.deploy.test_rules import rules
from tests.engine.server import ForkedServer, Server

ALL = [
    (sheet["title"], panel["title"], target)
    for sheet in load()
    for panel in panels(sheet)
    for target in targets(sheet, panel)
]
ASKED: list[dict[str, Any]] = [
    {"mode": "score"},
    {"mode": "flag", "threshold": 0.0},
    {"mode": "abstain", "threshold": 0.0, "retry_scale": 0.0},
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A real one, small enough for a burst to fill its queue: some panels show what only an engine has."""
    server = ForkedServer(["--loosest-mode=off", "--max-queue=4", "--", "--max-num-seqs=4"])
    yield server
    server.stop()


@pytest.fixture(scope="module")
def exposed(server: Server) -> set[str]:
    return exposed_by(server.url)


def test_they_are_what_is_made() -> None:
    assert {file.name: file.read_text() for file in make.OUT.iterdir()} == make.files()


def test_no_two_panels_of_a_dashboard_overlap() -> None:
    for sheet in load():
        taken: set[tuple[int, int]] = set()
        for panel in sheet["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken, panel["title"]
            assert at["x"] + at["w"] <= 24
            taken |= cells


def test_every_panel_says_what_it_shows() -> None:
    for sheet in load():
        assert sheet["uid"]
        for panel in panels(sheet):
            assert panel["description"].endswith("."), panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_grafana_is_told_where_they_are() -> None:
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/hguard.yml").read_text())["providers"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    mounted = [volume.split(":") for volume in compose["services"]["grafana"]["volumes"] if isinstance(volume, str)]
    assert ["./grafana/dashboards", provider["options"]["path"]] in [one[:2] for one in mounted]


def test_every_metric_exists(exposed: set[str]) -> None:
    recorded = set(rules("record"))
    for _, title, target in ALL:
        assert names_in(target.filled), title
        assert names_in(target.filled) - exposed - recorded - {"up"} == set(), title


@pytest.fixture(scope="module")
def watching(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has watched the server under load, with more of it than fits."""
    if tool("prometheus") is None:
        pytest.skip("prometheus is not installed: apt install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    with prometheus(server.url.removeprefix("http://"), folder) as source:
        for _ in range(3):
            asyncio.run(load_of(server.url))
            time.sleep(1.5)
        yield source


async def load_of(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:

        async def ask(i: int) -> int:
            body = {
                "model": "atlas",
                "messages": [{"role": "user", "content": "Where is Kandy?"}],
                "hallucination": ASKED[i % len(ASKED)],
            }
            return (await http.post("/v1/chat/completions", json=body)).status_code

        assert set(await asyncio.gather(*(ask(i) for i in range(60)))) <= {200, 503}


def test_rules_and_targets_are_healthy(watching: Prometheus) -> None:
    assert watching.unhealthy() == []


@pytest.mark.parametrize(("sheet", "panel", "target"), ALL)
def test_every_query_returns_data(watching: Prometheus, sheet: str, panel: str, target: Any) -> None:
    deadline = time.monotonic() + 60  # rules are evaluated every second, and build on one another
    while not (found := watching.now(target.filled)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert found
    assert all(re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", one["value"][1]) for one in found)
