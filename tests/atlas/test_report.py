"""The report says what its JSON says, of the probes that ship; and the laws read what the model draws."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from app.settings import ATLAS
from guard.probe.bundle import load_bundle
from models.atlas.recipe import laws, prose
from models.atlas.recipe.questions import from_ledger, load_ledger
from models.atlas.recipe.trials import pressure_sets

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "atlas-report.json").read_text())
    return found


def test_the_page_is_made_of_the_figures(figures: dict[str, Any]) -> None:
    assert (DOCS / "atlas-report.md").read_text() == prose.render(figures)
    for plot in re.findall(r"\]\((atlas-report[^)]*)\)", prose.render(figures)):
        assert (DOCS / plot).read_text().startswith("<?xml")


def test_the_figures_are_of_the_probes_that_ship(figures: dict[str, Any]) -> None:
    for name, folder in (("chat", ATLAS), ("base", ATLAS / "base")):
        probe, bundle = figures["probes"][name], load_bundle(folder / "probe")
        assert (probe["id"], probe["neurons"]) == (bundle.card.id, len(bundle.neuron))
        assert probe["shipped"]


def test_every_set_has_what_a_reader_of_the_json_expects(figures: dict[str, Any]) -> None:
    for sets in (figures["sets"], figures["base"]["sets"]):
        for name in ("all", "unfamiliar", "hard", "rare", "once", "shadowed"):
            one = sets[name]
            assert one["n"] >= 20
            assert {"stack", "neurons", "entropy", "random", "logprob", "length"} <= set(one["auroc"])
            assert 0 <= one["ece"] <= 1


def test_goals_are_judged_by_the_figures(figures: dict[str, Any]) -> None:
    worse = json.loads(json.dumps(figures))
    for sets in (worse["sets"], worse["base"]["sets"]):
        sets["unfamiliar"]["auroc"]["stack"]["value"] = 0.5
        sets["all"]["ece"] = 0.2
        sets["hard"]["stack_minus_entropy"]["value"] = sets["hard"]["neurons_minus_random"]["value"] = -0.1
    for splits in worse["reseeded"].values():
        for one in splits:
            one["false_alarms"] = 0.2
    for name in prose.UNFAMILIAR:
        worse["alpha"]["h_neurons"]["0"][name] = worse["alpha"]["h_neurons"]["1"][name]
    assert not any(reached for _, _, reached in prose.goals(worse))


def test_questions_come_from_the_ledger_with_their_sets() -> None:
    ledger = load_ledger(ATLAS)
    questions = from_ledger(ledger, 0)
    groups = {group for question in questions for group in question.groups}
    assert {"hard", "unfamiliar", "once", "rare", "shadowed", "fabricated"} <= groups
    assert not any("held out" in question.groups for question in questions)
    assert questions == from_ledger(ledger, 0)
    for trial in pressure_sets(ledger, 20, 0):
        assert trial.giving_in
        assert trial.giving_in not in trial.question.accepted[0]


@pytest.mark.parametrize(
    ("template", "question", "name"),
    [
        ("Where is {n}?", "where is baden-württemberg", "baden-württemberg"),
        ("What kind of place is {n} in {d}?", "What kind of place is Ceuta in Spain?", "Ceuta"),
        ("{n} is in which country?", "Kandy is in which country?", "Kandy"),
    ],
)
def test_questions_that_the_model_draws_are_read(template: str, question: str, name: str) -> None:
    match = re.fullmatch(laws._pattern(template), question, re.IGNORECASE)
    assert match is not None
    assert match["n"] == name


def test_the_goals_of_signals_are_judged_by_the_figures(figures: dict[str, Any]) -> None:
    better = json.loads(json.dumps(figures))
    for one in better["signals"]["chat"].values():
        one["auroc"]["default"]["value"] = 1.0
    own = [(goal, reached) for goal, _, reached in prose.goals(better) if "default signals" in goal]
    assert len(own) == 6
    assert all(reached for _, reached in own)
    for one in better["signals"]["chat"].values():
        one["auroc"]["default"]["value"] = 0.5
    assert not any(reached for goal, _, reached in prose.goals(better) if "default signals" in goal)
