"""Given text goes to the engine in pieces, so many rows at a time over all callers: what ``/risk`` is given, and what
a prompt holds of the assistant's turn.

Each of its tokens takes a row of logits, where a prompt takes one in all: on a large vocabulary a long text would be
hundreds of products with the output matrix inside one step, for which every answer waits. A piece finds what stands
before it in the prefix cache. Written against vLLM 0.32 (``v1/core/kv_cache_manager.py``; the same in 0.26).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager


def pieces(first: int, length: int, most: int, block: int | None) -> Iterator[tuple[int, int]]:
    """(first row, end of its tokens) of each piece of a text of ``length`` tokens whose rows count from ``first`` on.

    A piece ends one token into a block: what is cached of it then ends where the next one begins, whose rows must all
    be computed. That row is read twice, first without the token after it.
    """
    while block is not None and length - first > max(most, block):
        end = max((first + most) // block, first // block + 1) * block + 1
        if end >= length:
            break
        yield first, end
        first = end - 1
    yield first, length


class Room:
    """For so many rows; who comes later waits until all before him are in. For one event loop."""

    def __init__(self, rows: int) -> None:
        self._all = self._free = rows
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def of(self, rows: int) -> AsyncIterator[None]:
        """Room for ``rows``; all of it for more than there is."""
        rows = min(rows, self._all)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._free += rows
            self._admit()

    def _admit(self) -> None:
        while self._waiting and (self._waiting[0][1].cancelled() or self._waiting[0][0] <= self._free):
            rows, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._free -= rows
                turn.set_result(None)
