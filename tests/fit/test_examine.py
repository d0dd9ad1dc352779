"""``hguard eval``: its arithmetic on answers that are made up, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app.cli import main
from guard.fit import metrics
from guard.fit.examine import Answered, report
from guard.fit.page import render
from guard.fit.questions import Question
from guard.probe.bundle import Bundle
from guard.probe.readout import Signals


def answered(score: float, right: bool | None) -> Answered:
    values = np.full(3, score, np.float32)
    return Answered("text", Signals(score, values, np.full(3, 0.1, np.float32), np.full(3, -0.1, np.float32)), right)


@pytest.fixture
def answers() -> list[Answered]:
    rng = np.random.default_rng(0)
    right = [answered(score, True) for score in rng.normal(-2, 1, 150)]
    wrong = [answered(score, False) for score in rng.normal(2, 1, 60)]
    return [*right, *wrong, *[answered(0.0, None)] * 10, Answered("", None, False)]


def questions(count: int) -> list[Question]:
    return [Question(str(i), ("x",), str(i), ("odd",) if i % 2 else ()) for i in range(count)]


def test_report(bundle: Bundle, answers: list[Answered]) -> None:
    result = report(bundle, bundle.readout, questions(len(answers)), answers, draws=20)
    assert (result["right"], result["wrong"], result["declined"], result["not_scored"]) == (150, 61, 10, 1)
    assert result["truthfulness"] == pytest.approx((150 - 61) / 221)
    everything = result["sets"]["all"]
    assert (everything["n"], everything["wrong"]) == (210, 60)
    assert everything["parts"]["stack"]["auroc"]["value"] > 0.98
    assert everything["parts"]["length"]["auroc"]["value"] == 0.5, "all answers are alike in length"
    assert result["sets"]["odd"]["n"] < 210
    json.dumps(result)


def test_abstaining_withholds_what_was_not_scored(bundle: Bundle, answers: list[Answered]) -> None:
    result = report(bundle, bundle.readout, questions(len(answers)), answers, draws=20)
    row = next(row for row in result["thresholds"] if row["target_fpr"] == 0.05)
    risk = np.array(
        [bundle.readout.risk(a.signals)[0] for a in answers if a.signals is not None and a.right is not None]
    )
    truth = np.array([a.right for a in answers if a.signals is not None and a.right is not None])
    threshold = bundle.threshold(0.05)
    assert row["false_alarms"] == pytest.approx((risk[truth] >= threshold).mean())
    assert row["caught"] == pytest.approx(((risk[~truth] >= threshold).sum() + 1) / 61)


def test_the_page_has_everything(bundle: Bundle, answers: list[Answered]) -> None:
    result = {"model": "some <model>", **report(bundle, bundle.readout, questions(len(answers)), answers, draws=20)}
    counts = {"right": 1, "wrong": 2, "declined": 3, "truthfulness": -0.1}
    result["damp"] = [{"alpha": alpha, **counts} for alpha in (0, 1)]
    page = render(result)
    assert "some &lt;model&gt;" in page
    assert page.count("<svg") == 3
    for heading in ("<h2>all</h2>", "<h2>odd</h2>", "<h2>Abstaining</h2>", "<h2>Damping</h2>"):
        assert heading in page


def test_metrics_of_a_perfect_and_of_a_useless_score() -> None:
    wrong = np.array([False] * 80 + [True] * 20)
    perfect, useless = wrong.astype(float), np.zeros(100)
    assert metrics.auprc(wrong, perfect, draws=20).value == 1
    assert metrics.auprc(wrong, useless, draws=20).value == pytest.approx(0.2)
    assert metrics.recall_at(wrong, perfect, 0.05, draws=20).value == 1
    assert metrics.recall_at(wrong, useless, 0.05, draws=20).value == 0
    coverage, error = metrics.risk_coverage(wrong, perfect)
    assert error[coverage <= 0.8].max() == 0
    assert error[-1] == 0.2


def test_recall_at_a_rate_keeps_the_rate() -> None:
    rng = np.random.default_rng(1)
    wrong = rng.random(2000) < 0.3
    score = rng.normal(size=2000) + wrong
    right = np.sort(score[~wrong])
    limit = right[int(np.ceil(len(right) * 0.9)) - 1]
    assert (score[~wrong] > limit).mean() <= 0.1
    assert metrics.recall_at(wrong, score, 0.1, draws=20).value == pytest.approx((score[wrong] > limit).mean())


@pytest.mark.parametrize(("sweep", "says"), [("a,b", "takes numbers"), ("0,4", "from 0 to 3")])
def test_wrong_strengths(sweep: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "atlas", "--data", "none", "--json", str(tmp_path / "out.json"), "--damp-sweep", sweep]
    assert main(command) == 1
    assert says in capsys.readouterr().err
