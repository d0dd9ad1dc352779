"""Questions from a file: each fault is named with its line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from guard.errors import FitError
from guard.harness.datafile import read_file
from guard.harness.questions import gather, load_questions
from guard.harness.survey import survey
from guard.judge.question import Question

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
        ([{"question": "Where?", "answers": ["x"], "exists": False}], "line 1: .exists. says that no answer is right"),
        ([{**GOOD, "exists": "maybe"}], "line 1: exists must be true or false"),
        ([{**GOOD, "entity": ["x"]}], "line 1: entity must be a name or a whole number"),
        ([{**GOOD, "entity": 1.5}], "line 1: entity must be a name or a whole number"),
        ([GOOD, '{"question": "\\ud83d?", "answers": ["x"]}\n'], r"line 2: has half a character \(.ud83d"),
        ([GOOD, '{"question": "?", "answers": ["\\udc00"]}\n'], "line 2: has half a character"),
        ([GOOD, '{"question": "?", "answers": ["x"], "entity": "\\udc00"}\n'], "line 2: has half a character"),
        ([GOOD, '{"question": ' + "9" * 5000 + "}\n"], "line 2: not JSON that can be read .Exceeds the limit"),
        ([GOOD, "[" * 100_000 + "\n"], "line 2: not JSON that can be read .nested too deeply"),
        ([{"question": "?", "answer": "[one, two]"}], "line 1: has answers that are no JSON list"),
        (["Where is Texas?\n"], "line 1: neither JSON nor the header of a table"),
        (["[", GOOD, ","], "line 2: not JSON .the array that starts the file has no end"),
        (["[", GOOD, ",\n{]"], "line 3: not JSON"),
        (["[", GOOD, ",\n" + "[" * 100_000], "line 3: not JSON that can be read .nested too deeply"),
        (["[", GOOD, "]\nmore"], "line 2: not JSON .something follows the array"),
        (["question,answer\nWhere?,x,y\n"], "line 2: has 3 cells, and the header 2"),
        (['question,answer\nWhere?,"x\n'], "line 2: not a row of a table"),
        (["question,answer,answer\nWhere?,x,y\n"], "line 1: two columns are called answer"),
        (["question,answer\nWhere?,\n"], "line 2: needs answers"),
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


def test_repeated_questions_are_dropped_with_a_count(tmp_path: Path) -> None:
    """In whatever way the blanks are typed; answers that only the second has are accepted, too."""
    again = {"question": " Where is  Texas? ", "answers": ["usa", "America"], "groups": ["asked"]}
    said: list[str] = []
    loaded = load_questions(write(tmp_path, GOOD, GOOD, again), say=said.append)
    answers = ("United States", "USA", "usa", "America")
    assert loaded == [Question("Where is Texas?", answers, "Texas", ("places", "asked"))]
    assert [line.split(": ")[1] for line in said] == ["2 repeated questions dropped (line 2)"]


def test_contradicting_questions_are_dropped_with_a_count(tmp_path: Path) -> None:
    """All of them: nobody knows which is right."""
    rows = [
        {"question": "Who?", "answers": ["me"]},
        GOOD,
        {"question": "Who?", "answers": ["you"]},
        {"question": "Who?", "answers": ["me"]},
        {**GOOD, "question": "Where is Qolmar?", "answers": [], "exists": False},
        {**GOOD, "question": "Where is Qolmar?"},
    ]
    said: list[str] = []
    loaded = load_questions(write(tmp_path, *rows), say=said.append)
    assert [question.text for question in loaded] == ["Where is Texas?"]
    (line,) = said
    assert (
        "5 questions dropped that the same question elsewhere contradicts (line 1, line 3, line 4, line 5, ...)" in line
    )


def test_the_first_ones_are_counted_without_what_is_dropped(tmp_path: Path) -> None:
    rows = [{**GOOD, "question": text} for text in ("a", "a", "b", "c")]
    assert [one.text for one in load_questions(write(tmp_path, *rows), 2, say=lambda line: None)] == ["a", "b"]


def test_entities_called_0(tmp_path: Path) -> None:
    """A number is a name; an empty text is none."""
    rows = [{**GOOD, "question": str(i), "entity": entity} for i, entity in enumerate([0, 0, "", None, "0"])]
    assert [one.entity for one in load_questions(write(tmp_path, *rows))] == ["0", "0", "2", "3", "0"]


TEXT = "".join(
    json.dumps(row, ensure_ascii=False) + "\r\n" for row in (GOOD, {"question": "Où?", "answer": "à Zürich"})
)


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        ("utf-8", "UTF-8"),
        ("utf-8-sig", "UTF-8 with a byte order mark"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16 without a byte order mark"),
        ("utf-16-be", "UTF-16 without a byte order mark"),
        ("utf-32", "UTF-32"),
        ("latin-1", "Latin-1 (Windows-1252)"),
        ("cp1252", "Latin-1 (Windows-1252)"),
    ],
)
def test_encodings(codec: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(TEXT.encode(codec))
    assert read_file(path).encoding == name
    assert [question.accepted for question in load_questions(str(path))] == [("United States", "USA"), ("à Zürich",)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (TEXT.encode() + "Zürich".encode("latin-1"), "line 3: byte 0xfc is not UTF-8, nor is the file Latin-1"),
        ('{"question": "Где Москва?"}'.encode("cp1251"), "line 1: byte 0xc3 is not UTF-8, nor is the file Latin-1"),
        (b"\xff\xfe\x00", "starts as UTF-16 and is not"),
        (b"\x1f\x8b\x08", "is compressed with gzip: unpack it"),
        (b"PK\x03\x04", "export the table as CSV"),
        (b"PAR1", "write it as JSON lines"),
    ],
)
def test_what_is_no_text(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(data)
    with pytest.raises(FitError, match=says):
        load_questions(str(path))


NQ = {"question": "who wrote it", "answer": ["Bobby Scott", "Bob Russell"]}
TRIVIA = {
    "question": "Who was it?",
    "question_id": "tc_1",
    "answer": {"value": "Ali", "aliases": ["Ali", "Clay"], "normalized_aliases": ["ali", "clay"]},
}
SQUAD = {"title": "Normans", "context": "...", "question": "Where?", "answers": {"text": ["France", "France"]}}
POPQA = {
    "subj": "George Rankin",
    "prop": "occupation",
    "obj": "politician",
    "question": "What is George Rankin's occupation?",
    "possible_answers": '["politician", "political leader"]',
}
SIMPLEQA = {"metadata": "{'topic': 'Science'}", "problem": "Who received it in 2010?", "answer": "Michio Sugeno"}
KNOWN = [
    (NQ, Question("who wrote it", ("Bobby Scott", "Bob Russell"), "who wrote it")),
    (TRIVIA, Question("Who was it?", ("Ali", "Clay"), "Who was it?")),
    (SQUAD, Question("Where?", ("France",), "Normans")),
    (POPQA, Question(POPQA["question"], ("politician", "political leader"), "George Rankin", ("occupation",))),
    (SIMPLEQA, Question(SIMPLEQA["problem"], ("Michio Sugeno",), SIMPLEQA["problem"])),
]


@pytest.mark.parametrize(("row", "question"), KNOWN, ids=["nq", "triviaqa", "squad", "popqa", "simpleqa"])
def test_the_fields_of_public_sets(row: dict[str, Any], question: Question, tmp_path: Path) -> None:
    assert load_questions(write(tmp_path, row)) == [question]
    (tmp_path / "questions.json").write_text(json.dumps([row], indent=2))
    assert load_questions(str(tmp_path / "questions.json")) == [question]


@pytest.mark.parametrize("row", [POPQA, SIMPLEQA, {"Question": "Where?", "Answers": '["a", "b, c"]', "Entity": "0"}])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_tables(row: dict[str, str], delimiter: str, tmp_path: Path) -> None:
    """What a table says is what the same row says as JSON."""
    path = tmp_path / "questions.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*row, "empty"], delimiter=delimiter)
        writer.writeheader()
        writer.writerow(row)
    assert load_questions(str(path)) == load_questions(write(tmp_path, row))


def test_a_table_says_what_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "questions.csv"
    path.write_text('question,answers,exists\n"Where, then?",,False\n\nWho?,me,true\n')
    assert load_questions(str(path)) == [
        Question("Where, then?", (), "Where, then?"),
        Question("Who?", ("me",), "Who?"),
    ]


def test_squad_as_it_is_distributed(tmp_path: Path) -> None:
    asked = [
        {"question": "In what country?", "id": "1", "answers": [{"text": "France", "answer_start": 159}]},
        {"question": "Who gave their name?", "id": "2", "answers": [], "is_impossible": True},
        {"question": "When?", "id": "3", "answers": [{"text": "10th"}, {"text": "in the 10th"}]},
    ]
    path = tmp_path / "train-v2.0.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "Normans", "paragraphs": [{"qas": asked}]}]}))
    said: list[str] = []
    assert load_questions(str(path), say=said.append) == [
        Question("In what country?", ("France",), "Normans"),
        Question("When?", ("10th", "in the 10th"), "Normans"),
    ]
    assert said == [f"{path}: 1 question dropped that the set's own text does not answer"]


def test_triviaqa_as_it_is_distributed(tmp_path: Path) -> None:
    row = {"Question": "Who was it?", "Answer": {"Value": "Ali", "Aliases": ["Clay"], "Type": "WikipediaEntity"}}
    path = tmp_path / "web-dev.json"
    path.write_text(json.dumps({"Data": [row, {"Question": "Why?"}], "Domain": "Web"}, indent=1))
    assert load_questions(str(path), 1) == [Question("Who was it?", ("Ali", "Clay"), "Who was it?")]
    with pytest.raises(FitError, match="item 2 of data: needs answers"):
        load_questions(str(path))


def test_faults_are_all_found_when_it_is_to_go_on(tmp_path: Path) -> None:
    gathered = gather(write(tmp_path, "{\n", GOOD, {"question": "?"}), go_on=True)
    assert [fault.split(":")[0] for fault in gathered.faults] == ["line 1", "line 3"]
    assert gathered.places == ["line 2"]


def test_a_survey_names_what_to_look_at(tmp_path: Path) -> None:
    rows = [
        GOOD,
        {**GOOD, "question": "Which country is Mexico City in?", "answers": ["Mexico"]},
        {**GOOD, "question": "a", "answers": ["one; two"]},
        {**GOOD, "question": "b", "answers": ["+"]},
        {**GOOD, "question": "c", "answers": ["ZÃ¼rich"]},
        {**GOOD, "question": "d", "answers": ["word " * 13], "id": 1},
        {**GOOD, "question": "e", "answers": ["unknown"]},
        {"question": "f", "answers": [], "exists": False},
    ]
    lines = list(survey(gather(write(tmp_path, *rows)), seed=0))
    assert ("read as", "JSON lines, ASCII") in lines
    assert ("questions", "8 of 8 rows") in lines
    assert ("fields", "question, answers, entity, groups, exists; not read: id") in lines
    assert ("answers", "1 to 2 accepted, 1 at the median; 1 questions have no right answer") in lines
    assert ("entities", "2, 7 questions about the largest ('texas'); 1 questions are an entity of their own") in lines
    assert ("groups", "places 7") in lines
    looks = [text for heading, text in lines if heading == "look at"]
    places = ["line 2", "line 3", "line 6", "line 4", "line 7", "line 5"]
    assert looks[0] == "88% of the questions are about one entity: all fall into one split"
    assert [text.rpartition(": ")[2] for text in looks[1:]] == places
    data = dict(lines)["hguard fit"]
    assert sum(int(part.split()[1]) for part in data.split(" (")[0].split(", ")) == 8
