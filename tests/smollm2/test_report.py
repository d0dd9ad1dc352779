"""The whole report out of a small workspace: figures, page and plots; and what is missing is said to be missing."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from guard.training.lasso import chance_of
from models.smollm2.recipe import goals, plots, prose, report
from models.smollm2.recipe.answered import load
from models.smollm2.recipe.fits import FOLDS, Fits, rotation
from models.wording import MISSING
from tests.smollm2 import workspace

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("smollm2")
    workspace.write(made)
    return made


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict[str, Any]:
    said: list[str] = []
    found = _measure(folder, said)
    assert "measuring curve" in said
    return json.loads(json.dumps(found, allow_nan=False))


def _measure(folder: Path, said: list[str]) -> dict[str, Any]:
    return report.measure(
        folder, workspace.norms(), said.append, sizes=(100, 200), shares=(0.005, 0.02, 0.05), random=4, draws=40
    )


def test_a_second_run_takes_what_is_there(folder: Path, figures: dict[str, Any]) -> None:
    said: list[str] = []
    assert _measure(folder, said) == figures
    assert not any(text.startswith(("measuring", "fitting")) for text in said)


def test_the_neurons_that_know_are_found_and_beat_random_ones(figures: dict[str, Any]) -> None:
    assert figures["held_out"]["mean"]["neurons"]["value"] > 0.9
    assert figures["crossed"]["mean"]["neurons"]["value"] > 0.9
    assert figures["crossed"]["n"] == figures["answers"]["n"]
    three = next(row for row in figures["sparse"]["rows"] if row["neurons"] == 4)
    assert three["chosen - random"]["value"] > 0.1
    # They know among answers of the same text, where words cannot.
    same = figures["crossed"]["sets"]["cities"]["same_text"]
    assert same["neurons"]["value"] > 0.9
    assert same["words"]["value"] < 0.75


def test_folds_score_on_one_scale(folder: Path) -> None:
    """With an intercept that is not penalised, the mean chance of what teaches is its share of wrong answers."""
    answered = load(folder, workspace.norms())
    decisions = Fits(answered, folder / "report", print).crossed(0.3)
    assert decisions.shape == (FOLDS, len(answered))
    for decision, (learn, _, _) in zip(decisions, rotation(answered), strict=True):
        assert chance_of(decision[learn]).mean() == pytest.approx(answered.wrong[learn].mean(), abs=1e-3)


def test_the_curve_ends_with_all_training_answers_and_shift_leaves_home(figures: dict[str, Any]) -> None:
    assert [one["answers"] for one in figures["curve"]] == [100, 200, figures["answers"]["parts"]["train"]["n"]]
    away = figures["shift"]["from places"]
    assert set(away["report"]["sets"]) == {"triviaqa", "nq_open"}
    assert away["test"]["n"] == sum(one["n"] for one in away["report"]["sets"].values())
    assert set(figures["shift"]["to places"]["report"]["sets"]) == {"cities", "capitals"}


def test_the_page_says_what_the_figures_say(figures: dict[str, Any], tmp_path: Path) -> None:
    page = prose.render(figures)
    mean = figures["held_out"]["mean"]["stack"]
    assert f"{mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]" in page
    assert "999 are needed" in page
    plots.draw(figures, tmp_path / report.NAME)
    for plot in re.findall(r"\]\((smollm2-report[^)]*)\)", page):
        assert (tmp_path / plot).read_text().startswith("<?xml")
    for line in page.splitlines():
        assert "None" not in line
        assert "nan" not in line


def test_what_was_not_measured_is_said_to_be_missing(figures: dict[str, Any]) -> None:
    page = prose.render({**figures, "scaling": None, "popularity": None, "crossed": None})
    for title in ("## Risk and popularity", "## Neurons scaled"):
        assert MISSING in page.split(title)[1].split("\n## ")[0]
    assert f"causal for over-compliance | {'alpha'}" in page


def test_the_page_in_docs_is_made_of_its_figures() -> None:
    file = DOCS / f"{report.NAME}.json"
    if not file.is_file():
        pytest.skip("make smollm2-report was not run yet")
    assert (DOCS / f"{report.NAME}.md").read_text() == prose.render(json.loads(file.read_text()))


def test_goals_are_judged_by_the_figures(figures: dict[str, Any]) -> None:
    assert any(reached for _, _, reached in goals.goals(figures))
    worse = copy.deepcopy(figures)
    held, away = worse["held_out"], worse["shift"]["from places"]
    held["mean"]["stack"]["value"] = held["ahead"]["stack - best"]["value"] = held["ahead"]["stack - words"][
        "value"
    ] = 0.0
    held["sets"]["cities"]["same_text"]["stack"]["value"] = held["sets"]["triviaqa"]["auroc"]["stack"]["value"] = 0.5
    held["ahead_by_set"]["triviaqa"]["stack - entropy"]["value"] = away["stack - entropy"]["value"] = -0.1
    for row in worse["sparse"]["rows"]:
        row["chosen - random"]["value"] = 0.0
    for alarms in (worse["alarms"], away["alarms"]):
        alarms["ece"] = 0.2
        away["psi"] = 0.1
        alarms["targets"]["0.05"] |= {"false_alarms": {"value": 0.3, "low": 0.2, "high": 0.4}}
        for one in alarms["targets"]["0.05"].get("lengths", {}).values():
            one.get("false_alarms", {})["value"] = 0.3
    worse["alarms"]["targets"]["0.1"]["answered_by_set"]["made-up"]["value"] = 0.5
    assert not any(reached for _, _, reached in goals.goals(worse))


def test_scaled_neurons_have_their_place(figures: dict[str, Any]) -> None:
    def curve(rise: float) -> dict[str, Any]:
        def at(alpha: float) -> dict[str, Any]:
            value = 0.2 + rise * alpha
            own = {"n": 10, "gave_in": {"value": value, "low": value - 0.1, "high": value + 0.1}}
            return {"sets": {"false premise": own}, "perplexity": 20.0 + alpha}

        return {f"{alpha:g}": at(alpha) for alpha in (0.0, 1.0, 3.0)}

    scaling = {"h_neurons": curve(0.1), "random": [curve(0.0), curve(0.02)], "consistency": None}
    page = prose.render({**figures, "scaling": scaling})
    assert "20.0 % [10.0 %, 30.0 %]" in page
    assert "50.0 % [40.0 %, 60.0 %]" in page
    claim = next(line for line in page.splitlines() if "over-compliance: false premise" in line)
    assert claim.endswith("yes |")
    assert "2 random draws change by +3.0 % (+0.0 % to +6.0 %), 0 of them by as much or more" in claim
    scaling["random"] = [curve(0.3)]
    page = prose.render({**figures, "scaling": scaling})
    assert next(line for line in page.splitlines() if "over-compliance: false premise" in line).endswith("**no** |")
