"""``hguard eval``: its arithmetic on answers that are made up, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from app.cli.main import main
from guard.evaluation import metrics
from guard.evaluation.baselines import Baselines, cost
from guard.evaluation.detectors import reports
from guard.evaluation.figures import EvaluatedAnswer, report, scaled, scored
from guard.evaluation.html import render
from guard.judge.question import Question
from guard.probe.bundle import Bundle
from guard.probe.readout import Readout
from tests.measured import token_signals


def answered(score: float, right: bool | None) -> EvaluatedAnswer:
    values = np.full(3, score, np.float32)
    return EvaluatedAnswer(
        "text", token_signals(score, values, np.full(3, 0.1, np.float32), np.full(3, -0.1, np.float32)), right
    )


@pytest.fixture
def answers() -> list[EvaluatedAnswer]:
    rng = np.random.default_rng(0)
    right = [answered(score, True) for score in rng.normal(-2, 1, 150)]
    wrong = [answered(score, False) for score in rng.normal(2, 1, 60)]
    return [*right, *wrong, *[answered(0.0, None)] * 10, EvaluatedAnswer("", None, False)]


def questions(count: int) -> list[Question]:
    return [Question(str(i), ("x",), str(i), ("odd",) if i % 2 else ()) for i in range(count)]


def own(count: int) -> list[str]:
    """An entity for each answer."""
    return [str(i) for i in range(count)]


def test_report(bundle: Bundle, answers: list[EvaluatedAnswer]) -> None:
    result = report(bundle, bundle.readout, questions(len(answers)), answers, draws=20)
    assert (result["right"], result["wrong"], result["declined"], result["not_scored"]) == (150, 61, 10, 1)
    assert result["truthfulness"] == pytest.approx((150 - 61) / 221)
    everything = result["sets"]["all"]
    assert (everything["n"], everything["wrong"]) == (210, 60)
    assert everything["parts"]["stack"]["auroc"]["value"] > 0.98
    assert everything["parts"]["length"]["auroc"]["value"] == 0.5, "all answers are alike in length"
    assert result["sets"]["odd"]["n"] < 210
    json.dumps(result)


def test_abstaining_withholds_what_was_not_scored(bundle: Bundle, answers: list[EvaluatedAnswer]) -> None:
    result = report(bundle, bundle.readout, questions(len(answers)), answers, draws=20)
    row = next(row for row in result["thresholds"] if row["target_fpr"] == 0.05)
    risk = np.array(
        [bundle.readout.risk(a.signals)[0] for a in answers if a.signals is not None and a.right is not None]
    )
    truth = np.array([a.right for a in answers if a.signals is not None and a.right is not None])
    threshold = bundle.threshold(0.05)
    assert row["false_alarms"] == pytest.approx((risk[truth] >= threshold).mean())
    assert row["caught"] == pytest.approx(((risk[~truth] >= threshold).sum() + 1) / 61)


def test_the_page_has_everything(bundle: Bundle, answers: list[EvaluatedAnswer]) -> None:
    result = {"model": "some <model>", **report(bundle, bundle.readout, questions(len(answers)), answers, draws=20)}
    assert render(result).count("<svg") == 3
    counts = {"right": 1, "wrong": 2, "declined": 3}
    row = {**counts, "truthfulness": -0.1, "sets": {"odd": counts}}
    result["scale"] = [{"alpha": alpha, **row} for alpha in (0, 1)]
    result["scale_random"] = [result["scale"]] * 2
    page = render(result)
    assert "some &lt;model&gt;" in page
    assert page.count("<svg") == 4
    for heading in ("<h3>all</h3>", "<h3>odd</h3>", "<h3>Abstaining</h3>", "<h2>Scaling</h2>", "draw 2</h3>"):
        assert heading in page


def test_baselines_stand_in_the_same_table(bundle: Bundle, answers: list[EvaluatedAnswer]) -> None:
    use = scored(answers)
    wrong = np.array([not answers[i].right for i in use])
    rng = np.random.default_rng(0)
    draws = wrong + rng.normal(size=(3, len(use)))
    facts = {
        "folds": 5,
        "draws": 3,
        "layers": [2, 2, 1, 2, 2],
        "consistency": cost([[4, 6]], [5], 1.0),
    }
    made = Baselines({"consistency": wrong * 1.0, "random": draws}, {"linear": "too few < many"}, facts)
    result = report(bundle, bundle.readout, questions(len(answers)), answers, draws=20, baselines=made)
    parts = result["sets"]["all"]["parts"]
    assert next(iter(parts)) == "stack"
    assert list(parts)[-2:] == ["consistency", "random"]
    assert parts["consistency"]["auprc"]["value"] == 1
    each = [metrics.auroc(wrong, one, own(len(wrong)), draws=20) for one in draws]
    random = parts["random"]["auroc"]
    assert random["value"] == pytest.approx(np.mean([one.value for one in each]))
    assert (random["low"], random["high"]) == (min(one.low for one in each), max(one.high for one in each))
    assert set(result["sets"]["odd"]["parts"]) == set(parts)
    json.dumps(result)
    page = render({"model": "m", **result})
    assert "Left out: too few &lt; many." in page
    assert "2.0 times as many" in page
    assert "fit on the evaluated answers themselves" in page


def test_scaling_is_counted_for_each_set(answers: list[EvaluatedAnswer]) -> None:
    row = scaled(0.5, questions(len(answers)), answers)
    assert {name: row[name] for name in ("alpha", "right", "wrong", "declined")} == {
        "alpha": 0.5,
        "right": 150,
        "wrong": 61,
        "declined": 10,
    }
    odd = [answer.right for i, answer in enumerate(answers) if i % 2]
    assert row["sets"] == {"odd": {"right": odd.count(True), "wrong": odd.count(False), "declined": odd.count(None)}}


@pytest.mark.parametrize("ties", [False, True])
def test_intervals_are_those_of_resampled_answers(ties: bool) -> None:
    """All draws at once give what scikit-learn gives for each draw."""
    rng = np.random.default_rng(2)
    wrong = rng.random(80) < 0.2
    score = rng.normal(size=80) + wrong
    score = np.round(score) if ties else score
    found = metrics.detection(wrong, score, own(80), (0.1,), seed=3, draws=50)
    rng = np.random.default_rng(3)
    drawn = [rng.integers(0, 80, 80) for _ in range(50)]
    for name, statistic in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        values = [statistic(wrong[rows], score[rows]) for rows in drawn]
        low, high = np.percentile(values, [2.5, 97.5])
        assert found[name].value == pytest.approx(statistic(wrong, score))
        assert (found[name].low, found[name].high) == (pytest.approx(low), pytest.approx(high))
    assert found["recall_at_0.10"] == metrics.recall_at(wrong, score, own(80), 0.1, seed=3, draws=50)


def test_answers_about_one_entity_are_drawn_together() -> None:
    """Ten copies of each answer are no more evidence than one of each, whatever the entity's name is written like."""
    rng = np.random.default_rng(4)
    wrong = rng.random(60) < 0.3
    score = rng.normal(size=60) + wrong
    once = metrics.detection(wrong, score, [f"Place {i}" for i in range(60)], (0.1,), seed=5, draws=200)
    names = [f"{'Place' if i % 2 else 'PLACE'} {i // 10}" for i in range(600)]
    copied = metrics.detection(wrong.repeat(10), score.repeat(10), names, (0.1,), seed=5, draws=200)
    for name in ("auroc", "auprc"):
        assert copied[name].model_dump() == pytest.approx(once[name].model_dump())
    apart = metrics.auroc(wrong.repeat(10), score.repeat(10), own(600), seed=5, draws=200)
    assert apart.high - apart.low < (once["auroc"].high - once["auroc"].low) / 2


def test_reports_draw_entities(bundle: Bundle, answers: list[EvaluatedAnswer]) -> None:
    """Questions about one thing make intervals as wide as one of them does."""
    widths = {}
    for each in (1, 10):
        asked = [Question(str(i), ("x",), f"entity {i // each}", ()) for i in range(each * len(answers))]
        given = [answer for answer in answers for _ in range(each)]
        blurred = Readout(4, bundle.readout.answer, (0.1, 0.0), bundle.readout.token)
        found = report(bundle, blurred, asked, given, draws=200)["sets"]["all"]["parts"]["stack"]["auroc"]
        use = [i for i, one in enumerate(given) if one.right is not None and one.signals is not None]
        wrong = np.array([not given[i].right for i in use])
        signals = [given[i].signals for i in use]
        card = reports([asked[i] for i in use], wrong, signals, blurred, None, 0)["all"].auroc["stack"]
        widths[each] = (found["high"] - found["low"], card.high - card.low)
    assert widths[10] == pytest.approx(widths[1], rel=0.2)


def test_a_rate_of_what_was_not_seen_is_none(bundle: Bundle, answers: list[EvaluatedAnswer]) -> None:
    for right, told, said in ((False, "false_alarms", "no right"), (True, "caught", "no wrong")):
        some = [answer for answer in answers if answer.right is right]
        result = report(bundle, bundle.readout, questions(len(some)), some, draws=20)
        assert all(row[told] is None for row in result["thresholds"])
        other = "caught" if told == "false_alarms" else "false_alarms"
        assert all(0 <= row[other] <= 1 for row in result["thresholds"])
        page = render({"model": "m", **json.loads(json.dumps(result))})
        assert page.count(f"{said} answer was seen") == len(result["thresholds"]) > 0


def test_metrics_of_a_perfect_and_of_a_useless_score() -> None:
    wrong = np.array([False] * 80 + [True] * 20)
    perfect, useless = wrong.astype(float), np.zeros(100)
    assert metrics.auprc(wrong, perfect, own(100), draws=20).value == 1
    assert metrics.auprc(wrong, useless, own(100), draws=20).value == pytest.approx(0.2)
    assert metrics.recall_at(wrong, perfect, own(100), 0.05, draws=20).value == 1
    assert metrics.recall_at(wrong, useless, own(100), 0.05, draws=20).value == 0
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
    assert metrics.recall_at(wrong, score, own(2000), 0.1, draws=20).value == pytest.approx(
        (score[wrong] > limit).mean()
    )


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--scales", "a,b", "--scales a: Input should be a valid number"),
        ("--scales", "0,4", "--scales 4: Input should be less than or equal to 3"),
        ("--random-draws", "-1", "--random-draws -1: Input should be greater than or equal to 0"),
    ],
)
def test_wrong_options(option: str, value: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "atlas", "--data", "none", "--json", str(tmp_path / "out.json"), option, value]
    assert main(command) == 1
    assert says in capsys.readouterr().err
