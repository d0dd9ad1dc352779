"""Questions from a file: each fault is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guard.errors import FitError
from guard.fit.questions import Question, load_questions

GOOD = {"question": "Where is Texas?", "answers": ["United States", "USA"], "entity": "Texas", "groups": ["places"]}


def write(folder: Path, *rows: object) -> str:
    path = folder / "questions.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_good_file(tmp_path: Path) -> None:
    other = {"question": "Where is Qolmar?", "answers": [], "exists": False}
    loaded = load_questions(write(tmp_path, GOOD, "\n", other, {"question": "Who?", "answers": "me"}))
    assert loaded == [
        Question("Where is Texas?", ("United States", "USA"), "Texas", ("places",)),
        Question("Where is Qolmar?", (), "Where is Qolmar?"),
        Question("Who?", ("me",), "Who?"),
    ]


def test_the_first_ones(tmp_path: Path) -> None:
    rows = [{**GOOD, "question": str(i)} for i in range(5)]
    assert [question.text for question in load_questions(write(tmp_path, *rows), most=2)] == ["0", "1"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([GOOD, {"question": "Where?", "answers": []}], 'line 2: has no answer; say "exists": false'),
        ([GOOD, {"question": "Where?", "answers": ["  "]}], "line 2: has no answer"),
        ([GOOD, {"question": "Where?"}], "line 2: needs answers, a list of texts"),
        ([{"question": "Where?", "answers": [1]}], "line 1: needs answers, a list of texts"),
        ([GOOD, GOOD], "line 2: the question of line 1 again"),
        ([{"answers": ["x"]}], "line 1: needs a question, as text"),
        ([{"question": " ", "answers": ["x"]}], "line 1: needs a question"),
        (["[1]\n"], "line 1: needs a question"),
        ([{**GOOD, "groups": "places"}], "groups must be a list of names"),
        ([GOOD, "{not json\n"], "line 2: not JSON"),
        ([], "has no questions"),
        (["\n\n"], "has no questions"),
    ],
)
def test_faults(tmp_path: Path, rows: list[object], says: str) -> None:
    with pytest.raises(FitError, match=says.replace('"', ".")):
        load_questions(write(tmp_path, *rows))


def test_neither_a_file_nor_a_data_set() -> None:
    with pytest.raises(FitError, match="neither a file nor one of triviaqa, nq_open, simpleqa"):
        load_questions("nowhere.jsonl")
