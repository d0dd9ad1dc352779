"""Baselines on made-up features where the truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from guard.errors import FitError
from guard.evaluation import baselines, random_baseline
from guard.evaluation.baseline_data import BaselineData
from guard.probe.bundle import Bundle, save_bundle

LAYERS, WIDTH, HIDDEN = 4, 50, 12


@pytest.fixture(scope="module")
def material() -> BaselineData:
    """Two hundred answers about a hundred things. Neurons 7 and 60, and layer 2, know; nothing else does."""
    rng = np.random.default_rng(0)
    wrong = rng.random(200) < 0.4
    means = rng.gamma(2, 1, (200, LAYERS, WIDTH)).astype(np.float32)
    outputs = rng.normal(size=(200, LAYERS, HIDDEN)).astype(np.float32)
    means[wrong, 0, 7] += 3
    means[wrong, 1, 10] += 3
    outputs[wrong, 2, 5] += 3
    entities = [f"Thing {i // 2}" if i % 2 else f"thing {i // 2}" for i in range(200)]
    said = ["It is in France."] * 200
    samples = [[said[i], "it is in France", "It is in Chad.", "Chad", said[i]] for i in range(200)]
    return BaselineData(wrong, entities, np.array([7, 60]), WIDTH, means, outputs, said, samples)


@pytest.fixture(scope="module")
def made(material: BaselineData) -> baselines.Baselines:
    return baselines.baselines(material)


def test_signal_is_found_where_it_is(made: baselines.Baselines, material: BaselineData) -> None:
    assert made.facts["layers"] == [2] * baselines.FOLDS
    for part in ("linear", "refit"):
        assert roc_auc_score(material.wrong, made.scores[part]) > 0.95
    assert made.scores["random"].shape == (random_baseline.DRAWS, 200)


def test_noise_stays_near_chance(material: BaselineData) -> None:
    rng = np.random.default_rng(1)
    noise = replace(
        material,
        wrong=rng.permutation(material.wrong),
        means=rng.gamma(2, 1, material.means.shape).astype(np.float32),
        outputs=rng.normal(size=material.outputs.shape).astype(np.float32),
    )
    made = baselines.baselines(noise)
    for scores in (made.scores["refit"], made.scores["linear"], *made.scores["random"]):
        assert 0.35 < roc_auc_score(noise.wrong, scores) < 0.65, "what was chosen inside a fold must not leak out"


def test_what_only_an_entity_tells_is_not_learnt() -> None:
    """Features that name the entity say nothing about other entities: no group is on both sides of a fold."""
    rng = np.random.default_rng(2)
    entity = np.repeat(np.arange(60), 5)
    wrong = (rng.random(60) < 0.5)[entity]
    names = rng.normal(size=(60, 80)).astype(np.float32)[entity]
    parts = baselines.folds(wrong, [str(i) for i in entity], 5)
    inner = [baselines.folds(wrong[fit], [str(entity[i]) for i in fit], 3) for fit, _ in parts]
    scores, _ = baselines.cross_validated(iter([names]), wrong, parts, inner)
    assert roc_auc_score(wrong, scores) < 0.7


def test_folds_keep_entities_apart(material: BaselineData) -> None:
    parts = baselines.folds(material.wrong, material.entities, 5)
    assert sorted(np.concatenate([test for _, test in parts]).tolist()) == list(range(200))
    for fit, test in parts:
        named = [{material.entities[i].casefold() for i in side} for side in (fit, test)]
        assert not named[0] & named[1]
        assert 0.2 < material.wrong[test].mean() < 0.6


@pytest.mark.parametrize(
    ("wrong", "entities", "says"),
    [
        ([True] * 4 + [False] * 36, [str(i) for i in range(40)], "wrong answers are about 4 different things; 5 folds"),
        ([True] * 36 + [False] * 4, [str(i) for i in range(40)], "right answers are about 4 different things"),
        ([True] * 20 + [False] * 20, ["one"] * 20 + [str(i) for i in range(20)], "about 1 different things"),
        ([True] * 5 + [False] * 5, [str(i) for i in range(10)], None),
    ],
)
def test_too_few_answers_are_said(
    material: BaselineData, wrong: list[bool], entities: list[str], says: str | None
) -> None:
    count = len(wrong)
    few = replace(
        material,
        wrong=np.array(wrong),
        entities=entities,
        means=material.means[:count],
        outputs=material.outputs[:count],
        said=material.said[:count],
        samples=material.samples[:count],
    )
    made = baselines.baselines(few)
    assert "consistency" in made.scores
    if says is None:
        assert made.left_out == {}
        assert {"refit", "linear", "random"} < set(made.scores)
    else:
        assert set(made.left_out) == {"refit", "linear", "random"}
        assert says in made.left_out["linear"]
        assert set(made.scores) == {"consistency"}


def test_consistency_and_its_cost(material: BaselineData) -> None:
    said = ["The Hague.", "It is in Chad.", ""]
    samples = [["hague", "The HAGUE!", "Delft"], ["It is in Chad."] * 3, ["Chad", "", "Chad"]]
    np.testing.assert_allclose(baselines.disagreement(said, samples), [1 / 3, 0, 2 / 3])
    cost = baselines.cost([[4, 6], [10, 0]], [5, 3], 1.0)
    assert (cost["samples"], cost["tokens_per_question"], cost["greedy_tokens_per_question"]) == (2, 10.0, 4.0)
    assert cost["ratio"] == 2.5


def test_draws_match_layers() -> None:
    index = np.array([3, 4, 5, 49, 150, 199])
    drawn = [random_baseline.layer_matched(index, WIDTH, seed) for seed in range(3)]
    for one in drawn:
        assert np.bincount(one // WIDTH, minlength=LAYERS).tolist() == [4, 0, 0, 2]
        assert len(np.unique(one)) == len(index)
    assert drawn[0].tolist() != drawn[1].tolist()
    assert drawn[0].tolist() == random_baseline.layer_matched(index, WIDTH, 0).tolist()
    every = np.arange(WIDTH)
    assert random_baseline.layer_matched(every, WIDTH, 0).tolist() == every.tolist(), "a whole layer can only be itself"


def test_a_random_bundle_scales_as_many_neurons_in_each_layer(bundle: Bundle, tmp_path: Path) -> None:
    random = random_baseline.random_bundle(bundle, tmp_path / "random", 0)
    layers = bundle.card.model.layers
    wanted = np.bincount(bundle.layer[bundle.coefficient > 0], minlength=layers)
    assert np.bincount(random.layer, minlength=layers).tolist() == wanted.tolist()
    assert random.h_neurons == bundle.h_neurons == len(random.layer)
    assert random.card.model == bundle.card.model
    assert random.card.training.method == "random"


def test_nothing_to_scale_is_said(bundle: Bundle, tmp_path: Path) -> None:
    negative = -np.abs(bundle.coefficient)
    tensors = {"layer": bundle.layer, "neuron": bundle.neuron, "coefficient": negative, "folded": negative}
    without = save_bundle(tmp_path / "negative", bundle.card, {**tensors, "right_risks": bundle.right_risks})
    with pytest.raises(FitError, match="nothing to scale"):
        random_baseline.random_bundle(without, tmp_path / "random", 0)
