"""Where a probe lies whose files stand side by side in a folder."""

from __future__ import annotations

from pathlib import Path


def folder_of(path: Path, *files: str) -> Path | None:
    """The folder, or that of one of the ``files``, that has all of them; None where it has not."""
    folder = path if path.is_dir() else path.parent
    named = path.is_dir() or path.name in files
    return folder if named and all((folder / name).is_file() for name in files) else None
