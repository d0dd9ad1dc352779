"""Finding neurons: those that were planted, under the cap, exactly, from memory and from disk alike."""

from __future__ import annotations

from pathlib import Path as FilePath

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.harness import features as reading
from guard.harness.features import Features
from guard.training import path as module
from guard.training.lasso import TOLERANCE, Rows
from guard.training.neurons import NeuronSelection, find_neurons, given_neurons
from guard.training.path import Path

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


def planted(seed: int, answers: int, neurons: int, by: float, signal: slice) -> tuple[Floats, Bools]:
    rng = np.random.default_rng(seed)
    features = rng.gamma(2, 0.02, (answers, neurons)).astype(np.float32)
    wrong = rng.random(answers) < 0.5
    features[wrong, signal] += by
    return features, wrong


def find(features: Floats, wrong: Bools, cap: float, **more: object) -> list[NeuronSelection]:
    return find_neurons(Features(features), wrong, [str(i) for i in range(len(wrong))], cap, **more)  # type: ignore[arg-type]


def test_planted_neurons_are_found_under_the_cap() -> None:
    features, wrong = planted(0, 600, 300, 0.1, slice(7, 8))
    features[~wrong, 42] += 0.1
    found = find(features, wrong, cap=0.1)[0]
    weights = dict(zip(found.index.tolist(), found.coefficient.tolist(), strict=True))
    assert weights[7] > 0 > weights[42]
    assert len(found.index) <= 30
    assert max(point.auroc for point in found.path) > 0.95
    assert np.mean((features[:, found.index] @ found.coefficient + found.intercept > 0) == wrong) > 0.9


def test_one_class_teaches_nothing() -> None:
    with pytest.raises(ValueError, match="all wrong"):
        find(np.zeros((4, 2), np.float32), np.ones(4, bool), 1.0)


def test_neurons_that_never_differ_teach_nothing() -> None:
    with pytest.raises(ValueError, match="the same in all answers"):
        find(np.full((40, 2), 0.3, np.float32), np.arange(40) % 2 == 0, 1.0)


def test_answers_about_one_thing_teach_nothing() -> None:
    features, wrong = planted(1, 40, 5, 0.1, slice(1))
    entities = ["one" if is_wrong else str(i) for i, is_wrong in enumerate(wrong)]
    with pytest.raises(ValueError, match="about one thing"):
        find_neurons(Features(features), wrong, entities, 1.0)


def test_the_sparsest_of_the_best_is_taken() -> None:
    """Three neurons say all there is to say; a larger C keeps noise beside them."""
    features, wrong = planted(1, 800, 400, 0.04, slice(3))
    found = find(features, wrong, cap=0.5)[0]
    assert {0, 1, 2} <= set(found.index.tolist())
    assert len(found.index) < 0.5 * max(point.neurons for point in found.path)
    auroc = {point.C: point.auroc for point in found.path}
    assert all(auroc[C] < auroc[found.C] for C in auroc if C < found.C)


def test_a_larger_c_keeps_more_and_the_cap_ends_the_path() -> None:
    features, wrong = planted(2, 400, 1000, 0.015, slice(20))
    path = find(features, wrong, cap=1.0)[0].path
    kept = [point.neurons for point in path]
    assert kept == sorted(kept)
    assert [point.C for point in path] == sorted(point.C for point in path)
    assert kept[-1] > 20
    capped = find(features, wrong, cap=0.02)
    assert len(capped[0].path) < len(path)
    assert all(len(one.index) <= 20 for one in capped)


def test_refit_undoes_the_shrinking() -> None:
    rng = np.random.default_rng(2)
    features = rng.gamma(2, 0.02, (400, 50)).astype(np.float32)
    wrong = rng.random(400) < 1 / (1 + np.exp(-60 * (features[:, 3] - 0.04)))
    shrunk = find(features, wrong, 0.2)[0]
    refit = find(features, wrong, 0.2, refit=True)[0]
    assert refit.index.tolist() == shrunk.index.tolist()
    assert refit.coefficient[refit.index == 3] > shrunk.coefficient[shrunk.index == 3]


def test_candidates_are_nearly_as_good_and_sparser_or_denser() -> None:
    features, wrong = planted(4, 900, 200, 0.03, slice(6))
    found = find(features, wrong, cap=0.5, most=3)
    assert 1 < len(found) <= 3
    assert len({tuple(one.index.tolist()) for one in found}) == len(found)
    auroc = {point.C: point.auroc for point in found[0].path}
    assert all(auroc[one.C] >= max(auroc.values()) - 0.01 for one in found)


def test_how_large_a_neurons_cett_is_does_not_matter() -> None:
    """What says something in a hundredth of the others' range is found all the same, with a weight as much larger."""
    features, wrong = planted(5, 500, 100, 0.05, slice(3))
    small = features.copy()
    small[:, 1] /= 128
    one, other = find(features, wrong, 0.5)[0], find(small, wrong, 0.5)[0]
    assert one.index.tolist() == other.index.tolist()
    factor = np.where(one.index == 1, 128, 1)
    np.testing.assert_allclose(other.coefficient, one.coefficient * factor, rtol=5e-3, atol=5e-3)


def test_leads_count_half() -> None:
    """What only the last prompt token says is learnt beside what the answer says, and less."""
    features, wrong = planted(6, 600, 40, 0.03, slice(1))
    leads, _ = planted(7, 600, 40, 0, slice(1))
    leads[wrong, 5] += 0.03
    alone = find(features, wrong, 1.0)[0]
    both = find(features, wrong, 1.0, leads=Features(leads))[0]
    assert 5 not in alone.index
    weights = dict(zip(both.index.tolist(), both.coefficient.tolist(), strict=True))
    assert weights[0] > weights[5] > 0


def test_given_neurons_get_weights_and_no_others_do() -> None:
    features, wrong = planted(12, 400, 60, 0.03, slice(3))
    leads, _ = planted(13, 400, 60, 0.03, slice(0))
    index = np.array([1, 2, 50])
    found = given_neurons(Features(features), wrong, index, Features(leads))
    assert found.index.tolist() == [1, 2, 50]
    assert min(found.coefficient[:2]) > 5 * abs(found.coefficient[2])
    alone = given_neurons(Features(features), wrong, index, None)
    scores = features[:, index] @ alone.coefficient + alone.intercept
    assert np.mean((scores > 0) == wrong) > 0.75


def test_the_same_neurons_are_no_second_candidate() -> None:
    features, wrong = planted(14, 600, 100, 0.06, slice(1))
    found = find(features, wrong, cap=0.5, most=3)
    assert sum(round(point.neurons) == 1 for point in found[0].path) > 1
    assert len({tuple(one.index.tolist()) for one in found}) == len(found)


# -- more neurons than memory holds ------------------------------------------------------------------------------------


def path_of(features: Features, leads: Features, wrong: Bools) -> Path:
    weights = np.ones((3, len(wrong)))
    weights[0, ::2] = 0
    weights[1, 1::2] = 0
    return Path(features, leads, 0.5, wrong, weights, lambda text: None)


def test_what_is_not_in_memory_is_missed_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 of 2,000 columns at a time end where all of them do, and no neuron's gradient exceeds the penalty."""
    rng = np.random.default_rng(8)
    features, wrong = planted(8, 240, 2000, 0.02, slice(8))
    features += 0.02 * np.abs(rng.normal(size=(240, 4)) @ rng.normal(size=(4, 2000))).astype(
        np.float32
    )  # alike in part
    leads = features[rng.permutation(240)]
    whole = path_of(Features(features), Features(leads), wrong)
    monkeypatch.setattr(module, "COLUMNS", 50 * 480 * 4)
    parts = path_of(Features(features), Features(leads), wrong)
    both = np.concatenate([features, leads]).astype(np.float64)
    for share in (1.5, 2, 3):
        for number, (one, other) in enumerate(
            zip(whole.solve(whole.largest / share), parts.solve(whole.largest / share), strict=True)
        ):
            weight = np.tile(np.arange(240) % 2 != number if number < 2 else np.ones(240), 2) * np.repeat([1, 0.5], 240)
            rows = Rows(np.tile(wrong, 2), weight)
            np.testing.assert_allclose(other.decision, one.decision, atol=2e-2)
            mean = weight @ both / weight.sum()
            scale = np.sqrt(weight @ (both - mean) ** 2 / weight.sum())
            residual = rows.residual(both[:, other.index] @ other.coefficient + other.intercept)
            gradient = np.abs(residual @ (both - mean) / scale)
            assert gradient.max() <= whole.largest / share * (1 + 3 * TOLERANCE)
    assert len(other.index) > 8


def test_from_disk_as_from_memory(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_BLOCK", 7 * 4 * 300)
    features, wrong = planted(9, 400, 300, 0.04, slice(5))
    norms = np.random.default_rng(9).uniform(0.5, 2, (3, 100)).astype(np.float32)
    raw = np.random.default_rng(10).uniform(size=(900, 3, 100)).astype(np.float32)
    rows = np.random.default_rng(11).permutation(900)[:400]
    raw[rows] = features.reshape(400, 3, 100) / norms
    np.save(tmp_path / "means.npy", raw)
    stored = Features.of(tmp_path / "means.npy", norms, rows)
    memory = Features((raw[rows] * norms).reshape(400, 300))
    assert stored.shape == memory.shape == (400, 300)
    columns = np.array([3, 3, 299, 0])
    np.testing.assert_array_equal(stored.take(columns), memory.take(columns))
    entities = [str(i // 2) for i in range(400)]
    one, other = (find_neurons(source, wrong, entities, 0.5)[0] for source in (stored, memory))
    np.testing.assert_array_equal(one.index, other.index)
    np.testing.assert_array_equal(one.coefficient, other.coefficient)


def test_blocks_are_every_answer_once(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_BLOCK", 4 * 4 * 6)
    raw = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
    np.save(tmp_path / "means.npy", raw)
    for source in (Features(raw, rows=[9, 0, 3, 3, 7]), Features.of(tmp_path / "means.npy", rows=[9, 0, 3, 3, 7])):
        parts = list(source.blocks())
        assert [part for part, _ in parts] == [slice(0, 4), slice(4, 5)]
        np.testing.assert_array_equal(
            np.concatenate([block for _, block in parts]), raw.reshape(10, 6)[[9, 0, 3, 3, 7]]
        )
    assert raw[0, 0, 1] == 1  # norms would multiply a copy, and never what they are given


def test_a_file_that_was_cut_off_is_refused(tmp_path: FilePath) -> None:
    from guard.errors import FitError

    np.save(tmp_path / "means.npy", np.ones((10, 6), np.float32))
    source = Features.of(tmp_path / "means.npy")
    with (tmp_path / "means.npy").open("rb+") as file:
        file.truncate(200)
    with pytest.raises(FitError, match="shorter than it says"):
        source.take(np.array([0]))
