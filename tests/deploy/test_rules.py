"""Prometheus: configuration, recording rules and alerts, by promtool; and that they name metrics that there are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from guard.probe import drift
from tests.deploy.metrics import names_in
from tests.deploy.prometheus import DEPLOY

PROMETHEUS = DEPLOY / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))


def groups() -> list[dict[str, Any]]:
    return [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Those with this key ("record" or "alert"), by name."""
    return {rule[kind]: rule for group in groups() for rule in group["rules"] if kind in rule}


def check(promtool: str, *arguments: str) -> None:
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration(promtool: str) -> None:
    check(promtool, "check", "config", str(PROMETHEUS / "prometheus.yml"))


def test_every_alert_fires_when_it_should(promtool: str) -> None:
    check(promtool, "test", "rules", str(PROMETHEUS / "rules.test.yml"))


def test_every_alert_is_tested_both_ways() -> None:
    cases = [
        case
        for one in yaml.safe_load((PROMETHEUS / "rules.test.yml").read_text())["tests"]
        for case in one.get("alert_rule_test", [])
    ]
    for name in rules("alert"):
        outcomes = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == name}
        assert outcomes == {True, False}, name


def test_every_alert_is_explained() -> None:
    page = Path("docs/operations.md").read_text()
    assert [name for name in rules("alert") if f"`{name}`" not in page] == []


def test_every_metric_exists(exposed: set[str]) -> None:
    recorded = set(rules("record"))
    for rule in [*rules("record").values(), *rules("alert").values()]:
        used = names_in(rule["expr"])
        assert used, rule
        assert used - exposed - recorded - {"up"} == set(), rule
    assert all(re.match(r"hguard:\w+:\w+$", name) for name in recorded)


def test_the_drift_rule_computes_the_index(promtool: str, tmp_path: Path) -> None:
    """Random shares, one band empty: promtool's value of the rule beside that of the function."""
    rng = np.random.default_rng(0)
    counts, expected = rng.integers(1, 50, 10), rng.dirichlet(np.ones(10))
    counts[3] = 0
    minutes = 120
    name = "hguard_risk_band"
    series = []
    for band, (count, share) in enumerate(zip(counts, expected, strict=True)):
        labels = f'{{job="hguard", model="m", band="{band}"}}'
        series.append({"series": f"{name}_answers_total{labels}", "values": f"0+{count}x{minutes}"})
        series.append({"series": f"{name}_expected_ratio{labels}", "values": f"{share}x{minutes}"})
    value = drift.psi(counts / counts.sum(), expected)
    sample = {"labels": 'hguard:risk_psi:increase1h{job="hguard", model="m"}', "value": "?"}
    case = {"eval_time": "90m", "expr": "hguard:risk_psi:increase1h", "exp_samples": [sample]}
    rounded = {**case, "expr": f"abs(hguard:risk_psi:increase1h - {value!r}) < bool 1e-9"}
    rounded["exp_samples"] = [{"labels": '{job="hguard", model="m"}', "value": 1}]
    content = {
        "rule_files": [str(RULES[-1])],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [rounded]}],
    }
    assert value > 0.1
    file = tmp_path / "psi.yml"
    file.write_text(yaml.safe_dump(content))
    check(promtool, "test", "rules", str(file))
    assert RULES[-1].name == "recording.yml"


@pytest.mark.parametrize("name", ["HguardDown", "HguardUnscored"])
def test_what_must_not_be_missed_is_critical(name: str) -> None:
    assert rules("alert")[name]["labels"]["severity"] == "critical"
