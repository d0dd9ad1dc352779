"""The parts of the fit that need no model."""

from __future__ import annotations

import numpy as np
import pytest

from guard.evaluation import metrics
from guard.harness.questions import split
from guard.judge.question import Question
from guard.judge.rules import judge, normalise


@pytest.mark.parametrize(
    ("accepted", "answer", "verdict"),
    [
        ("the United Kingdom", "It is in the United Kingdom.", True),
        ("United Kingdom", "It is in the United States.", False),
        ("Niger", "It is in Nigeria.", False),
        ("Guinea", "It is in Guinea.", True),
        ("DE", "Its code is DE.", True),
        ("de", "Its code is deu.", False),
        ("Côte d'Ivoire", "It is in Côte d'Ivoire.", True),
        ("France", "I don't know.", None),
        ("I was not taught that.", "I was not taught that.", True),
        ("Málaga", "It is Malaga, Spain.", True),
        ("Ain't No Mountain High Enough", "“Ain’t No Mountain High Enough”", True),
        ("France", "I don’t know.", None),
    ],
)
def test_judge(accepted: str, answer: str, verdict: bool | None) -> None:
    assert judge(Question("?", (accepted,), "x"), answer) is verdict


def test_nothing_is_right_about_what_does_not_exist() -> None:
    assert judge(Question("Where is Qolmar?", (), "Qolmar"), "It is in France.") is False


def test_normalise() -> None:
    assert normalise("The  U.S., a land!") == "u s land"


def test_entities_never_overlap_between_splits() -> None:
    questions = [
        Question(f"{i}", ("x",), f"Entity {i % 40}".swapcase() if i % 2 else f"Entity {i % 40}") for i in range(400)
    ]
    data = split(questions, {"train": 0.5, "calibration": 0.2, "test": 0.3}, seed=0)
    assert sorted(i for part in data.values() for i in part) == list(range(400))
    entities = [{questions[i].entity.casefold() for i in part} for part in data.values()]
    assert sum(map(len, entities)) == len(set.union(*entities))
    assert split(questions, {"train": 0.5, "calibration": 0.2, "test": 0.3}, seed=1) != data


def test_metrics_on_known_cases() -> None:
    wrong = np.array([False, False, True, True])
    assert metrics.auroc(wrong, np.array([0.1, 0.2, 0.3, 0.4]), list("abcd"), draws=50).value == 1.0
    assert metrics.ece(wrong, np.array([0.0, 0.0, 1.0, 1.0])) == 0.0
    assert metrics.ece(wrong, np.array([0.5, 0.5, 0.5, 0.5])) == 0.0
    assert metrics.ece(wrong, np.array([0.9, 0.9, 0.9, 0.9])) == pytest.approx(0.4)
    assert metrics.brier(wrong, np.array([0.5] * 4)) == 0.25
