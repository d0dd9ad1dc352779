"""``hguard score``: a file of answers, in order, resumed, refused by name. What the scores are, /risk's tests say."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from app.cli.main import main
from tests.scripted.engine import ScriptedCore, scripted_engine

ROWS = [
    {"question": "Where is Kandy?", "answer": "It is in Sri Lanka.", "id": 7},
    {"messages": [{"role": "user", "content": "Where is Ulm?"}], "response": "risky"},
    {"prompt": "Ulm is in", "output": "safe"},
    {"problem": "Where is Bonn?", "answer": "missing and missing and missing"},
]


def written(folder: Path, rows: list[Any], name: str = "answers.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def score(file: Path, out: Path, *options: str) -> tuple[int, list[ScriptedCore]]:
    """The exit status, and the engines that were started."""
    with scripted_engine() as made:
        return main(["score", str(file), "--out", str(out), "--model", "atlas", *options]), made


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_rows_come_back_in_order_with_their_risks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "risks.jsonl"
    status, _ = score(written(tmp_path, ROWS), out)
    rows = rows_of(out)
    assert [{key: row[key] for key in ROWS[i]} for i, row in enumerate(rows)] == ROWS
    kinds = [row["hallucination"]["type"] for row in rows]
    assert kinds == ["hallucination_results"] * 3 + ["not_scored"]
    results = [row["hallucination"]["results"][0] for row in rows[:3]]
    assert [result["flagged"] for result in results] == [False, True, False]
    assert "tokens" not in results[0]
    said = capsys.readouterr().out
    assert "4 answers, of which 1 are flagged" in said
    assert "1 could not be scored; the first: a token's score did not come in time" in said
    assert status == 1


def test_tokens_and_explanations_on_request(tmp_path: Path) -> None:
    out = tmp_path / "risks.jsonl"
    assert score(written(tmp_path, ROWS[:1]), out, "--tokens", "--explain")[0] == 0
    (result,) = rows_of(out)[0]["hallucination"]["results"]
    assert "".join(token["token"] for token in result["tokens"]) == ROWS[0]["answer"]
    assert result["explanation"]["signals"]


def test_the_same_command_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    file, out = written(tmp_path, ROWS[:3]), tmp_path / "risks.jsonl"
    score(file, out)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(lines[0] + lines[1][:20])  # killed in the midst of a line
    _, (engine,) = score(file, out)
    assert out.read_bytes() == whole
    assert sum("risk-" in name for name in engine.seen) == 2
    _, engines = score(file, out)
    assert engines == [], "nothing is left to do"


def test_what_is_there_belongs_to_the_same_texts_and_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "risks.jsonl"
    score(written(tmp_path, ROWS[:2]), out)
    assert score(written(tmp_path, [ROWS[2], ROWS[1]], "other.jsonl"), out)[0] == 1
    assert "was made of other texts or options (line 1 differs): give another --out" in capsys.readouterr().err
    for option in (("--threshold", "0.4"), ("--tokens",)):
        assert score(written(tmp_path, ROWS[:2]), out, *option)[0] == 1, (
            "half of the rows would be as the first run made them"
        )
        assert "other texts or options" in capsys.readouterr().err
    assert score(written(tmp_path, ROWS[:1], "fewer.jsonl"), out)[0] == 1
    assert "has 2 rows, and there are 1 to score" in capsys.readouterr().err
    rows = rows_of(out)
    rows[0]["hallucination"]["probe"]["revision"] = "0" * 12
    written(tmp_path, rows, out.name)
    assert score(written(tmp_path, ROWS[:2]), out)[0] == 1
    assert "was scored with another probe (000000000000): give another --out" in capsys.readouterr().err
    written(tmp_path, [{"some": "rows"}], out.name)
    assert score(written(tmp_path, ROWS[:2]), out)[0] == 1
    assert "holds other rows than this command writes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": "A."}, "line 2 has none of messages, prompt, question, problem"),
        ({"question": "Q?"}, "line 2 has none of response, answer, output"),
        ({"question": "Q?", "answer": ["A."]}, "line 2 cannot be read: answer: Input should be a valid string"),
        ({"question": "Q?", "answer": ""}, "line 2 cannot be read: answer: String should have at least 1 character"),
        ("text", "line 2 is no object with a question and an answer"),
    ],
)
def test_a_row_without_question_and_answer_is_named_before_an_engine_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any, said: str
) -> None:
    status, engines = score(written(tmp_path, [ROWS[0], row]), tmp_path / "risks.jsonl")
    assert (status, engines) == (1, [])
    assert said in capsys.readouterr().err


def test_a_text_that_is_too_long_is_told_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "risks.jsonl"
    long = {"question": "Where is Kandy?", "answer": "It is in Sri Lanka. " * 2000}
    assert score(written(tmp_path, [long, ROWS[0]]), out)[0] == 1
    first, second = (row["hallucination"] for row in rows_of(out))
    assert (first["type"], first["code"]) == ("error", "413")
    assert second["type"] == "hallucination_results"
    assert "1 could not be scored; the first: prompt and response have" in capsys.readouterr().out


def test_tables_are_read_and_parquet_is_written(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    file, out = tmp_path / "answers.csv", tmp_path / "risks.parquet"
    with file.open("w", encoding="utf-8", newline="") as lines:
        table = csv.writer(lines)
        table.writerows([("question", "answer"), ("Where is Kandy?", "It is in Sri Lanka."), ("Where?", "risky")])
    assert score(file, out)[0] == 0
    rows = pq.read_table(out).to_pylist()
    assert [row["question"] for row in rows] == ["Where is Kandy?", "Where?"]
    assert [row["flagged"] for row in rows] == [False, True]
    assert json.loads(rows[1]["hallucination"])["results"][0]["risk"] == rows[1]["risk"]


def test_more_answers_than_run_at_once(tmp_path: Path) -> None:
    out = tmp_path / "risks.jsonl"
    many = [{"question": f"Where is place {i}?", "answer": "risky" if i % 3 == 0 else "safe"} for i in range(40)]
    with scripted_engine():
        arguments = ["score", str(written(tmp_path, many)), "--out", str(out), "--slots", "4"]
        assert main([*arguments, "--", "--max-num-seqs", "4"]) == 0
    flagged = [row["hallucination"]["results"][0]["flagged"] for row in rows_of(out)]
    assert flagged == [i % 3 == 0 for i in range(40)]
