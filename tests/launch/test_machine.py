"""What a machine lacks is said in one sentence, with the line that installs it there."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from guard.launch import machine

ROOT = Path(__file__).parents[2]
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No compiler, no libnuma, no headers."""

    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))


@pytest.mark.parametrize(
    ("release", "says"),
    [
        ({"ID": "debian"}, f"`apt install g++ libnuma1 {PYTHON}-dev`"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, f"`apt install g++ libnuma1 {PYTHON}-dev`"),
        ({"ID": "fedora"}, "`dnf install gcc-c++ numactl-libs python3-devel`"),
        ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "`dnf install gcc-c++ numactl-libs python3-devel`"),
        ({"ID": "arch"}, "`pacman -S gcc numactl python`"),
        ({"ID": "gentoo"}, "(Fedora), `pacman -S gcc numactl python` (Arch)"),
    ],
)
@pytest.mark.usefixtures("bare")
def test_the_line_that_installs_it(release: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    (said,) = machine.problems()
    assert said.startswith("a C++ compiler, libnuma.so.1, Python's headers are missing: ")
    assert says in said


def test_nothing_is_missing_here() -> None:
    assert machine.problems(ROOT) == []


@pytest.mark.parametrize(("system", "architecture"), [("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "aarch64")])
@pytest.mark.usefixtures("bare")
def test_other_platforms(system: str, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    (said,) = machine.problems()
    assert f"this is {system} on {architecture}: run the container image there" in said
    assert ("intel-openmp has none" in said) == (architecture != "AMD64")


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    (said,) = machine.problems()
    assert said.startswith("Python 3.11 to 3.13 is needed, this is ")


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10 << 30, 9 << 30, 1 << 30))
    (said,) = machine.problems(tmp_path)
    assert said.startswith(f"1.0 GiB are free at {tmp_path}, and the engine's packages need {machine.GIBIBYTES}")


def test_it_runs_before_anything_is_installed() -> None:
    """As the Makefile runs it: no package of ours or of others on the path."""
    command = [sys.executable, "-I", "-S", str(ROOT / "guard/launch/machine.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
