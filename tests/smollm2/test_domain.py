"""Trials of a warning, out of a small workspace whose general questions are given another residual stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.smollm2.recipe import domain, prose, report
from models.smollm2.recipe.answered import GENERAL, PLACES, Answered, load
from models.smollm2.recipe.fits import Fits
from tests.smollm2 import workspace

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Answered:
    folder = tmp_path_factory.mktemp("domain")
    workspace.write(folder)
    found = load(folder, workspace.norms())
    states = np.load(folder / "residual-span.npy")
    asked = np.load(folder / "residual-last_prompt.npy")
    for table in (states, asked):
        table[found.rows[found.of(GENERAL)], 1] += 3
    np.save(folder / "residual-span.npy", states)
    np.save(folder / "residual-last_prompt.npy", asked)
    return found


@pytest.fixture(scope="module")
def figures(answered: Answered) -> dict[str, Any]:
    fits = Fits(answered, answered.folder / "report", lambda text: None)
    return json.loads(json.dumps(domain.measure(answered, fits, lambda text: None, layer=1)))


def test_what_differs_lies_outside(figures: dict[str, Any]) -> None:
    rows = {row["trial"]: row for row in figures["rows"]}
    assert {"places to triviaqa", "places to nq_open", "without cities", "at home 1"} <= rows.keys()
    for name in ("places to triviaqa", "places to nq_open"):
        assert rows[name]["outside"]["the residual stream"] == 1
        assert rows[name]["outside"][domain.SERVED] == 1
        assert rows[name]["outside"]["all signals"] < 0.3
    at_home = [row["outside"] for name, row in rows.items() if name.startswith("at home")]
    assert all(share < 0.25 for outside in at_home for share in outside.values())


def test_no_entity_is_in_two_parts_and_what_taught_is_in_none(answered: Answered) -> None:
    seen = np.zeros(len(answered), bool)
    seen[answered.parts()["train"]] = True
    tried = dict(domain.trials(answered, seen))
    assert len(tried) == len(np.unique(answered.sets)) + domain.RANDOM
    for name, parts in tried.items():
        entities = [{answered.entities[i] for i in part} for part in parts]
        assert not any(entities[i] & entities[j] for i, j in ((0, 1), (0, 2), (1, 2))), name
        assert not any(seen[part].any() for part in parts)
    calibrate, hold, own = tried["without cities"]
    assert set(answered.sets[own]) == {"cities"}
    assert "cities" not in {*answered.sets[calibrate], *answered.sets[hold]}
    assert not set(PLACES) & {name.removeprefix("places to ") for name, _ in domain.away(answered, answered.parts())}


def test_a_warning_is_held_against_false_alarms() -> None:
    def row(alarms: float, outside: float) -> dict[str, Any]:
        return {"false_alarms": alarms, "outside": {"some": outside}}

    found = domain.warned([row(0.01, 0.2), row(0.3, 0.05), row(0.05, 0.11), row(0.1, 0.02)])
    assert (found["broken"], found["alarming"], found["held"]) == (2, 1, 2)
    assert found["some"] == {"of_broken": 0.5, "of_alarming": 0, "of_held": 0.5, "auroc": 0.75}


def test_the_report_shows_each_trial(figures: dict[str, Any]) -> None:
    base = json.loads((DOCS / f"{report.NAME}.json").read_text())
    lines = prose.render({**base, "domain": figures}).splitlines()
    for row in figures["rows"]:
        (line,) = [one for one in lines if one.startswith(f"| {row['trial']} | {row['right']} | ")]
        assert line.endswith(f" {100 * row['outside'][domain.SERVED]:.0f} % |")
    assert not [one for one in prose.render({**base, "domain": None}).splitlines() if "warning" in one]
