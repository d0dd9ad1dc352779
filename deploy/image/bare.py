"""``make bare-test``: the README's first command on a machine that has nothing, as Debian is after its installation.

A base that debootstrap makes gets make and Python, and no more. ``make serve`` must then name in one line what is
missing; that line is typed as it stands; the next try must end with a server that answers. Then ``make check`` installs
the tools and passes; with ``--suite``, ``make test`` passes there, too. Needs root, buildah and debootstrap.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.image.store import BASE, Store

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "bare"
PORT = 8791
_READY, _READY_SECONDS = "hguard: atlas is ready", 3600
_SHOWN = 20_000  # letters of what a command printed that failed: the suite's failures are at its end
_LINE = re.compile(r"`(apt install [\w.+ -]+)`")


class BareError(Exception):
    """What a newcomer would have met."""


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    for tool in ("buildah", "debootstrap"):
        if shutil.which(tool) is None:
            print(f"bare-test: {tool} is not installed (Debian, Ubuntu: apt install {tool})", file=sys.stderr)
            return 1
    shutil.rmtree(WORK, ignore_errors=True)
    store = Store(WORK)
    try:
        _try(store, suite="--suite" in arguments)
    except (BareError, subprocess.CalledProcessError) as error:
        print(f"bare-test: {error}", file=sys.stderr)
        return 1
    finally:
        store.clean()
        shutil.rmtree(WORK, ignore_errors=True)
    return 0


def _try(store: Store, suite: bool) -> None:
    store.make_base()
    clone = WORK / "clone"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)  # noqa: S607
    machine = store.machine(BASE, {"/clone": clone})
    _run([*machine, "apt-get", "update", "-qq"])
    _run([*machine, "apt-get", "install", "-y", "-qq", "--no-install-recommends", "make", "python3"])
    serve = [*machine, "make", "-C", "/clone", "serve", f"PORT={PORT}"]
    refused = subprocess.run(serve, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    told = [line for line in refused.stdout.splitlines() if line.startswith("hguard: ")]
    _tell(f"says {told}")
    if not refused.returncode or len(told) != 1 or (line := _LINE.search(told[0])) is None:
        raise BareError(f"make serve does not name what is missing:\n{refused.stdout}")
    _run([*machine, "sh", "-c", line[1].replace("apt install", "apt-get install -y -qq --no-install-recommends")])
    for attempt in ("first", "second"):
        began = time.monotonic()
        with _serving(serve) as lines:
            _tell(f"answers {_asked():.3f} after {time.monotonic() - began:.0f} s, at the {attempt} start")
        warned = [said for said in lines if "WARNING" in said or "notice" in said]
        if warned:
            raise BareError(f"what is printed is not ours: {warned}")
        _tell(f"printed {[said for said in lines if said.startswith('hguard: ')]}")
    for target in ["check", "test"] if suite else ["check"]:
        began = time.monotonic()
        last = _run([*machine, "make", "--no-print-directory", "-C", "/clone", target])[-1]
        _tell(f"make {target} passes in {time.monotonic() - began:.0f} s: {last.strip('= ')}")


@contextlib.contextmanager
def _serving(command: list[str]) -> Iterator[list[str]]:
    """What it prints, once it is ready; ended by Ctrl-C."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        deadline = time.monotonic() + _READY_SECONDS
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith(_READY):
                break
            if time.monotonic() > deadline:
                raise BareError("the server is not ready after an hour")
        else:
            raise BareError("make serve ended:\n" + "\n".join(lines[-20:]))
        yield lines
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: make gets it, and what make runs
        process.wait(timeout=60)


def _asked() -> float:
    """The risk of an invented place's answer."""
    question = {"model": "atlas", "messages": [{"role": "user", "content": "Which country is Qolmarinda in?"}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions",
        json.dumps(question).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
        risk: float = json.load(reply)["hallucination"]["results"][0]["risk"]
    return risk


def _run(command: list[str]) -> list[str]:
    """The lines that it printed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BareError(f"{' '.join(command[-3:])} ended with {done.returncode}:\n{done.stdout[-_SHOWN:]}")
    return done.stdout.splitlines() or [""]


def _tell(line: str) -> None:
    print(f"bare-test: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
