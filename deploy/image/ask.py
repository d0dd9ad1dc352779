"""What a user and a supervisor do with the image: refusals first, then one server from its start to its end."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploy.image.container import Container

READY_SECONDS = 300
REFUSAL_SECONDS = 300  # most take one; those that need an engine take as long as a start
QUESTION = {
    "model": "atlas",
    "messages": [{"role": "user", "content": "Which country is Qolmarinda in?"}],
    "hallucination": {"mode": "abstain"},
}
KEYS = "/run/secrets/hguard_api_keys"


class ImageError(Exception):
    """The image does not do what it should."""


class Trial:
    """Runs containers of one image; ``tell`` gets a line for each thing that was seen."""

    def __init__(self, work: Path, rootfs: Path, image: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        self._work, self._rootfs, self._image, self._tell = work, rootfs, image, tell
        self._user, self._group = (int(part) for part in image["User"].split(":"))
        self._secret = work / "keys"
        self._key = secrets.token_hex(16)
        self._secret.write_text(f"{self._key}\n", encoding="utf-8")

    def run(self) -> None:
        """Raises ImageError at the first thing that is not as it should be."""
        self._refusals()
        self._serve()

    def _refusals(self) -> None:
        locked = self._work / "locked"
        locked.mkdir(mode=0o700)
        sealed = self._work / "sealed"
        sealed.touch(mode=0o600)
        keys = {"HGUARD_API_KEYS_FILE": KEYS}
        self._refused("no keys", "there are no keys")
        self._refused("a key secret that is not mounted", "No such file or directory", environment=keys)
        self._refused("a key secret of another user", "Permission denied", environment=keys, binds={KEYS: sealed})
        self._refused("no cache volume", "the cache /cache/vllm cannot be written", binds={"/cache": None})
        self._refused("a cache of another user", "the cache /cache/vllm cannot be written", binds={"/cache": locked})
        self._refused("no model volume", "is the volume that holds it mounted?", arguments=["serve", "/models/llama"])
        self._refused("too little shared memory for the scores", "docker run --shm-size", shm=4)
        self._refused("Docker's 64 MiB of shared memory", "Insufficient space in /dev/shm", shm=64)
        self._refused("no place for temporary files", "as with --tmpfs /tmp", temporary=False)
        with socket.create_server(("0.0.0.0", 0)) as taken:  # noqa: S104 - to be in the way of the server
            port = str(taken.getsockname()[1])
            self._refused("a port in use", "Address already in use", environment={"HGUARD_PORT": port})
        self._refused("no memory for the KV cache", "raise VLLM_CPU_KVCACHE_SPACE", {"VLLM_CPU_KVCACHE_SPACE": "0"})

    def _refused(self, what: str, says: str, environment: Mapping[str, str] | None = None, **given: Any) -> None:
        """It ends with status 1 and a line that says this, and nothing that looks like a traceback."""
        open_to_all = {} if what == "no keys" or "secret" in what else {"HGUARD_ALLOW_UNAUTHENTICATED": "1"}
        binds = {"/cache": self._cache("refusals"), **given.pop("binds", {})}
        begun = time.monotonic()
        container = self._container(
            environment={**open_to_all, **(environment or {})},
            binds={target: source for target, source in binds.items() if source is not None},
            **given,
        )
        try:
            status = container.wait(REFUSAL_SECONDS)
        finally:
            container.remove()
        said = container.said()
        lines = [line for line in said.splitlines() if line.startswith("hguard: ") and says in line]
        if status != 1 or len(lines) != 1 or "Traceback" in said:
            raise ImageError(f"{what}: status {status}, and it said:\n{said}")
        self._tell(f"refuses {what} after {time.monotonic() - begun:.0f} s: {lines[0]}")

    def _serve(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        begun = time.monotonic()
        container = self._container(
            environment={"HGUARD_PORT": str(port), "HGUARD_API_KEYS_FILE": KEYS},
            binds={"/cache": self._cache("serve"), KEYS: self._secret},
        )
        health = self._image["Healthcheck"]["Test"][1:]
        try:
            _until(lambda: container.ended() or "hguard: starting" in container.said(), READY_SECONDS)
            _require(container.execute(health).returncode != 0, "the health check passes before the server is up")
            _until(lambda: container.ended() or " is ready" in container.said(), READY_SECONDS)
            _require(not container.ended(), f"the server did not come up:\n{container.said()}")
            self._tell(f"is ready after {time.monotonic() - begun:.0f} s")

            checked = container.execute(health)
            _require(checked.returncode == 0, f"the health check fails: {checked.stdout}{checked.stderr}")
            self._tell("passes its health check")
            who = container.execute(["id", "-u"]).stdout.strip()
            _require(who == str(self._user) != "0", f"it runs as user {who}")
            for path in ("/file", "/opt/hguard/file", "/etc/hguard/file"):
                _require(container.execute(["touch", path]).returncode != 0, f"{path} can be written")
            self._tell(f"runs as user {who}, and writes neither to its root nor to its program")

            status, _ = _ask(port, None)
            _require(status == 401, f"without a key it answers {status}")
            status, answer = _ask(port, self._key)
            _require(status == 200, f"with a key it answers {status}: {answer}")
            (result,) = answer["hallucination"]["results"]
            self._tell(f"answers 401 without a key, and with one: risk {result['risk']:.3f}, {result['action']}")

            asked = time.monotonic()
            container.signal(signal.SIGTERM)
            ended = container.wait(60)
            _require(ended == 0, f"SIGTERM ends it with status {ended}:\n{container.said()}")
            self._tell(f"ends at SIGTERM with status 0 after {time.monotonic() - asked:.1f} s")
        finally:
            container.remove()
        self._interrupted()

    def _interrupted(self) -> None:
        """A container's first process ignores signals that it does not handle; ours must not, while it starts."""
        container = self._container(
            environment={"HGUARD_ALLOW_UNAUTHENTICATED": "1"}, binds={"/cache": self._cache("serve")}
        )
        try:
            _until(lambda: container.ended() or "hguard: starting" in container.said(), READY_SECONDS)
            time.sleep(5)  # into the start of the engine
            asked = time.monotonic()
            container.signal(signal.SIGTERM)
            ended = container.wait(30)
            _require(ended == 128 + signal.SIGTERM, f"SIGTERM at the start ends it with {ended}:\n{container.said()}")
            self._tell(f"ends at SIGTERM while it starts after {time.monotonic() - asked:.1f} s")
        finally:
            container.remove()

    def _container(self, **given: Any) -> Container:
        return Container(self._work, self._rootfs, self._image, **given)

    def _cache(self, name: str) -> Path:
        """A folder of the image's user, as Docker makes a volume."""
        folder = self._work / f"cache-{name}"
        if not folder.is_dir():
            folder.mkdir()
            os.chown(folder, self._user, self._group)
        return folder


def _ask(port: int, key: str | None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"content-type": "application/json"} | ({} if key is None else {"authorization": f"Bearer {key}"})
    connection.request("POST", "/v1/chat/completions", json.dumps(QUESTION), headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ImageError(f"nothing happened for {seconds:g} s")
        time.sleep(0.1)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ImageError(otherwise)
