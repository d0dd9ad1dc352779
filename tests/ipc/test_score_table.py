"""The score table: what was not written for this claim does not exist."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from guard.errors import CapacityError, TapError
from guard.ipc.score_table import ScoreTable, Slot, SlotPool
from guard.probe.signals import ALWAYS, ENTROPY, LOGPROB, MARGIN, NEURONS, Source


@pytest.fixture
def table() -> Iterator[ScoreTable]:
    made = ScoreTable.create(slots=4, positions=16)
    yield made
    made.unlink()


def write(table: ScoreTable, slot: Slot, position: int, value: float) -> None:
    index, generation = np.array([slot.index]), np.array([slot.generation], np.uint32)
    at, measured = np.array([position]), np.array([value], np.float32)
    table.write(Source.FORWARD, index, generation, at, {NEURONS: measured})
    table.write(Source.DRAW, index, generation, at, {ENTROPY: measured, LOGPROB: -measured})


def test_the_other_side_sees_what_was_written(table: ScoreTable) -> None:
    slot = Slot(2, 7)
    write(ScoreTable(table.path), slot, 5, 1.5)
    np.testing.assert_array_equal(table.read(Source.FORWARD, slot, 4, 7)[NEURONS], [np.nan, 1.5, np.nan])
    entropy, logprob = table.read(Source.DRAW, slot, 5, 6).values()
    assert (entropy[0], logprob[0]) == (1.5, -1.5)


def test_only_what_is_measured_has_a_place() -> None:
    table = ScoreTable.create(1, 4, measured=ALWAYS | {MARGIN})
    try:
        there, slot = ScoreTable(table.path), Slot(0, 1)
        assert there.measured == table.measured == ALWAYS | {MARGIN}
        index, value = np.array([0]), np.array([2.5], np.float32)
        values = {ENTROPY: value, LOGPROB: value, MARGIN: -value}
        there.write(Source.DRAW, index, np.array([1], np.uint32), np.array([3]), values)
        assert {name: one[0] for name, one in table.read(Source.DRAW, slot, 3, 4).items()} == {
            ENTROPY: 2.5,
            LOGPROB: 2.5,
            MARGIN: -2.5,
        }
    finally:
        table.unlink()


def test_a_copy_has_what_was_written_and_nothing_else(table: ScoreTable) -> None:
    source, target = Slot(1, 3), Slot(2, 9)
    write(table, source, 4, 1.5)
    write(table, Slot(1, 2), 5, 2.5)  # of an older claim
    for position in (3, 4, 5, 6):
        write(table, target, position, 7.0)
    table.copy(source, target, 4, 6)
    np.testing.assert_array_equal(table.read(Source.FORWARD, target, 3, 7)[NEURONS], [7.0, 1.5, np.nan, 7.0])
    entropy, logprob = table.read(Source.DRAW, target, 4, 6).values()
    np.testing.assert_array_equal([entropy, logprob], [[1.5, np.nan], [-1.5, np.nan]])


def test_an_older_claim_is_not_read(table: ScoreTable) -> None:
    write(table, Slot(1, 3), 0, 1.0)
    assert np.isnan(table.read(Source.FORWARD, Slot(1, 4), 0, 1)[NEURONS]).all()


def test_fresh_memory_is_empty(table: ScoreTable) -> None:
    slot = SlotPool(4).claim(1)[0]
    assert np.isnan(table.read(Source.FORWARD, slot, 0, 16)[NEURONS]).all()


def test_a_name_that_is_gone(table: ScoreTable) -> None:
    table.unlink()
    with pytest.raises(TapError, match="is not here"):
        ScoreTable(table.path)


def test_pool_gives_each_slot_once_and_refuses_beyond() -> None:
    pool = SlotPool(3)
    claimed = pool.claim(2) + pool.claim(1)
    assert len({slot.index for slot in claimed}) == 3
    assert len({slot.generation for slot in claimed}) == 3
    with pytest.raises(CapacityError, match="all 3 score slots"):
        pool.claim(1)
    pool.release(claimed, finished=True)
    assert pool.in_use == 0


def test_an_unfinished_slot_rests_longest() -> None:
    pool = SlotPool(3)
    unfinished = pool.claim(1)
    pool.release(unfinished, finished=False)
    assert unfinished[0].index not in [slot.index for slot in pool.claim(2)]
