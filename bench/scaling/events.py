"""Simulated time: what is due next, in order."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

Result = TypeVar("Result")


class Clock:
    """Seconds since the beginning, and the calls that are due; of one moment in the order in which they were asked for,
    so that a seed decides everything."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = count()

    def at(self, time: float, call: Callable[..., None], *given: Any) -> None:
        heapq.heappush(self._due, (time, next(self._count), call, given))

    def run(self) -> None:
        """Until nothing is due."""
        while self._due:
            self.now, _, call, given = heapq.heappop(self._due)
            call(*given)


def in_no_task(work: Callable[[], Result]) -> Result:
    """Do ``work`` on an event loop and in none of its tasks.

    A ``Permit`` of the server asks for the task that it may cancel: there must be a loop, and it must not be ours.
    """

    async def wait() -> Result:
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def call() -> None:
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)

        asyncio.get_running_loop().call_soon(call)
        return await done

    return asyncio.run(wait())
