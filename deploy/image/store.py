"""Images without a registry or a daemon: buildah in a folder of its own, on a base that debootstrap makes."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
BASE = "localhost/hguard-base"
PATH = re.compile(r"(^|\s|file://)(/\S+)")  # in a setting of pip


class Store:
    """Everything lies under ``work``, which may be deleted afterwards."""

    def __init__(self, work: Path) -> None:
        self._work = work
        (work / "tmp").mkdir(parents=True, exist_ok=True)
        # chroot and vfs need no mounts that containers may not make.
        self._buildah = ["buildah", "--root", str(work / "store"), "--runroot", str(work / "run")]
        self._buildah += ["--storage-driver", "vfs"]
        self._environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(work / "tmp")}

    def make_base(self) -> None:
        """What the image is made from in place of ``debian:bookworm-slim``."""
        container = self._ask("from", "scratch")
        folder = self._ask("mount", container)
        with (self._work / "base.log").open("wb") as log:
            command = ["debootstrap", "--variant=minbase", SUITE, folder, MIRROR]
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
        self._ask("commit", "--rm", "--quiet", container, BASE)

    def build(self, context: Path, image: str) -> None:
        """The CPU image, under this name. pip's settings of this machine are lent to the build and stay outside."""
        settings, lent = _pip_settings()
        (self._work / "pip.conf").write_text(settings, encoding="utf-8")
        command = ["build", "--format", "docker", "--tag", image]  # OCI's format has no HEALTHCHECK
        command += ["--secret", f"id=pip,src={self._work / 'pip.conf'}"]
        for argument in ("ENGINE=cpu", f"BASE_CPU={BASE}"):
            command += ["--build-arg", argument]
        if lent:  # wheels on this machine are instead of PyTorch's index, which it may not reach
            command += ["--build-arg", "TORCH_INDEX="]
        for target, path in lent.items():
            command += ["--volume", f"{path}:{target}:ro"]
        with (self._work / "build.log").open("wb") as log:
            subprocess.run(
                [*self._buildah, *command, str(context)],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=True,
            )

    def machine(self, image: str, folders: dict[str, Path]) -> list[str]:
        """The words before a command that run it in a new container, with ``folders`` and pip's settings."""
        settings, lent = _pip_settings()
        (self._work / "pip.conf").write_text(settings, encoding="utf-8")
        container = self._ask("from", image)
        seen = {**lent, **folders, "/etc/pip.conf": self._work / "pip.conf"}
        volumes = [word for target, path in seen.items() for word in ("--volume", f"{path}:{target}")]
        environment = [f"{name}={self._environment[name]}" for name in ("BUILDAH_ISOLATION", "TMPDIR")]
        return ["env", *environment, *self._buildah, "run", *volumes, container, "--"]

    def mount(self, image: str) -> Path:
        """A folder with the image's files; ``clean`` takes it away."""
        return Path(self._ask("mount", self._ask("from", image)))

    def configuration(self, image: str) -> dict[str, Any]:
        """The image's: its user, its command, its environment, its health check."""
        found: dict[str, Any] = self._inspect(image)["Docker"]["config"]
        return found

    def history(self, image: str) -> list[str]:
        """The commands of its layers, as anyone who has the image can read them."""
        return [layer.get("created_by", "") for layer in self._inspect(image)["Docker"]["history"]]

    def clean(self) -> None:
        """Take away all images and containers."""
        self._ask("rm", "--all")
        self._ask("rmi", "--all", "--force")

    def _inspect(self, image: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._ask("inspect", "--type", "image", image))
        return found

    def _ask(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._buildah, *arguments], env=self._environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout.strip()


def _pip_settings() -> tuple[str, dict[str, str]]:
    """(pip.conf with this machine's settings, the files and folders that it names by where a build shall see them)."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    values: dict[str, str] = {}
    for line in said.splitlines():  # global.cert='/etc/...', or :env:.cert='/etc/...', which comes first and counts
        name, _, value = line.partition("=")
        values.setdefault(name.rpartition(".")[2], ast.literal_eval(value))
    lent: dict[str, str] = {}

    def lend(match: re.Match[str]) -> str:
        target, path = f"/mnt/pip/{len(lent)}", Path(match[2])
        if not match[1].startswith("file:"):
            lent[target] = str(path)
            return f"{match[1]}{target}"
        lent[target] = str(path.parent)  # an index of files links to what lies beside it
        return f"{match[1]}{target}/{path.name}"

    lines = [f"{name} = {PATH.sub(lend, value)}" for name, value in values.items()]
    return "\n".join(["[global]", *lines, ""]), lent
