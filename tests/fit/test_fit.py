"""The parts of the fit that need no model."""

from __future__ import annotations

import numpy as np
import pytest

from guard.fit import metrics
from guard.fit.judge import judge, normalise
from guard.fit.questions import Question, split
from guard.fit.train import find_neurons, screen


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
    dealt = split(questions, {"train": 0.5, "calibration": 0.2, "test": 0.3}, seed=0)
    assert sorted(i for part in dealt.values() for i in part) == list(range(400))
    entities = [{questions[i].entity.casefold() for i in part} for part in dealt.values()]
    assert sum(map(len, entities)) == len(set.union(*entities))
    assert split(questions, {"train": 0.5, "calibration": 0.2, "test": 0.3}, seed=1) != dealt


def test_planted_neurons_are_found_under_the_cap() -> None:
    rng = np.random.default_rng(0)
    features = rng.gamma(2, 0.02, (600, 300)).astype(np.float32)
    wrong = rng.random(600) < 0.5
    features[wrong, 7] += 0.1
    features[~wrong, 42] += 0.1
    found = find_neurons(features, wrong, [str(i) for i in range(600)], cap=0.1, seed=0, bootstraps=4)[0]
    weights = dict(zip(found.index.tolist(), found.coefficient.tolist(), strict=True))
    assert weights[7] > 0 > weights[42]
    assert max(point.auroc for point in found.path) > 0.95
    assert found.stability is not None
    assert found.stability[found.index == 7] == 1


def test_one_class_teaches_nothing() -> None:
    with pytest.raises(ValueError, match="all wrong"):
        find_neurons(np.zeros((4, 2), np.float32), np.ones(4, bool), list("abcd"), 1.0, 0)


def test_metrics_on_known_cases() -> None:
    wrong = np.array([False, False, True, True])
    assert metrics.auroc(wrong, np.array([0.1, 0.2, 0.3, 0.4]), draws=50).value == 1.0
    assert metrics.ece(wrong, np.array([0.0, 0.0, 1.0, 1.0])) == 0.0
    assert metrics.ece(wrong, np.array([0.5, 0.5, 0.5, 0.5])) == 0.0
    assert metrics.ece(wrong, np.array([0.9, 0.9, 0.9, 0.9])) == pytest.approx(0.4)
    assert metrics.brier(wrong, np.array([0.5] * 4)) == 0.25


def test_the_sparsest_of_the_best_is_taken() -> None:
    """Three neurons say all there is to say; a larger C would keep noise beside them."""
    rng = np.random.default_rng(1)
    features = rng.gamma(2, 0.02, (800, 400)).astype(np.float32)
    wrong = rng.random(800) < 0.5
    features[wrong, :3] += 0.2
    found = find_neurons(features, wrong, [str(i) for i in range(800)], cap=0.5, seed=0)[0]
    assert set(found.index) <= {0, 1, 2}
    assert min(point.C for point in found.path) == found.C


def test_refit_undoes_the_shrinking() -> None:
    rng = np.random.default_rng(2)
    features = rng.gamma(2, 0.02, (400, 50)).astype(np.float32)
    wrong = rng.random(400) < 1 / (1 + np.exp(-60 * (features[:, 3] - 0.04)))
    entities = [str(i) for i in range(400)]
    shrunk = find_neurons(features, wrong, entities, 0.2, 0)[0]
    refit = find_neurons(features, wrong, entities, 0.2, 0, refit=True)[0]
    assert refit.index.tolist() == shrunk.index.tolist()
    assert refit.coefficient[refit.index == 3] > shrunk.coefficient[shrunk.index == 3]


def test_screening_keeps_what_differs() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(300, 1000)).astype(np.float32)
    wrong = rng.random(300) < 0.5
    features[wrong, 17] += 2
    columns = screen(features, wrong, most=10)
    assert len(columns) == 10
    assert 17 in columns
    assert screen(features, wrong, most=1000).tolist() == list(range(1000))


def test_candidates_are_nearly_as_good_and_sparser_or_denser() -> None:
    rng = np.random.default_rng(4)
    features = rng.gamma(2, 0.02, (900, 200)).astype(np.float32)
    wrong = rng.random(900) < 0.5
    features[wrong, :6] += 0.03
    found = find_neurons(features, wrong, [str(i) for i in range(900)], cap=0.5, seed=0, most=3)
    assert 1 < len(found) <= 3
    assert len({one.C for one in found}) == len(found)
    auroc = {point.C: point.auroc for point in found[0].path}
    assert all(auroc[one.C] >= max(auroc.values()) - 0.01 for one in found)
