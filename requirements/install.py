"""Runs pip under the locked versions, says what it installs and how long that took, and finds torch's CPU build.

    python requirements/install.py WHAT PIP_ARGUMENT ...

pip's own settings come first. Where they do not have torch's CPU build, which is not on PyPI, PyTorch's public index of
CPU wheels is asked (TORCH_INDEX names another). What pip has fetched it keeps: the next run goes on.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

LOCK = Path(__file__).parent / "lock.txt"
TORCH = "torch==2.13.0+cpu"
TORCH_INDEX = os.environ.get("TORCH_INDEX") or "https://download.pytorch.org/whl/cpu"
_PIP = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore")
_ERROR = re.compile(r"^ERROR: (.+)$", re.MULTILINE)
_CAUSES = (
    (re.compile("No space left on device"), "the disk is full: make room for 6 GiB, in .venv and in pip's cache"),
    (
        re.compile(
            r"NameResolutionError|NewConnectionError|ConnectTimeout|Max retries|ProxyError|Network is unreachable"
        ),
        "pip did not reach its index: check the network, and HTTPS_PROXY if there is a proxy",
    ),
)


def main(what: str, *arguments: str) -> int:
    """Run ``pip install``; returns its exit status."""
    began = time.monotonic()
    print(f"hguard: installing {what} ...", flush=True)
    done = _pip(arguments, {})
    if done.returncode and _lacks_torch(done.stderr):
        why = _unreachable(TORCH_INDEX)
        if why is not None:
            print(
                f"hguard: torch 2.13.0+cpu is not where pip looks, and PyTorch's index of CPU wheels, {TORCH_INDEX}, "
                f"cannot be reached ({why}): set TORCH_INDEX to an index that has it, or HTTPS_PROXY if there is a "
                "proxy, and run the same command again",
                file=sys.stderr,
            )
            return done.returncode
        print(f"hguard: torch's CPU build comes from {TORCH_INDEX} ...", flush=True)
        indices = f"{os.environ.get('PIP_EXTRA_INDEX_URL', '')} {TORCH_INDEX}".strip()
        done = _pip(arguments, {"PIP_EXTRA_INDEX_URL": indices})
    if done.returncode:
        print(f"hguard: {what}: not installed: {_cause(done.stderr)}", file=sys.stderr)
        print("hguard: what pip has fetched is kept, and the same command goes on from there", file=sys.stderr)
    else:
        print(f"hguard: installed {what} in {time.monotonic() - began:.0f} s", flush=True)
    return done.returncode


def _pip(arguments: tuple[str, ...], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [*_PIP, *arguments, "-c", str(LOCK)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})


def _lacks_torch(said: str) -> bool:
    """Named as a requirement without a candidate, or as one that conflicts with its own pin, by what pip found."""
    return TORCH in said


def _unreachable(index: str) -> str | None:
    """Why, or None. pip itself would try for a minute and a half."""
    try:
        with urllib.request.urlopen(f"{index.rstrip('/')}/torch/", timeout=15):  # noqa: S310 - the operator's own
            return None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def _cause(said: str) -> str:
    """What went wrong, in one line: of what pip says, its first error."""
    for pattern, cause in _CAUSES:
        if pattern.search(said):
            return cause
    errors = _ERROR.findall(said)
    return errors[0] if errors else said.strip() or "pip said nothing"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
