"""The table of signals out of a small workspace in which it is known what tells wrong answers from right ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guard.errors import FitError
from models.smollm2.recipe import prose, report, signals
from models.smollm2.recipe.answered import load
from models.smollm2.recipe.fits import Fits
from models.wording import MISSING, interval, signed
from tests.smollm2 import workspace

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("signals")
    workspace.write(folder)
    answered = load(folder, workspace.norms())
    made = signals.measure(answered, Fits(answered, folder / "report", lambda text: None), lambda text: None, draws=20)
    return json.loads(json.dumps(made))


@pytest.mark.parametrize("where", ["held_out", "from places"])
def test_what_knows_is_told_from_what_does_not(figures: dict[str, Any], where: str) -> None:
    mean = {name: one["value"] for name, one in figures[where]["mean"].items()}
    assert figures[where]["layers"]["residual"] == [2]
    for name in ("residual", "neurons", "neurons L2", "all of the answer"):
        assert mean[name] > 0.85, name
    for name in ("attention", "residual before", "residual question", "neurons question"):
        assert 0.3 < mean[name] < 0.7, name
    assert mean["all before"] < mean["all"]
    assert set(mean) == {*signals.AFTER, *signals.BEFORE, *signals.FREE, *signals.STACKS, *signals.BENT}


def test_stacks_are_held_against_what_is_served_in_pairs_of_draws(figures: dict[str, Any]) -> None:
    above = figures["held_out"]["above"]
    mean = figures["held_out"]["mean"]
    assert above["stack"]["served"] == {"value": 0, "low": 0, "high": 0}
    for name in ("all", "stack, residual"):
        assert above[name]["served"]["value"] == pytest.approx(mean[name]["value"] - mean["stack"]["value"])
        best = mean[above["best free"]]["value"]
        assert above[name]["free"]["value"] == pytest.approx(mean[name]["value"] - best)


def test_the_report_has_a_line_for_each(figures: dict[str, Any]) -> None:
    base = json.loads((DOCS / f"{report.NAME}.json").read_text())
    page = prose.render({**base, "signals": figures})
    for name, one in figures["held_out"]["mean"].items():
        assert f"| {name} | {interval(one)} | " in page
    assert f"| all | {interval(figures['held_out']['above']['all']['served'], signed)} | " in page
    goal = next(line for line in page.splitlines() if line.startswith("| all signals: mean of sets at least .90"))
    assert goal.endswith("| yes |") is (figures["held_out"]["mean"]["all"]["value"] >= 0.9)
    assert MISSING in next(
        one for one in prose.render(base | {"signals": None}).splitlines() if "residual stream" in one
    )


def test_a_fit_that_kept_nothing_beside_neurons_is_refused(tmp_path: Path) -> None:
    workspace.write(tmp_path)
    (tmp_path / "residual-span.npy").unlink()
    answered = load(tmp_path, workspace.norms())
    with pytest.raises(FitError, match=r"no residual-span\.npy: make the fit with --keep residual,attention,question"):
        signals.measure(answered, Fits(answered, tmp_path / "report", lambda text: None), lambda text: None)
