"""Mean CETT of every neuron over every answer: larger than memory, so it is read in blocks of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import FitError

_BLOCK = 64 << 20  # bytes that are read at once

Floats = NDArray[np.float32]
Index = NDArray[np.int64]
Read = Callable[[int], None]  # told how many answers were read


class Features:
    """float32 [answers, neurons]: the given ``rows`` (all by default) of an array, times the neurons' norms.

    ``raw`` is float32 [any, ...], ``norms`` of one row's shape, or 1.
    """

    def __init__(self, raw: Floats, norms: Floats | None = None, rows: Sequence[int] | Index | None = None) -> None:
        self._raw = raw
        self._file: tuple[Path, int] | None = None
        self._width = int(np.prod(raw.shape[1:]))
        self._norms = None if norms is None else norms.reshape(-1)
        self.rows: Index = np.arange(len(raw)) if rows is None else np.asarray(rows, np.int64)

    @classmethod
    def of(cls, path: Path, norms: Floats | None = None, rows: Sequence[int] | Index | None = None) -> Features:
        """Those of a .npy file. The map says where its rows are; its pages would count as this process's memory."""
        mapped: np.memmap[Any, np.dtype[np.float32]] = np.load(path, mmap_mode="r")
        made = cls(mapped, norms, rows)
        made._file = path, mapped.offset
        return made

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self._width

    def __len__(self) -> int:
        return len(self.rows)

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """Every answer once, in order: (which answers, float32 [some answers, neurons]). The next is read meanwhile."""
        size = max(1, _BLOCK // (4 * self._width))
        parts = [slice(start, min(start + size, len(self))) for start in range(0, len(self), size)]
        with ExitStack() as stack:
            file = None if self._file is None else stack.enter_context(self._file[0].open("rb"))
            ahead = stack.enter_context(ThreadPoolExecutor(1))
            coming = ahead.submit(self._block, file, parts[0]) if parts else None
            for number, part in enumerate(parts):
                assert coming is not None
                block = coming.result()
                if number + 1 < len(parts):
                    coming = ahead.submit(self._block, file, parts[number + 1])
                yield part, block

    def take(self, columns: Index, read: Read = lambda count: None) -> Floats:
        """float32 [answers, columns], in one pass over all answers."""
        taken = np.empty((len(self), len(columns)), np.float32)
        for part, block in self.blocks():
            np.take(block, columns, 1, taken[part], "clip")
            read(len(block))
        return taken

    def _block(self, file: BufferedReader | None, part: slice) -> Floats:
        rows = self.rows[part]
        if file is None or self._file is None:
            block = self._raw[rows].reshape(len(rows), -1)  # a copy: rows is an array
        else:
            path, start = self._file
            block = np.empty((len(rows), self._width), np.float32)
            for row, into in zip(rows.tolist(), block, strict=True):
                file.seek(start + 4 * self._width * row)
                if file.readinto(into.data) != into.nbytes:
                    raise FitError(f"{path} is shorter than it says: remove it, and run the same command again")
        if self._norms is not None:
            block *= self._norms
        return block
