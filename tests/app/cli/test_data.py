"""``hguard data check``, what ``hguard eval`` shows of its judge, and what is said where the extra is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.evaluate import judged_lines
from app.cli.main import main
from app.settings import ATLAS
from guard.evaluation.figures import EvaluatedAnswer
from guard.judge.question import Question
from guard.training.pipeline import SHARES

ROWS = [
    {"question": "Where is Texas?", "answers": ["United States", "USA"], "entity": "Texas", "groups": ["places"]},
    {"question": "Where is Texas?", "answers": ["USA"], "entity": "Texas"},
    {"question": "Who?", "answers": ["me"]},
    {"question": "Who?", "answers": ["you"]},
]


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def lines(text: str) -> list[tuple[str, str]]:
    return [(line[:16].strip(), line[17:]) for line in text.splitlines()]


def test_what_a_file_holds(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", data]) == 0
    said = lines(capsys.readouterr().out)
    assert ("read as", "JSON lines, ASCII") in said
    assert ("questions", "1 of 4 rows") in said
    assert ("dropped", "1 repeated question dropped (line 2)") in said
    contradicted = "2 questions dropped that the same question elsewhere contradicts (line 3, line 4)"
    assert ("dropped", contradicted) in said
    data = dict(said)["hguard fit"]
    assert [part.split()[0] for part in data.split(" (")[0].split(", ")] == list(SHARES)


def test_what_a_fit_would_refuse(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Path(data).open("a") as file:
        file.write('{"question": "Why?"}\n{\n')
    assert main(["data", "check", data]) == 1
    out, err = capsys.readouterr()
    faults = [text for heading, text in lines(out) if heading == "fault"]
    assert [fault.split(":")[0] for fault in faults] == ["line 5", "line 6"]
    assert err.startswith(f"hguard: {data}: 2 rows cannot be used; the first is line 5: needs answers")
    assert main(["fit", str(ATLAS), "--data", data, "--out", data + ".out"]) == 1
    assert "line 5: needs answers" in capsys.readouterr().err


def test_the_first_ones_alone(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", data, "--limit", "1"]) == 0
    assert ("questions", "1 of 1 rows") in lines(capsys.readouterr().out)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(text)
    assert main(["data", "check", str(path)]) == 1
    assert "has no questions" in capsys.readouterr().err


def test_it_starts_no_engine(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And brings none of what an engine needs: an answer takes a moment."""
    assert main(["data", "check", data, "--", "--enforce-eager"]) == 2
    assert "data does not start vLLM" in capsys.readouterr().err
    program = (
        "import sys, app.cli.main; "
        f"status = app.cli.main.main(['data', 'check', {data!r}]); "
        "print(status, {'torch', 'vllm', 'transformers', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ATLAS.parents[1], capture_output=True, text=True)
    assert (done.stdout.splitlines()[-1], done.stderr) == ("0 set()", "")


@pytest.mark.parametrize("command", ["fit", "calibrate", "eval"])
@pytest.mark.parametrize("package", ["sklearn", "matplotlib"])
def test_a_missing_extra_is_named(
    command: str,
    package: str,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    out = "--json" if command == "eval" else "--out"
    assert main([command, str(ATLAS), "--data", data, out, str(tmp_path / "out")]) == 1
    name = {"sklearn": "scikit-learn"}.get(package, package)
    said = f"hguard: hguard {command} needs {name}, which the extra fit brings: .venv/bin/pip install -e '.[fit]'\n"
    assert capsys.readouterr().err == said


def test_what_was_judged_can_be_read() -> None:
    questions = [Question("Where is\nTexas?", ("United States", "USA"), "x"), Question("Qolmar?", (), "y")]
    answers = [EvaluatedAnswer("It is in\n\nPeru.", None, False), EvaluatedAnswer("", None, None)]
    assert list(judged_lines(questions, answers, 5)) == [
        "wrong     Where is Texas?",
        "          accepted: United States; USA",
        "          answer:   It is in Peru.",
        "declined  Qolmar?",
        "          accepted: (none)",
        "          answer:   (empty)",
    ]
    assert len(list(judged_lines(questions, answers, 1))) == 3
    assert list(judged_lines(questions, answers, 0)) == []


def test_how_many_are_shown(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", str(ATLAS), "--data", data, "--json", str(tmp_path / "out.json"), "--show-judged", "0"]
    assert main(command) == 1
    assert "--show-judged takes how many questions to show" in capsys.readouterr().err


def test_what_was_judged_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every answer is kept from an earlier run, so that no engine starts."""
    path, work = tmp_path / "questions.jsonl", tmp_path / "work"
    (work / "scale-1").mkdir(parents=True)
    signals = {
        "last_prompt": {"neurons": 0.1},
        "values": {"neurons": [0.1, 0.2], "entropy": [0.1, 0.2], "logprob": [-0.1, -0.2]},
    }
    with path.open("w") as asked, (work / "scale-1" / "answered.jsonl").open("w") as answered:
        for i in range(40):
            asked.write(json.dumps({"question": f"Where is {i}?", "answers": ["here"]}) + "\n")
            text = "It is\nhere." if i % 2 else "It is there."
            answered.write(json.dumps({"question": i, "tokens": [1, 2], "text": text, "signals": signals}) + "\n")
    command = ["eval", "atlas", "--data", str(path), "--json", str(tmp_path / "out.json"), "--work", str(work)]
    assert main([*command, "--no-baselines", "--show-judged", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[:6] == [
        "wrong     Where is 0?",
        "          accepted: here",
        "          answer:   It is there.",
        "right     Where is 1?",
        "          accepted: here",
        "          answer:   It is here.",
    ]
    assert json.loads((tmp_path / "out.json").read_text())["right"] == 20
