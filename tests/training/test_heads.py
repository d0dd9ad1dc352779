"""Fitting a linear head: layers that were planted, weights of states as they are, and what cannot teach one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from guard.training.heads import TOGETHER, find_head

LAYERS, WIDTH, ANSWERS = 14, 6, 600
TELLING = (2, 10)  # both among those that are tried

States = NDArray[np.float32]


def planted() -> tuple[States, NDArray[np.bool_]]:
    """States [answers, layers, width] far from 0 and of unlike spread, two of whose layers tell wrong answers."""
    rng = np.random.default_rng(0)
    wrong = rng.random(ANSWERS) < 0.4
    states = rng.normal(size=(ANSWERS, LAYERS, WIDTH))
    for layer in TELLING:
        states[wrong, layer, 1] += 1.5
    return (5 + states * np.logspace(-2, 2, WIDTH)).astype(np.float32), wrong


def entities(count: int = ANSWERS) -> list[str]:
    return [str(i // 2) for i in range(count)]


def test_the_layers_that_tell_are_found_and_weighed_as_they_are() -> None:
    states, wrong = planted()
    asked: list[list[int]] = []

    def of(layers: Sequence[int]) -> States:
        asked.append(list(layers))
        return states[:, list(layers)]

    found = find_head(of, LAYERS, wrong, entities())
    head = found.head
    assert head.layer.dtype == np.int32
    assert len(head.layer) == TOGETHER
    assert set(TELLING) < set(head.layer.tolist())
    assert asked == [[2], [6], [10], head.layer.tolist()], "layers are read one by one, then those that are taken"
    assert 0.85 < found.auroc < 1
    assert list(found.alone) == [2, 6, 10]
    assert found.alone[6] < 0.6 < min(found.alone[layer] for layer in TELLING)
    # As scikit-learn has it on standardised means, but for an intercept, at one of the strengths.
    flat = states[:, head.layer].reshape(ANSWERS, -1)
    score = head.score(states[:, head.layer])
    wanted = (
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(flat, wrong)
        for strength in (0.001, 0.01, 0.1)
    )
    assert any(np.std(score - model.decision_function(flat)) < 1e-3 * np.std(score) for model in wanted)


def test_what_never_differs_has_no_weight() -> None:
    states, wrong = planted()
    states[:, :, 0] = 3
    head = find_head(lambda layers: states[:, list(layers)], LAYERS, wrong, entities()).head
    assert not head.weight[:, 0].any()
    assert np.isfinite(head.weight).all()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_model_of_few_layers_has_a_head(layers: int) -> None:
    states, wrong = planted()
    head = find_head(lambda chosen: states[:, list(chosen)], layers, wrong, entities()).head
    assert len(head.layer) == 1
    assert 0 <= head.layer[0] < layers


def test_too_few_things_teach_nothing() -> None:
    states, wrong = planted()
    with pytest.raises(ValueError, match="different things"):
        find_head(lambda chosen: states[:, list(chosen)], LAYERS, wrong, ["one"] * ANSWERS)
