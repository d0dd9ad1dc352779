"""One container of an image that buildah has mounted, under crun: read-only root, no rights, the sizes Docker gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

# crun refuses a host with both versions of cgroups, and needs neither here: it gets a view without the second.
HIDE = 'if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi && exec "$@"'
CRUN = ("unshare", "--mount", "sh", "-c", HIDE, "sh", "crun", "--cgroup-manager=disabled")
SHM = 1024  # MiB of /dev/shm, as in compose.yaml


class Container:
    """Started once constructed. Its log holds what it said on both outputs."""

    def __init__(
        self,
        work: Path,
        rootfs: Path,
        image: Mapping[str, Any],
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        binds: Mapping[str, Path] | None = None,
        shm: int = SHM,
        temporary: bool = True,
    ) -> None:
        """``image`` is its configuration; ``arguments`` replace its CMD; ``binds`` are folders and files by target.

        ``shm`` is the size of /dev/shm in MiB; ``temporary`` says whether there is a /tmp to write to.
        """
        self.name = f"hguard-{os.getpid()}-{time.monotonic_ns()}"
        self.log = work / f"{self.name}.log"
        self._state = work / "crun"
        self._bundle = work / self.name
        self._bundle.mkdir(parents=True)
        variables = dict(variable.split("=", 1) for variable in image["Env"]) | dict(environment or {})
        command = [*image["Entrypoint"], *(arguments or image["Cmd"])]
        user, group = (int(part) for part in image["User"].split(":"))
        config = _config(rootfs, command, variables, image["WorkingDir"], (user, group), binds or {}, shm)
        if not temporary:
            config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] != "/tmp"]
        (self._bundle / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        self._process_spec = config["process"]
        self._output: IO[bytes] = self.log.open("wb")
        self._crun = subprocess.Popen(
            [*CRUN, "--root", str(self._state), "run", "--bundle", str(self._bundle), self.name],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is for the test, which then ends the container itself
        )

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def ended(self) -> bool:
        return self._crun.poll() is not None

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None when it has not ended by then."""
        try:
            return self._crun.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def execute(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as the image's user and with its environment, as a HEALTHCHECK is."""
        spec = self._bundle / "exec.json"
        spec.write_text(json.dumps({**self._process_spec, "args": list(command)}), encoding="utf-8")
        return subprocess.run(
            [*CRUN, "--root", str(self._state), "exec", "--process", str(spec), self.name],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its first process, as `docker stop` does."""
        subprocess.run([*CRUN, "--root", str(self._state), "kill", self.name, number.name], check=True)

    def remove(self) -> None:
        """End it, whatever it does, and forget it."""
        subprocess.run(
            [*CRUN, "--root", str(self._state), "delete", "--force", self.name], capture_output=True, check=False
        )
        self._crun.wait()
        self._output.close()


def _config(
    rootfs: Path,
    command: list[str],
    variables: Mapping[str, str],
    folder: str,
    user: tuple[int, int],
    binds: Mapping[str, Path],
    shm: int,
) -> dict[str, Any]:
    """OCI runtime configuration: what ``docker run --read-only --tmpfs /tmp --cap-drop ALL`` makes of an image."""
    mounts: list[dict[str, Any]] = [
        _mount("/proc", "proc", "proc"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
        _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", f"size={shm}m"),
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        _mount("/tmp", "tmpfs", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777"),
    ]
    for target, source in binds.items():
        mounts.append(_mount(target, "bind", str(source), "rbind", "nosuid", "nodev"))
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": user[0], "gid": user[1]},
            "args": command,
            "env": [f"{name}={value}" for name, value in variables.items()],
            "cwd": folder,
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": "hguard",
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def _mount(target: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}
