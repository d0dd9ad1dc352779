"""How far a stage is, how fast it goes, and how long it will take: one line every few seconds, and one at the end."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY = 10.0  # seconds between two lines

Say = Callable[[str], None]


def tell(text: str) -> None:
    """Print a line that is there at once, in a log file, too."""
    print(text, flush=True)


class Progress:
    """Says "sampled 1,200 of 15,000 questions, 11.2/s, 20 min left".

    did, unit: the words for it. done: what an earlier run has done, which the rate leaves out. end: whether to say a
    line when all is done; one of many short passes is not worth one.
    """

    def __init__(
        self,
        say: Say,
        did: str,
        total: int,
        unit: str,
        done: int = 0,
        end: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._did, self._total, self._unit, self._end, self._clock = say, did, total, unit, end, clock
        self._start, self._done = done, done
        self._began = self._said = clock()

    def add(self, more: int = 1) -> None:
        """So many more are done."""
        self._done += more
        now = self._clock()
        if self._done >= self._total:
            if self._end:
                self._say(f"{self._so_far()}{self._rate(now)}, took {duration(now - self._began)}")
        elif now - self._said >= EVERY:
            self._said = now
            left = (now - self._began) / (self._done - self._start) * (self._total - self._done)
            self._say(f"{self._so_far()}{self._rate(now)}, {duration(left)} left")

    def _so_far(self) -> str:
        return f"{self._did} {self._done:,} of {self._total:,} {self._unit}"

    def _rate(self, now: float) -> str:
        """Of this run; nothing where it was too short to tell."""
        if now <= self._began:
            return ""
        rate = (self._done - self._start) / (now - self._began)
        return f", {rate:,.0f}/s" if rate >= 100 else f", {rate:.1f}/s" if rate >= 1 else f", {rate * 60:.1f}/min"


def duration(seconds: float) -> str:
    """What a person says of a time: 40 s, 20 min, 3 h 5 min."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
