"""A stop, a full disk or other settings lose nothing and mix nothing."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from guard.errors import FitError
from guard.harness.store import StageStore, translate_os_errors


def test_rows_survive(tmp_path: Path) -> None:
    work = StageStore(tmp_path / "work", {"seed": 0})
    with work.appending("rows") as append:
        append({"a": 1})
        append({"a": "é"})
    assert StageStore(tmp_path / "work", {"seed": 0}).rows("rows") == [{"a": 1}, {"a": "é"}]


def test_a_line_that_was_cut_short_is_written_again(tmp_path: Path) -> None:
    work = StageStore(tmp_path, {})
    with work.appending("rows") as append:
        append({"a": 1})
    with work.path("rows").open("a") as file:
        file.write('{"a": 2')
    assert work.rows("rows") == [{"a": 1}]
    with work.appending("rows") as append:
        append({"a": 3})
    assert work.rows("rows") == [{"a": 1}, {"a": 3}]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    StageStore(tmp_path, {"seed": 0, "samples": 10})
    with pytest.raises(FitError, match=r"stages of another fit \(samples, seed differ\)"):
        StageStore(tmp_path, {"seed": 1, "samples": 5})


@pytest.mark.parametrize(
    ("code", "says"),
    [(errno.ENOSPC, "no space is left .*same command again"), (errno.EACCES, "cannot be written: Permission denied")],
)
def test_what_the_disk_says(tmp_path: Path, code: int, says: str) -> None:
    with pytest.raises(FitError, match=says), translate_os_errors(tmp_path):
        raise OSError(code, "Permission denied" if code == errno.EACCES else "No space left on device")


def test_a_full_disk_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = StageStore(tmp_path, {})
    work.write_json("count", 1)

    def full(self: Path, *args: Any, **kwargs: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(FitError, match="no space"):
        work.write_json("count", 2)
    monkeypatch.undo()
    assert work.read_json("count") == 1
