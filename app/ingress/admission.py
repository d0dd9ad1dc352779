"""Who may come in now: requests of each caller, and answers in flight over all of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import TracebackType

from app.errors import Reason, RefusedError

DRAINING = "draining"
ENGINE_DEAD = "engine dead"


def capacity(running: int, queue: int | None, slots: int) -> int:
    """Answers in flight: those that the engine runs at once and a ``queue`` of those that may wait (None: as many);
    never more than there are score ``slots``."""
    return min(running + (running if queue is None else queue), slots)


class Pacer:
    """Spaces out refusals: so many at once, so many a second after that; who comes sooner waits for his.

    Callers who keep to Retry-After never notice. Those who ask again at once would otherwise take the event loop that
    the engine's answers need: a refusal costs it about half a millisecond.
    """

    def __init__(self, per_second: float = 250.0, at_once: int = 250, longest: float = 2.0) -> None:
        self._interval, self._slack, self._longest = 1 / per_second, at_once / per_second, longest
        self._next = 0.0  # when the last of those promised so far would be due at an even pace

    def delay(self, now: float) -> float:
        """How long the refusal decided ``now`` (seconds) has to wait."""
        self._next = min(max(now, self._next) + self._interval, now + self._slack + self._longest)
        return max(0.0, self._next - now - self._slack)


class Permit:
    """One request's place. A context manager: it is given back whatever happens, once."""

    def __init__(self, admission: Admission, caller: int | None) -> None:
        self._admission, self.caller = admission, caller
        self.answers = 0
        self.cut = False  # whether the server ends it before its time
        self._task = asyncio.current_task()

    def widen(self, answers: int) -> None:
        """Take places for all its answers, once it is known how many. Raises RefusedError when there are too few."""
        self._admission.take(self, answers - self.answers)

    def cut_short(self) -> None:
        """Cancel its work; whoever holds the permit sees why by ``cut``."""
        self.cut = True
        if self._task is not None:
            self._task.cancel()

    def release(self) -> None:
        self._admission.give_back(self)

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


class Admission:
    """The house: how many are in it, and whether it still lets anyone in. For one event loop.

    capacity: answers that the engine runs at once, and those that may wait for it.
    """

    def __init__(self, requests_per_caller: int, capacity: int) -> None:
        self.requests_per_caller = requests_per_caller
        self.capacity = capacity
        self.closing: str | None = None  # why nobody is let in any more
        self.answers = 0
        self._permits: set[Permit] = set()
        self._callers: Counter[int | None] = Counter()

    @property
    def requests(self) -> int:
        return len(self._permits)

    def close(self, why: str) -> None:
        """Let nobody in from now on: DRAINING or ENGINE_DEAD."""
        self.closing = why

    def require_open(self) -> None:
        """Raises RefusedError when the server is about to end."""
        if self.closing is not None:
            why = "engine stopped; " if self.closing == ENGINE_DEAD else ""
            raise RefusedError(Reason.DRAINING, f"{why}server is shutting down; send the request again")

    def admit(self, caller: int | None, answers: int = 1) -> Permit:
        """A place for one request of this caller (None without keys). Raises RefusedError when there is none."""
        self.require_open()
        if self._callers[caller] >= self.requests_per_caller:
            whose = "of callers without keys" if caller is None else "of this API key"
            raise RefusedError(
                Reason.TOO_MANY_REQUESTS,
                f"concurrency limit ({self.requests_per_caller}) {whose} reached; try again later",
            )
        permit = Permit(self, caller)
        self.take(permit, answers)
        self._permits.add(permit)
        self._callers[caller] += 1
        return permit

    def take(self, permit: Permit, answers: int) -> None:
        """Count more answers for a permit. Raises RefusedError when the queue is full."""
        if self.answers + answers > self.capacity:
            raise RefusedError(
                Reason.QUEUE_FULL,
                f"server at capacity ({self.answers} of {self.capacity} answers in flight); try again later",
            )
        self.answers += answers
        permit.answers += answers

    def give_back(self, permit: Permit) -> None:
        """Free a permit's places; a second time does nothing."""
        if permit not in self._permits:
            return
        self._permits.remove(permit)
        self.answers -= permit.answers
        self._callers[permit.caller] -= 1
        if not self._callers[permit.caller]:
            del self._callers[permit.caller]

    def cut_short(self) -> None:
        """Cancel what is still in flight."""
        for permit in list(self._permits):
            permit.cut_short()
