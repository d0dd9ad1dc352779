"""The house: who comes in, who does not, and that every place is given back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import RefusedError
from app.ingress.admission import DRAINING, ENGINE_DEAD, Admission, Pacer, capacity


def test_refusals_come_at_once_until_there_are_too_many() -> None:
    pacer = Pacer(per_second=10, at_once=5, longest=2)
    assert [pacer.delay(100.0) for _ in range(5)] == pytest.approx([0] * 5, abs=1e-9)
    assert [pacer.delay(100.0) for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    assert max(pacer.delay(100.0) for _ in range(1000)) == pytest.approx(2.0)
    assert pacer.delay(101.0) == pytest.approx(1.1), "the wait shrinks as time goes by"
    assert [pacer.delay(200.0 + i / 12) for i in range(100)] != [0] * 100
    assert [pacer.delay(300.0 + i / 10) for i in range(100)] == pytest.approx([0] * 100, abs=1e-9)


@pytest.mark.parametrize(
    ("running", "queue", "slots", "fit"),
    [(16, None, 1024, 32), (16, 0, 1024, 16), (16, 100, 1024, 116), (1024, None, 1024, 1024), (16, 100, 8, 8)],
)
def test_as_many_wait_as_run_unless_slots_are_fewer(running: int, queue: int | None, slots: int, fit: int) -> None:
    assert capacity(running, queue, slots) == fit


async def test_each_caller_has_so_many_requests() -> None:
    house = Admission(requests_per_caller=2, capacity=100)
    first = [house.admit(0), house.admit(0)]
    with pytest.raises(RefusedError, match="limit \\(2\\) of this API key") as caught:
        house.admit(0)
    assert (caught.value.status, caught.value.reason) == (429, "too_many_requests")
    other = house.admit(1)
    first[0].release()
    house.admit(0)
    assert (house.requests, house.answers) == (3, 3)
    other.release()
    assert house.requests == 2


async def test_without_keys_all_callers_are_one() -> None:
    house = Admission(requests_per_caller=1, capacity=100)
    house.admit(None)
    with pytest.raises(RefusedError, match="limit \\(1\\) of callers without keys"):
        house.admit(None)


async def test_a_full_queue() -> None:
    house = Admission(requests_per_caller=100, capacity=4)
    wide = house.admit(0)
    wide.widen(3)
    last = house.admit(1)
    for refused in (lambda: house.admit(2), lambda: last.widen(2)):
        with pytest.raises(RefusedError) as caught:
            refused()
        assert (caught.value.status, caught.value.reason) == (503, "queue_full")
    assert (house.requests, house.answers) == (2, 4)
    wide.release()
    last.widen(4)
    assert house.answers == 4


async def test_a_closed_house_says_why() -> None:
    house = Admission(1, 1)
    house.close(DRAINING)
    with pytest.raises(RefusedError, match="server is shutting down") as caught:
        house.admit(0)
    assert (caught.value.status, caught.value.reason) == (503, "draining")
    house.close(ENGINE_DEAD)
    with pytest.raises(RefusedError, match="engine stopped"):
        house.require_open()


async def test_places_are_given_back_once_whatever_happens() -> None:
    house = Admission(10, 10)

    def fail() -> None:
        with permit:
            permit.widen(5)
            raise ZeroDivisionError

    permit = house.admit(0)
    with pytest.raises(ZeroDivisionError):
        fail()
    permit.release()
    assert (house.requests, house.answers) == (0, 0)
    assert not house._callers


async def test_what_is_cut_short_is_cancelled() -> None:
    house = Admission(10, 10)
    cut = []

    async def hold() -> None:
        with house.admit(0) as permit:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cut.append(permit.cut)
                raise

    tasks = [asyncio.create_task(hold()) for _ in range(3)]
    await asyncio.sleep(0)
    house.cut_short()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert cut == [True] * 3
    assert (house.requests, house.answers) == (0, 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5), st.booleans()), max_size=60))
def test_the_books_balance(steps: list[tuple[int, int, bool]]) -> None:
    async def walk() -> None:
        house = Admission(requests_per_caller=4, capacity=12)
        held = []
        for caller, wide, leaves in steps:
            try:
                permit = house.admit(caller)
                held.append(permit)
                permit.widen(wide)
            except RefusedError:
                pass
            if leaves and held:
                held.pop(0).release()
            assert house.answers == sum(permit.answers for permit in held) <= 12
            assert house.requests == len(held)
        for permit in held:
            permit.release()
        assert (house.requests, house.answers) == (0, 0)

    asyncio.run(walk())
