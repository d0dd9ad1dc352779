"""``make image-test``: builds the CPU image without Docker, and does with it what a user and a supervisor do.

Needs root, buildah, debootstrap and crun. ``README.md`` beside this file says what it does not cover.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deploy.image.ask import ImageError, Trial
from deploy.image.store import Store

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "image"
IMAGE = "localhost/hneuron-guard:cpu"
GIBIBYTES = 16  # of disk: vfs keeps a copy of the image for each of its stages


def main() -> int:
    """Returns the exit status."""
    if (problem := _missing()) is not None:
        print(f"image-test: {problem}", file=sys.stderr)
        return 1
    shutil.rmtree(WORK, ignore_errors=True)
    store = Store(WORK)
    try:
        _timed("makes a base with debootstrap", store.make_base)
        _timed("builds the image", lambda: store.build(ROOT, IMAGE))
        rootfs, image = store.mount(IMAGE), store.configuration(IMAGE)
        _tell(f"is of {_size(rootfs) / 2**30:.2f} GiB")
        _check(image, store.history(IMAGE))
        Trial(WORK, rootfs, image, _tell).run()
    except ImageError as error:
        print(f"image-test: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"image-test: {' '.join(error.cmd[:3])} ... ended with {error.returncode}", file=sys.stderr)
        for log in sorted(WORK.glob("*.log")):
            print(f"--- {log.name}\n{''.join(log.read_text(errors='replace').splitlines(True)[-20:])}", file=sys.stderr)
        return 1
    finally:
        store.clean()
        shutil.rmtree(WORK, ignore_errors=True)
    print("\n" + (Path(__file__).parent / "README.md").read_text(encoding="utf-8").partition("## ")[2])
    return 0


def _missing() -> str | None:
    if os.getuid() != 0:
        return "crun and buildah's chroot isolation need root here; docker users need none of this: `make image`"
    for tool in ("buildah", "debootstrap", "crun"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (Debian, Ubuntu: apt install {tool})"
    if shutil.disk_usage(ROOT).free < GIBIBYTES << 30:
        return f"the build needs {GIBIBYTES} GiB of disk"
    return None


def _check(image: dict[str, Any], history: list[str]) -> None:
    """What can be read off the image without running it."""
    user = image["User"].partition(":")[0]
    if not user.isdigit() or user == "0":
        raise ImageError(f"the image's user is {image['User']!r}, not a number above 0")
    if image["Entrypoint"] != ["hguard"] or image["Cmd"] != ["serve"] or image.get("StopSignal") != "SIGTERM":
        raise ImageError(f"the image runs {image['Entrypoint']} {image['Cmd']}")
    if "/cache" not in image["Volumes"]:
        raise ImageError("the image has no volume for its cache")
    readable = "\n".join([*history, *image["Env"]])
    for word in ("/mnt/pip", "find-links", "pip.conf", "API_KEYS="):
        if word in readable:
            raise ImageError(f"the image keeps what it should not: {word}")
    _tell("has a numeric user, one volume, and nothing of this machine in its history")


def _size(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def _timed(what: str, do: Any) -> None:
    begun = time.monotonic()
    do()
    _tell(f"{what} in {time.monotonic() - begun:.0f} s")


def _tell(line: str) -> None:
    print(f"image-test: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
