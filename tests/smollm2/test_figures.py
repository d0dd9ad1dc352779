"""Each figure of SmolLM2's report is what counting by hand gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from guard.errors import FitError
from guard.harness.features import Features
from models.smollm2.recipe import detection, fits, intervals, sparsity
from models.smollm2.recipe.answered import Answered, bare, load
from tests.smollm2 import workspace


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Answered:
    folder = tmp_path_factory.mktemp("smollm2")
    workspace.write(folder)
    return load(folder, workspace.norms())


def _some(count: int = 60) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(3)
    wrong = rng.random(count) < 0.5
    score = rng.integers(0, 6, count).astype(float)  # with ties
    return wrong, score, [f"entity {i}" for i in rng.integers(0, 20, count)]


def test_answers_about_one_thing_are_drawn_together() -> None:
    _, _, entities = _some()
    weights = intervals.draws(entities, seed=1, count=50)
    assert weights.shape == (51, 60)
    assert (weights[0] == 1).all()
    names = np.array(entities)
    for row in weights[1:]:
        each = [set(row[names == name].tolist()) for name in set(entities)]
        assert all(len(one) == 1 for one in each)
        assert sum(one.pop() for one in each) == len(set(entities))
    assert len(np.unique(weights[1:], axis=0)) > 40


def test_auroc_of_each_draw_is_that_of_the_repeated_answers() -> None:
    wrong, score, entities = _some()
    weights = intervals.draws(entities, count=20)
    found = intervals.auroc(wrong, score, weights)
    for value, row in zip(found, weights, strict=True):
        assert value == pytest.approx(roc_auc_score(np.repeat(wrong, row), np.repeat(score, row)))


def test_a_draw_without_right_answers_has_no_auroc() -> None:
    weights = np.array([[1, 1], [0, 2]], np.int32)
    found = intervals.auroc(np.array([False, True]), np.array([0.0, 1.0]), weights)
    assert found[0] == 1
    assert np.isnan(found[1])
    assert intervals.interval(found)["value"] == 1


def test_same_text_counts_pairs_within_texts_only() -> None:
    wrong, score, entities = _some()
    texts = np.array([f"text {i % 4}" for i in range(len(wrong))])
    weights = intervals.draws(entities, count=10)
    found = intervals.same_text(wrong, score, texts, weights)
    for value, row in zip(found, weights, strict=True):
        above = total = 0.0
        for i in np.flatnonzero(wrong):
            for j in np.flatnonzero(~wrong):
                if texts[i] == texts[j]:
                    times = float(row[i] * row[j])
                    total += times
                    above += times * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
        assert value == pytest.approx(above / total)
    by_hand = sum(int((wrong & (texts == t)).sum() * (~wrong & (texts == t)).sum()) for t in set(texts.tolist()))
    assert intervals.pairs(wrong, texts) == by_hand


def test_slope_is_that_of_the_repeated_points() -> None:
    _, y, entities = _some()
    x = np.random.default_rng(0).random(len(y))
    weights = intervals.draws(entities, count=10)
    for value, row in zip(sparsity.slope(x, y, weights), weights, strict=True):
        assert value == pytest.approx(np.polyfit(np.repeat(x, row), np.repeat(y, row), 1)[0])


def test_sets_and_their_mean(answered: Answered) -> None:
    test = answered.parts()["test"]
    report = detection.by_set(answered, dict(answered.signals), test, draws=20)
    assert set(report["sets"]) == {"cities", "capitals", "triviaqa", "nq_open"}
    by_hand = {}
    for name, one in report["sets"].items():
        own = [i for i in test if answered.questions[i].groups[0] == name]
        wrong = answered.wrong[own]
        assert (one["n"], one["wrong"]) == (len(own), wrong.sum())
        by_hand[name] = roc_auc_score(wrong, answered.signals["entropy"][own])
        assert one["auroc"]["entropy"]["value"] == pytest.approx(by_hand[name])
        assert one["auroc"]["entropy"]["low"] <= by_hand[name] <= one["auroc"]["entropy"]["high"]
    assert report["mean"]["entropy"]["value"] == pytest.approx(np.mean(list(by_hand.values())))


def test_ahead_is_the_stack_less_the_best_that_is_free() -> None:
    one = {
        name: np.array([value, value])
        for name, value in {"stack": 0.9, "entropy": 0.7, "logprob": 0.8, "length": 0.5, "words": 0.6}.items()
    }
    found = detection.ahead(one)
    assert found["best"] == "logprob"
    assert found["stack - best"]["value"] == pytest.approx(0.1)
    assert found["stack - words"]["value"] == pytest.approx(0.3)
    assert found["stack - entropy"]["value"] == pytest.approx(0.2)


def test_thresholds_let_no_more_right_answers_fall_than_they_say(answered: Answered) -> None:
    rng = np.random.default_rng(0)
    risk = np.clip(0.5 * rng.random(len(answered)) + 0.4 * answered.wrong, 0, 1)
    parts = answered.parts()
    found = detection.alarms(answered, risk, parts["thresholds"], parts["test"], draws=20)
    calm = sorted(risk[i] for i in parts["thresholds"] if not answered.wrong[i])
    assert found["right"] == len(calm)
    assert "999 are needed" in found["targets"]["0.001"]["refused"]
    at = found["targets"]["0.1"]
    assert at["threshold"] == pytest.approx(calm[int(np.ceil((len(calm) + 1) * 0.9)) - 1], abs=1e-6)
    test, wrong = parts["test"], answered.wrong[parts["test"]]
    flagged = risk[test].astype(np.float32) >= at["threshold"]
    assert at["false_alarms"]["value"] == pytest.approx(flagged[~wrong].mean())
    assert at["recall"]["value"] == pytest.approx(flagged[wrong].mean())
    short = (answered.signals["length"][test] <= 8) & ~wrong
    assert at["lengths"]["1-8"]["right"] == short.sum()
    if short.sum() >= detection.LEAST:
        assert at["lengths"]["1-8"]["false_alarms"]["value"] == pytest.approx(flagged[short].mean())
    assert "false_alarms" not in at["lengths"]["33-64"]
    made_up = answered.sets[test] == "made-up"
    assert at["answered_by_set"]["made-up"]["value"] == pytest.approx(1 - flagged[made_up].mean())


def test_drift_is_seen_where_risks_move() -> None:
    rng = np.random.default_rng(0)
    home = rng.random(400)
    assert detection.psi(home[:50], home) is None
    same = detection.psi(home, rng.random(400))
    moved = detection.psi(home, 0.5 + 0.5 * rng.random(400))
    assert same is not None
    assert moved is not None
    assert same < 0.1
    assert moved > 0.25


def test_risk_and_population_by_tenth(answered: Answered) -> None:
    known = {
        q.entity: 10 ** (2 + int(q.groups[1].removeprefix("cities-d")))
        for q in answered.questions
        if q.groups[0] == "cities"
    }
    risk = np.where(answered.wrong, 0.8, 0.3)
    found = sparsity.popularity(answered, risk, known, draws=20)
    own = answered.of(["cities"])
    assert found["n"] == own.sum() == sum(row["n"] for row in found["deciles"])
    average = sum(row["n"] * row["right"]["value"] for row in found["deciles"]) / found["n"]
    assert average == pytest.approx((~answered.wrong[own]).mean())
    for row in found["deciles"]:
        assert row["risk"]["value"] == pytest.approx(0.8 - 0.5 * row["right"]["value"])


def test_screening_takes_the_neurons_of_largest_correlation() -> None:
    rng = np.random.default_rng(0)
    raw = rng.random((200, 30)).astype(np.float32)
    raw[:, 4] = 1.0  # never differs
    wrong = rng.random(200) < raw[:, 7]
    strength = [0 if j == 4 else abs(np.corrcoef(raw[:, j], wrong)[0, 1]) for j in range(30)]
    found = fits.screen(Features(raw), wrong, 5)
    assert found.tolist() == sorted(np.argsort(strength)[-5:].tolist())
    assert fits.spread(Features(raw)) == pytest.approx(raw.std(0), abs=1e-6)


def test_folds_share_no_entity_and_score_everything_once(answered: Answered) -> None:
    names = np.array(answered.entities)
    scored = []
    for learn, use, test in fits.rotation(answered):
        for one, other in ((learn, use), (learn, test), (use, test)):
            assert not set(names[one]) & set(names[other])
        scored += test.tolist()
    assert sorted(scored) == list(range(len(answered)))


def test_chosen_neurons_stop_being_better_where_a_draw_reaches_them() -> None:
    def row(neurons: int, value: float, most: float, low: float) -> dict[str, object]:
        return {
            "neurons": neurons,
            "chosen": {"value": value},
            "random": {"most": most},
            "chosen - random": {"low": low},
        }

    assert sparsity.better_to([row(5, 0.8, 0.7, 0.05), row(50, 0.9, 0.85, 0.01), row(500, 0.9, 0.91, 0.01)]) == 50
    assert sparsity.better_to([row(5, 0.8, 0.7, -0.01), row(50, 0.9, 0.8, 0.05)]) is None
    assert sparsity.better_to([{"neurons": 5, "too_few": "no fit keeps so many"}, row(50, 0.9, 0.8, 0.05)]) == 50


def test_the_last_answer_may_be_half_written(tmp_path: Path) -> None:
    rows = [
        {"question": "What is 1 plus 1?", "answers": ["2"], "entity": "1", "groups": ["sums"]},
        {"question": "What is 2 plus 2?", "answers": ["4"], "entity": "4", "groups": ["sums"]},
        {"question": "What is 1 plus 2?", "answers": ["3"], "entity": "2", "groups": ["sums"]},
        {"question": "What is 1 plus 3?", "answers": ["4"], "entity": "3", "groups": ["sums"]},
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(FitError, match=r"has no answers\.jsonl"):
        load(tmp_path, workspace.norms())
    made = [(2, "It is 7."), (0, "It is 2."), (3, "I don't know.")]
    common = {"tokens": [1, 2], "ended": True, "draws": {"entropy": [1.0, 3.0], "logprob": [-0.5, -1.5]}}
    text = "".join(json.dumps({"question": i, "text": said, **common}) + "\n" for i, said in made)
    (tmp_path / "answers.jsonl").write_text(text + '{"question": 3, "tex')
    found = load(tmp_path, workspace.norms())
    assert found.rows.tolist() == [0, 2]
    assert found.wrong.tolist() == [False, True]
    assert found.counts == {"sums": {"right": 1, "wrong": 1, "declined": 1, "cut": 0}}
    signals = {name: values[0] for name, values in found.signals.items()}
    assert signals == {"entropy": 3.0, "mean entropy": 2.0, "logprob": 1.0, "length": 2.0}
    assert len(load(tmp_path, workspace.norms(), most=3)) == 2
    with pytest.raises(FitError, match="both kinds are needed"):
        load(tmp_path, workspace.norms(), most=2)


def test_a_text_is_compared_without_the_name_that_it_is_about() -> None:
    assert bare("Lyon is in France. Lyon is old.", "Lyon") == bare("Metz is in France. Metz is old.", "Metz")
    assert bare("Lyon is in France.", "Lyon") != bare("Lyon is in Spain.", "Lyon")
