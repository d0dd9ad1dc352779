"""Checks what the CPU engine needs from the system, before anything is installed. Standard library only."""

import ctypes
import platform
import shutil
import sys


def missing() -> list[str]:
    """A sentence for each thing that is missing, with its remedy."""
    problems = []
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        problems.append(f"Python 3.11 to 3.13 is needed, this is {platform.python_version()}: set PYTHON=python3.11")
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        problems.append(
            f"the CPU engine has wheels for Linux on x86_64, not for {platform.system()} on {platform.machine()}"
        )
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        problems.append("a C++ compiler is needed to compile models: install g++ (Debian, Ubuntu: apt install g++)")
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        problems.append("libnuma.so.1 is needed by the engine (Debian, Ubuntu: apt install libnuma1)")
    try:
        import ensurepip
        import venv

        del ensurepip, venv
    except ImportError:
        problems.append("Python's venv module is needed (Debian, Ubuntu: apt install python3-venv)")
    return problems


if __name__ == "__main__":
    found = missing()
    for problem in found:
        print(f"hguard: {problem}", file=sys.stderr)
    sys.exit(1 if found else 0)
