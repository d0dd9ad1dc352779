"""The files of one fit: every stage leaves its own, so a stop loses nothing and the same command goes on from there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guard.errors import FitError

FORMAT = 2  # of the rows in the files


class StageStore:
    """A folder that belongs to one fit, with the settings that its files were made under."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Open or create. Raises FitError when the files in it were made under other settings."""
        self.folder = folder
        with translate_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        file = folder / "settings.json"
        if file.is_file():
            made = _read(file)
            if made.pop("format", 1) != FORMAT:
                raise FitError(f"{folder} holds stages that another release wrote: give another folder")
            changed = sorted(k for k in {*made, *settings} if made.get(k) != settings.get(k))
            if changed:
                raise FitError(
                    f"{folder} holds the stages of another fit ({', '.join(changed)} differ); "
                    "give another folder, or the same settings to go on"
                )
        else:
            self.write_json("settings.json", {"format": FORMAT, **settings})

    @classmethod
    def of(cls, folder: Path) -> StageStore:
        """One that is there, under whatever settings. Raises FitError where it is not."""
        file = folder / "settings.json"
        if not file.is_file():
            raise FitError(f"{folder} does not hold the stages of a fit")
        return cls(folder, {name: value for name, value in _read(file).items() if name != "format"})

    def path(self, name: str) -> Path:
        return self.folder / name

    def has(self, name: str) -> bool:
        return self.path(name).is_file()

    def read_json(self, name: str) -> Any:
        return _read(self.path(name))

    def write_json(self, name: str, value: Any) -> None:
        """Write the whole file or nothing of it."""
        with translate_os_errors(self.folder):
            write_json(self.path(name), value)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a file that grows."""
        return read_rows(self.path(name))

    @contextmanager
    def appending(self, name: str) -> Iterator[Any]:
        """A function that appends one row, which then is on disk."""
        with translate_os_errors(self.folder), appending(self.path(name)) as append:
            yield append


@contextmanager
def appending(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that appends one row to a file of JSON lines, where it then is on disk."""
    with path.open("a", encoding="utf-8") as file:

        def append(row: dict[str, Any]) -> None:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()

        yield append


def write_json(file: Path, value: Any) -> None:
    """Write the whole file or nothing of it."""
    beside = file.with_name(f"{file.name}.part")
    beside.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    beside.replace(file)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file that grows; a last line that a stop cut short is left out, and cut off."""
    if not file.is_file():
        return []
    rows, whole = [], 0
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            rows.append(json.loads(line))
            whole += len(line)
    if whole < file.stat().st_size:
        os.truncate(file, whole)
    return rows


@contextmanager
def translate_os_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk says into a sentence for a person."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FitError(
                f"no space is left for {folder}; what is there is kept: free some and run the same command again"
            ) from error
        raise FitError(f"{folder} cannot be written: {error.strerror}") from error


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
