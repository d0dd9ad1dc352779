"""Where calibration's questions lie: the distance is Mahalanobis's, and what lies elsewhere is far from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.probe.bundle import Bundle
from guard.probe.card import ReadoutParameters
from guard.probe.signals import TokenSignals
from guard.training import distance
from guard.training.distance import OUTSIDE, find_distance, limit_of
from guard.training.recalibration import elsewhere
from tests.measured import token_signals

WIDTH, ANSWERS = 12, 400


def states(seed: int = 0, count: int = ANSWERS) -> NDArray[np.float32]:
    """Far from 0, of unlike spread, and of numbers that go together."""
    rng = np.random.default_rng(seed)
    together = np.eye(WIDTH) + 0.2 * np.random.default_rng(99).normal(size=(WIDTH, WIDTH))
    mixed = rng.normal(size=(count, WIDTH)) @ together
    return (7 + mixed * np.logspace(-1, 1, WIDTH)).astype(np.float32)


def test_in_all_directions_it_is_mahalanobis_s() -> None:
    """As many axes as numbers: a projection that loses nothing. With many answers shrinking is slight."""
    known = states(count=20_000)
    found = find_distance(known, 5, seed=0)
    assert found.layer.tolist() == [5]
    assert found.weight.shape == (1, WIDTH, WIDTH + 1)
    assert found.width == WIDTH
    other = states(1, 50)
    off = other - known.mean(0, dtype=np.float64)
    exact = np.einsum("ni,ij,nj->n", off, np.linalg.inv(np.cov(known.T, dtype=np.float64)), off) / WIDTH
    np.testing.assert_allclose(found.score(other[:, None]), exact, rtol=0.05)


def test_what_lies_elsewhere_is_farther(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance, "AXES", 8)
    found = find_distance(states(), 0, seed=1)
    assert found.weight.shape == (1, 8, WIDTH + 1)
    near = found.score(states(1)[:, None])
    limit = np.quantile(found.score(states(2)[:, None]), 0.95)
    assert 0.01 < (near > limit).mean() < 0.12
    away = states(3)
    away += 6 * away.std(0) * (np.arange(WIDTH) % 3 == 0)
    assert (found.score(away[:, None]) > limit).mean() > 0.9


def test_a_number_that_never_differs_says_nothing() -> None:
    known = states()
    known[:, 3] = 5
    found = find_distance(known, 0, seed=0)
    other = known.copy()
    other[:, 3] = 1e6
    np.testing.assert_allclose(found.score(other[:, None]), found.score(known[:, None]), rtol=1e-3)


def test_axes_are_no_more_than_answers_can_tell() -> None:
    assert find_distance(states(count=20), 0, seed=0).weight.shape == (1, 5, WIDTH + 1)
    same = np.repeat(states(count=1), 40, 0)
    with pytest.raises(ValueError, match="layer 0 is the same"):
        find_distance(same, 0, seed=0)
    with pytest.raises(ValueError, match="7 answers say too little of where their questions lie"):
        find_distance(states(count=7), 0, seed=0)


def measured(distances: list[float]) -> list[TokenSignals]:
    found = [token_signals(0.0, [1.0], [1.0], [-1.0]) for _ in distances]
    return [
        TokenSignals({**one.last_prompt, "distance": far}, one.values)
        for one, far in zip(found, distances, strict=True)
    ]


def test_the_limit_leaves_one_in_twenty_outside() -> None:
    distances = np.random.default_rng(0).permutation(1000) / 10
    limit = limit_of(distances)
    assert limit is not None
    assert (distances > limit).mean() == pytest.approx(OUTSIDE, abs=2e-3)
    assert limit_of(np.array([1.0] * 30 + [np.nan])) == 1, "it is one of those that lie outside"
    assert limit_of(np.array([1.0, np.nan])) is None, "half of them do"
    assert limit_of(np.array([np.nan])) is None
    assert limit_of(np.zeros(0)) is None


def test_questions_of_another_kind_leave_no_domain(bundle: Bundle) -> None:
    """One limit around both kinds would hold what lies between, too."""
    known = replace(bundle, card=bundle.card.model_copy(update={"readout": limited(bundle, 2.0)}))
    assert not elsewhere(known, measured([1.0] * 18 + [3.0] * 2))
    assert elsewhere(known, measured([1.0] * 17 + [3.0] * 3))
    assert elsewhere(known, measured([1.0] * 17 + [np.nan] * 3)), "which is in no domain that is known"


def limited(bundle: Bundle, limit: float) -> ReadoutParameters:
    return bundle.card.readout.model_copy(update={"distance_limit": limit})
