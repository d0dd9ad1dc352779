"""Requests in the engine: those in flight, the pause that an exchange of neurons needs, and those of the guard itself.

Of the latter no caller's answer comes, and vLLM's counters hold them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum

from guard.compat import refused_for_load
from guard.errors import UnsupportedError
from guard.probe.bundle import Bundle


class Traffic:
    """Counts what has begun and is not done; while it is paused nothing begins. For one event loop.

    tapped: the probe whose neurons the workers read. lost: whether they may read neither of two, since one failed to
    exchange them.
    """

    def __init__(self, tapped: Callable[[], Bundle]) -> None:
        self._tapped, self.lost = tapped, False
        self._open, self._idle, self._in_flight = asyncio.Event(), asyncio.Event(), 0
        self._open.set()
        self._idle.set()

    @asynccontextmanager
    async def begun(self, bundle: Bundle | None) -> AsyncIterator[None]:
        """What the engine does for a request that ``bundle`` is to judge (None: whatever is tapped); it waits out a
        pause.

        Raises vLLM's refusal for load where an exchange took the neurons that this probe reads.
        """
        await self._open.wait()
        if self.lost:
            raise refused_for_load(
                "a worker failed to exchange the probe, so nothing can be scored: restart the server"
            )
        tapped = self._tapped()
        if bundle is not None and bundle is not tapped and not bundle.reads_as(tapped):
            raise refused_for_load("the probe was exchanged as this request began; ask again")
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    @asynccontextmanager
    async def paused(self, seconds: float) -> AsyncIterator[None]:
        """Once nothing is in flight any more, and while nothing begins. Raises UnsupportedError where that takes longer
        than ``seconds``."""
        self._open.clear()
        try:
            try:
                async with asyncio.timeout(seconds):
                    await self._idle.wait()
            except TimeoutError:
                raise UnsupportedError(
                    "it reads other neurons, and answers in flight keep those that they began with: after "
                    f"{seconds:g} s {self._in_flight} were not done; ask again when there are fewer, or grant more "
                    "--drain-seconds"
                ) from None
            yield
        finally:
            self._open.set()


class Purpose(StrEnum):
    """What a request of the guard's own was for. Each draws one token, which is thrown away."""

    SELF_TEST = "self_test"
    RISK = "risk"  # given text that a caller wants scored; a long one takes several
    TURN = "turn"  # what a prompt holds of the assistant's turn, which is scored with what is added
    PROMPT_CHECK = "prompt_check"
    EXPLANATION = "explanation"  # an answer's worst window, to tell its neurons apart


class OwnRequests:
    """How many there were so far, and how many prompt tokens they had, by purpose."""

    def __init__(self) -> None:
        self.requests: Counter[Purpose] = Counter()
        self.prompt_tokens: Counter[Purpose] = Counter()

    def count(self, purpose: Purpose, prompt_tokens: int) -> None:
        self.requests[purpose] += 1
        self.prompt_tokens[purpose] += prompt_tokens
