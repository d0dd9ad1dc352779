"""What each neuron contributes, summed over the positions of a sequence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from guard.ipc.capture import CaptureParams
from guard.ipc.taps import spec_of
from guard.probe.bundle import Bundle
from guard.worker.batch import BatchParams, Step
from guard.worker.buffers import NeuronSums, Taps

ASKS = CaptureParams(slot=3, generation=7, start=4, draws=False, apart=True)
ROWS = 16


@pytest.fixture
def taps(bundle: Bundle) -> Taps:
    """Neuron k of layer l contributes 100 l + 10 k + row, wherever a row stands."""
    spec = spec_of(bundle)
    layer, row, neuron = np.meshgrid(range(len(spec.layers)), range(ROWS), range(spec.width), indexing="ij")
    apart = torch.from_numpy((100 * layer + 10 * neuron + row).astype(np.float32))
    return Taps(spec, torch.zeros(ROWS), torch.ones(ROWS), apart=apart)


def step(captures: list[CaptureParams], computed: list[int], scheduled: list[int]) -> Step:
    return Step(BatchParams.of(captures, [9] * len(captures)), np.array(computed), np.array(scheduled))


def add(sums: NeuronSums, one: Step) -> None:
    sums.add(one.captured, one.activations())


def rows_of(taps: Taps, *rows: int) -> list[list[float]]:
    assert taps.apart is not None
    return taps.apart[:, list(rows)].sum(1).tolist()  # type: ignore[no-any-return]


def test_what_is_asked_for_is_summed_from_its_start_on(taps: Taps) -> None:
    sums = NeuronSums(taps)
    other = replace(ASKS, slot=5, apart=False)
    add(sums, step([other, ASKS], [0, 0], [2, 6]))  # rows 2 to 7 are its positions 0 to 5
    add(sums, step([ASKS], [6], [3]))
    count, found = sums.take(3, 7)
    assert count == 5
    np.testing.assert_allclose(found, np.add(rows_of(taps, 6, 7), rows_of(taps, 0, 1, 2)))
    assert sums.take(3, 7) == (0, []), "it is forgotten"
    assert sums.take(5, 7) == (0, []), "who does not ask is not summed"


def test_what_is_computed_again_counts_once(taps: Taps) -> None:
    sums = NeuronSums(taps)
    add(sums, step([ASKS], [0], [6]))
    add(sums, step([ASKS], [0], [9]))  # it was preempted, and begins anew
    count, found = sums.take(3, 7)
    assert count == 5
    np.testing.assert_allclose(found, rows_of(taps, 4, 5, 6, 7, 8))


def test_who_had_the_slot_before_does_not_count(taps: Taps) -> None:
    sums = NeuronSums(taps)
    add(sums, step([ASKS], [0], [9]))
    add(sums, step([replace(ASKS, generation=8)], [0], [6]))
    assert sums.take(3, 7) == (0, [])
    add(sums, step([replace(ASKS, generation=8)], [0], [6]))
    count, found = sums.take(3, 8)
    assert count == 2
    np.testing.assert_allclose(found, rows_of(taps, 4, 5))


def test_an_engine_that_was_compiled_without_room(bundle: Bundle) -> None:
    sums = NeuronSums(Taps(spec_of(bundle), torch.zeros(ROWS), torch.ones(ROWS)))
    add(sums, step([ASKS], [0], [6]))
    assert sums.take(3, 7) == (0, [])
