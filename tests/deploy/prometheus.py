"""Prometheus as it is deployed, beside one server on this machine, and the dashboards' queries.

The configuration is ``prometheus/prometheus.yml`` with another target and shorter intervals; the rules are the same.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.engine.server import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
INTERVAL = "30s"  # the range of a dashboard's rates: some scrapes, which here come every second

Series = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Target:
    """One query of one panel."""

    dashboard: str
    panel: str
    expr: str
    legend: str
    instant: bool

    @property
    def filled(self) -> str:
        """The query with Grafana's variables replaced."""
        return self.expr.replace("$__rate_interval", INTERVAL).replace("$model", ".*")


def load() -> list[dict[str, Any]]:
    """The dashboards' JSON."""
    return [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
    ]


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that show something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets(dashboard: dict[str, Any], panel: dict[str, Any]) -> list[Target]:
    """A panel's queries."""
    return [
        Target(dashboard["title"], panel["title"], one["expr"], one["legendFormat"], one.get("instant", False))
        for one in panel["targets"]
    ]


class Prometheus:
    """The parts of its API that a dashboard uses. Raises httpx.HTTPError, also for a query that is none."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)

    def now(self, expr: str) -> Series:
        """The result of an instant query: [{"metric": {...}, "value": [time, text]}]."""
        return self._ask("/api/v1/query", {"query": expr})

    def unhealthy(self) -> list[str]:
        """Errors of rules and targets."""
        groups = self._get("/api/v1/rules", {})["groups"]
        found = [
            f"{rule['name']}: {rule['lastError']}"
            for group in groups
            for rule in group["rules"]
            if rule.get("lastError")
        ]
        scraped = self._get("/api/v1/targets", {})["activeTargets"]
        return found + [f"{one['scrapeUrl']}: {one['lastError']}" for one in scraped if one["lastError"]]

    def _ask(self, path: str, params: dict[str, Any]) -> Series:
        found: Series = self._get(path, params)["result"]
        return found

    def _get(self, path: str, params: dict[str, Any]) -> Any:
        response = self._client.get(path, params=params)
        response.raise_for_status()
        return response.json()["data"]


def tool(name: str) -> str | None:
    """Where prometheus or promtool is: in the virtual environment, where ``make`` puts it, or on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


@contextmanager
def prometheus(server: str, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that has begun to scrape the server at ``server`` ("127.0.0.1:8000"); its files go to ``folder``.

    Raises RuntimeError when it is not installed or does not come up.
    """
    program = tool("prometheus")
    if program is None:
        raise RuntimeError(
            "prometheus is not installed; `apt install prometheus`, or `make check`, which puts it into .venv"
        )
    port = free_port()
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus/rules/*.yml")]
    (guarded,) = (job for job in config["scrape_configs"] if job["job_name"] == "hguard")
    guarded["static_configs"] = [{"targets": [server]}]
    config["scrape_configs"] = [guarded]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(process, f"{url}/-/ready", folder / "log")
        source = Prometheus(url)
        while not source.now('up{job="hguard"} == 1'):  # what happens before the first scrape has no rate
            time.sleep(0.1)
        yield source
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(300):
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.1)
    process.kill()
    raise RuntimeError(f"prometheus did not come up:\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
