"""What can teach: parts of a fit, certain answers, and too few right ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from guard.errors import FitError
from guard.harness.activations import file_of
from guard.harness.answers import Example
from guard.harness.store import StageStore
from guard.judge.question import Question
from guard.training.config import FitConfig
from guard.training.examples import ANSWERS, LEAST_RIGHT, DataSplit, answer_all, require_right

SHARES = {"train": 0.5, "test": 0.5}


def test_uncertain_answers_do_not_teach_but_are_measured() -> None:
    questions = [Question(f"Where is {i}?", ("here",), f"{i}") for i in range(200)]
    sure = [Example(i, [1], [2], "here", 0, 1, bool(i % 3)) for i in range(200)]
    unsure = [Example(i, [1], [2], "here", 0, 1, bool(i % 3), certain=bool(i % 2)) for i in range(200)]
    every, some = (DataSplit.of(questions, chosen, SHARES, 0).parts for chosen in (sure, unsure))
    assert some["test"] == every["test"]
    assert some["train"] == [row for row in every["train"] if row % 2]
    assert 0 < len(some["train"]) < len(every["train"])


@pytest.mark.parametrize(
    ("asked", "answered", "right", "expected", "match"),
    [
        (5000, 500, 4, True, r"after 500 of 5000 questions 4 answers are right, so about 40 will be"),
        (5000, 500, 0, True, "about 0 will be"),
        (600, 600, 600, False, "all 600 judged answers are right"),
        (600, 600, LEAST_RIGHT - 1, False, r"49 of 600 judged answers are right, and a probe needs 50"),
        (600, 600, 0, False, "0 of 600"),
    ],
)
def test_too_few_right_answers_are_said_before_and_after(
    asked: int, answered: int, right: int, expected: bool, match: str
) -> None:
    with pytest.raises(FitError, match=match):
        require_right(asked, answered, right, expected)


@pytest.mark.parametrize(
    ("asked", "answered", "right", "expected"),
    [(5000, 500, 5, True), (600, 600, LEAST_RIGHT, False), (40, 40, 4, False)],
)
def test_enough_right_answers(asked: int, answered: int, right: int, expected: bool) -> None:
    require_right(asked, answered, right, expected)


def test_what_is_kept_beside_neurons_has_an_array_each() -> None:
    plain, more = FitConfig(signals="none"), FitConfig(signals="none", keep="residual,question")
    assert list(map(file_of, plain.tables())) == ["means.npy", "leads.npy"]
    assert list(map(file_of, more.tables())) == [
        *("means.npy", "leads.npy", "neurons-question.npy"),
        *("residual-span.npy", "residual-last_prompt.npy", "residual-question.npy"),
    ]
    assert plain.stage_settings() == more.stage_settings(), "the fit is the same"
    residual = ["residual-span.npy", "residual-last_prompt.npy"]
    assert list(map(file_of, FitConfig().tables())) == ["means.npy", "leads.npy", *residual], "its probe reads that"


def test_what_earlier_answers_did_not_leave_is_not_kept_of_later_ones_alone(tmp_path: Path) -> None:
    work = StageStore(tmp_path / "work", {})
    with work.appending(ANSWERS) as append:
        append({"question": 0, "tokens": [1], "text": "here", "ended": True, "draws": {}})
    for name in ("means.npy", "leads.npy"):
        work.path(name).touch()
    asked = [Question("Where is it?", ("here",), "it")] * 2
    config = FitConfig(signals="none", keep="attention")
    with pytest.raises(FitError, match=r"work has 1 answers, and no attention-span\.npy of them"):
        asyncio.run(answer_all(work, object(), asked, [[1], [2]], config, (1, 1), True, print))
