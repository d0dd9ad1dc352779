"""Installs a requirements file under the locked versions; says what to do when torch's CPU build is not found."""

import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parent / "lock.txt"


def main(requirements: str) -> int:
    """Run pip; returns its exit status."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, "-r", requirements, "-c", str(LOCK)], stderr=subprocess.PIPE, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode and "torch==2.13.0+cpu" in done.stderr:
        print(
            "hguard: torch 2.13.0+cpu is not on PyPI but in PyTorch's own index of CPU wheels: set PIP_EXTRA_INDEX_URL "
            "to that index (PyTorch's 'Get started' page shows it under Pip, CPU) and try again",
            file=sys.stderr,
        )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
