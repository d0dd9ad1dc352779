"""The score table: shared memory in which the worker leaves what it measured, keyed by slot and absolute position.

The API process creates it and hands out slots; the worker writes before it returns a step's output, the API process
reads when that output arrives, so every read happens after its write. Each entry carries the generation of the claim
it was written for: a slot needs no clearing, and what an aborted request still writes is never taken for another's.
The file is sparse: memory is used by the positions that requests reach, not by the longest that they could.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.errors import CapacityError, TapError, UnsupportedError
from guard.probe.signals import ALWAYS, COLUMN, Source, names

PATH_VARIABLE = "HGUARD_RING_PATH"

_HEADER = np.dtype([("slots", np.int64), ("positions", np.int64), ("measured", np.int64)])


@cache
def entries(measured: frozenset[str]) -> dict[Source, np.dtype[np.void]]:
    """An entry of each source: what the forward pass of a position yields, and what is known of the token at a position
    once it is drawn. Apart, since the two are known in different steps."""
    return {
        source: np.dtype([("generation", np.uint32), *((name, np.float32) for name in names(source, measured))])
        for source in Source
    }


@dataclass(frozen=True, slots=True)
class Slot:
    """A claim on one row of the table."""

    index: int
    generation: int


def require_room(slots: int, positions: int, measured: frozenset[str] = ALWAYS) -> str:
    """The folder for a table of this size. Raises UnsupportedError where the table could outgrow its memory."""
    shared = Path("/dev/shm").is_dir() and os.access("/dev/shm", os.W_OK)
    folder = "/dev/shm" if shared else tempfile.gettempdir()
    size, room = slots * positions * _bytes(measured), shutil.disk_usage(folder)
    if size > room.free and room.total > 0:  # a tmpfs without a limit says 0
        raise UnsupportedError(
            f"the scores of {slots} answers of {positions} tokens may take {size >> 20} MiB, and {folder} has "
            f"{room.free >> 20} MiB left: give it more (docker run --shm-size), or lower --slots, or "
            "--max-model-len after --"
        )
    return folder


def _bytes(measured: frozenset[str]) -> int:
    """Of one position of one slot."""
    return sum(entry.itemsize for entry in entries(measured).values())


class ScoreTable:
    """The memory itself; both sides hold one. measured: names of the signals that have a place in it."""

    def __init__(self, path: Path, create: tuple[int, int] | None = None, measured: frozenset[str] = ALWAYS) -> None:
        """Open the table at ``path``, or create it with (slots, positions) for the signals that are ``measured``."""
        self.path = path
        if create is not None:
            header = np.memmap(path, dtype=_HEADER, mode="w+", shape=(1,))
            header[0] = *create, sum(1 << COLUMN[name] for name in measured)
            header.flush()
        else:
            if not path.is_file():
                raise TapError(
                    f"the score table {path} is not here: the server that made it has stopped, or is on another machine"
                )
            header = np.memmap(path, dtype=_HEADER, mode="r", shape=(1,))
        self.slots, self.positions = int(header["slots"][0]), int(header["positions"][0])
        self.measured = frozenset(name for name, bit in COLUMN.items() if header["measured"][0] >> bit & 1)
        shape, offset = (self.slots, self.positions), _HEADER.itemsize
        size = self.slots * self.positions
        if create is not None:
            os.truncate(path, offset + size * _bytes(self.measured))
        self.entries: dict[Source, NDArray[np.void]] = {}
        self._words: dict[Source, NDArray[np.float32]] = {}  # the same memory, [slots, positions, words of an entry]
        for source, entry in entries(self.measured).items():
            # As plain arrays: memmap's own class costs as much on every access as the access.
            self.entries[source] = np.asarray(np.memmap(path, entry, "r+", offset, shape))
            self._words[source] = self.entries[source].view(np.float32).reshape(*shape, -1)
            offset += size * entry.itemsize

    @classmethod
    def create(cls, slots: int, positions: int, measured: frozenset[str] = ALWAYS) -> ScoreTable:
        """A new table in shared memory (or the temporary folder, where there is none).

        Raises UnsupportedError where it could outgrow that memory: the kernel would kill the worker that then writes.
        """
        handle, name = tempfile.mkstemp(prefix="hguard-table-", dir=require_room(slots, positions, measured))
        os.close(handle)
        return cls(Path(name), (slots, positions), measured)

    def unlink(self) -> None:
        """Remove the name. The memory lives on in the processes that opened it, and is freed when the last one ends."""
        self.path.unlink(missing_ok=True)
        refusal_file(self.path).unlink(missing_ok=True)
        cause_file(self.path).unlink(missing_ok=True)

    def refusal(self) -> str | None:
        """Why a worker refused to start, if one did; vLLM itself says only that it did not start."""
        file = refusal_file(self.path)
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def write(
        self,
        source: Source,
        slots: NDArray[np.int64],
        generations: NDArray[np.uint32],
        positions: NDArray[np.int64],
        values: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Record the signals of one source, each in ``values`` by name; all arrays [rows], one entry each.

        positions: of the forward pass, or of the tokens that were drawn.
        """
        entry = np.empty(len(slots), self.entries[source].dtype)
        entry["generation"] = generations
        for name in names(source, self.measured):
            entry[name] = values[name]
        self.entries[source][slots, positions] = entry

    def copy(self, source: Slot, target: Slot, start: int, end: int) -> None:
        """Give ``target`` what ``source`` has at positions start..end-1, and nothing where that has nothing."""
        for entries in self.entries.values():
            copied = entries[source.index, start:end].copy()
            known = copied["generation"] == source.generation
            copied["generation"] = np.where(known, target.generation, 0)
            entries[target.index, start:end] = copied

    def read(self, source: Source, slot: Slot, start: int, end: int) -> dict[str, NDArray[np.float32]]:
        """The signals of one source at positions start..end-1, by name, float32; NaN where this claim has none,
        infinite where what was measured is NaN."""
        words = self._words[source][slot.index, start:end]
        known, measured = words.view(np.uint32)[:, 0] == slot.generation, words[:, 1:].T.copy()
        if not (known.all() and np.isfinite(measured).all()):
            measured[np.isnan(measured)] = np.inf
            measured[:, ~known] = np.nan
        return dict(zip(names(source, self.measured), measured, strict=True))

    def read_rows(
        self,
        source: Source,
        slots: NDArray[np.int64],
        generations: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_] | None]:
        """As ``read``, of several claims at once: slots, generations [m], positions [m, n] -> float32 [m, n] by name;
        and for which claims all of it is there and finite, bool [m] (None: for all). Where it is not it is 0."""
        words = self._words[source][slots[:, None], positions]
        there, measured = words.view(np.uint32)[..., 0] == generations[:, None], words[..., 1:]
        finite = np.isfinite(measured)
        whole = None
        if not (there.all() and finite.all()):
            there &= finite.all(-1)
            measured[~there] = 0
            whole = there.all(1)
        return {name: measured[..., column] for column, name in enumerate(names(source, self.measured))}, whole


def refusal_file(table: Path) -> Path:
    """Where a worker leaves its reason beside the table."""
    return table.with_name(f"{table.name}.refusal")


def cause_file(table: Path) -> Path:
    """Where a process of the engine leaves what it failed of beside the table."""
    return table.with_name(f"{table.name}.cause")


class SlotPool:
    """Hands out the table's slots (API process only)."""

    def __init__(self, slots: int) -> None:
        self._free = deque(range(slots))
        self._generation = 0
        self.size = slots

    @property
    def in_use(self) -> int:
        return self.size - len(self._free)

    def claim(self, count: int) -> list[Slot]:
        """Claim ``count`` slots. Raises CapacityError when fewer are free."""
        if count > len(self._free):
            raise CapacityError(
                f"all {self.size} score slots are in use, so this answer could not be guarded; try again later"
            )
        claimed = []
        for _ in range(count):
            # 0 is the generation of memory that was never written.
            self._generation = self._generation % 0xFFFFFFFF + 1
            claimed.append(Slot(self._free.pop(), self._generation))
        return claimed

    def release(self, slots: list[Slot], finished: bool) -> None:
        """Give slots back; one of a request that did not finish rests longest before it is used again."""
        for slot in slots:
            if finished:
                self._free.append(slot.index)
            else:
                self._free.appendleft(slot.index)
