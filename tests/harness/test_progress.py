"""What a stage says of how far it is."""

from __future__ import annotations

import pytest

from guard.harness.progress import Progress, duration


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_every_few_seconds_and_one_at_the_end() -> None:
    said: list[str] = []
    clock = Clock()
    progress = Progress(said.append, "sampled", 1000, "questions", clock=clock)
    for _ in range(1000):
        clock.now += 0.0625
        progress.add()
    assert said == [
        *(
            f"sampled {n} of 1,000 questions, 16.0/s, {left} s left"
            for n, left in ((160, 52), (320, 42), (480, 32), (640, 22), (800, 12), (960, 2))
        ),
        "sampled 1,000 of 1,000 questions, 16.0/s, took 62 s",
    ]


def test_what_an_earlier_run_did_is_no_part_of_the_rate() -> None:
    said: list[str] = []
    clock = Clock()
    progress = Progress(said.append, "collected", 1000, "answers", done=900, clock=clock)
    clock.now += 100
    progress.add(50)
    assert said == ["collected 950 of 1,000 answers, 30.0/min, 2 min left"]


def test_a_short_pass_says_nothing() -> None:
    said: list[str] = []
    progress = Progress(said.append, "checked", 10, "answers", end=False, clock=Clock())
    for _ in range(10):
        progress.add()
    assert said == []


def test_no_time_at_all_is_no_rate() -> None:
    said: list[str] = []
    Progress(said.append, "read", 10, "answers", clock=Clock()).add(10)
    assert said == ["read 10 of 10 answers, took 0 s"]


@pytest.mark.parametrize(
    ("seconds", "says"), [(0.4, "0 s"), (99, "99 s"), (101, "2 min"), (1200, "20 min"), (11_100, "3 h 5 min")]
)
def test_duration(seconds: float, says: str) -> None:
    assert duration(seconds) == says
