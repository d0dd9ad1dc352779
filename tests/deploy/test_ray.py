"""Two replicas behind Ray Serve, one of which is killed while both answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: `make test-long` does")
from ray import serve  # noqa: E402 - only where it is installed

from app.settings import Settings  # noqa: E402
from deploy.ray.replicas import GuardedServer, app  # noqa: E402
from guard.errors import UnsupportedError  # noqa: E402
from tests.engine.server import free_port  # noqa: E402

pytestmark = pytest.mark.long
CLIENTS = 12
KEY = "of-the-shell"
HEADERS = {"authorization": f"Bearer {KEY}"}
BODY = {
    "model": "atlas",
    "messages": [{"role": "user", "content": "Which country is Kandy in?"}],
    "stream": True,
    "max_tokens": 96,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port()
    os.environ["RAY_AUTH_MODE"] = "disabled"  # a cluster of one machine, for the length of a test
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    with pytest.MonkeyPatch.context() as shell:  # the cluster runs already, and knows nothing of these
        shell.setenv("HGUARD_API_KEYS", KEY)
        shell.setenv("HGUARD_MODE", "abstain")
        bound = app({"replicas": "2"})
    serve.run(bound, route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


async def ask(http: httpx.AsyncClient) -> tuple[str | None, bool]:
    """(the replica that answered, whether it did so to the end, with a verdict)."""
    replica = None
    try:
        async with http.stream("POST", "/v1/chat/completions", json=BODY, headers=HEADERS) as response:
            replica = response.headers.get("x-hguard-replica")
            text = (await response.aread()).decode()
    except httpx.HTTPError:
        return replica, False
    frames = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    scored = any(frame.get("hallucination", {}).get("type") == "hallucination_results" for frame in frames)
    return replica, response.status_code == 200 and scored and text.rstrip().endswith("data: [DONE]")


async def load(url: str, seconds: float, kill: Any) -> list[tuple[str | None, bool]]:
    """What every request of the clients came to; half way, ``kill`` is called."""
    until = time.monotonic() + seconds
    seen: list[tuple[str | None, bool]] = []

    async def client() -> None:
        while time.monotonic() < until:
            seen.append(await ask(http))

    async def killer() -> None:
        await asyncio.sleep(seconds / 2)
        kill()

    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        await asyncio.gather(*(client() for _ in range(CLIENTS)), killer())
    return seen


def kill_one() -> None:
    replicas = [one for one in psutil.process_iter() if "ServeReplica" in "".join(one.cmdline()[:1])]
    assert len(replicas) == 2
    replicas[0].send_signal(signal.SIGKILL)


def test_replicas_have_the_settings_of_the_shell_that_bound_them(url: str) -> None:
    body = {**BODY, "stream": False, "max_tokens": 4}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).status_code == 401
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=HEADERS, timeout=120)
    assert answer.status_code == 200
    assert answer.json()["hallucination"]["mode"] == "abstain"


async def test_the_other_one_s_requests_are_not_lost(url: str) -> None:
    seen = await load(url, 20, kill_one)
    both = {replica for replica, _ in seen if replica}
    assert len(both) == 2, "the load went to one replica only"
    broken = {replica for replica, whole in seen if replica and not whole}
    assert len(broken) == 1, "somebody was answered by the one that died, and nobody else lost anything"
    (survivor,) = both - broken
    assert sum(replica == survivor for replica, _ in seen) > CLIENTS
    # Those without a replica's name had not been answered yet: at most one of each client, when it died.
    assert sum(replica is None for replica, _ in seen) <= CLIENTS

    after = [await ask(http) for http in [httpx.AsyncClient(base_url=url, timeout=120)] for _ in range(8)]
    assert all(whole for _, whole in after)


def test_nobody_listens_without_keys() -> None:
    with pytest.raises(UnsupportedError, match="there are no keys"):
        app({"replicas": "1"})


async def test_a_replica_without_keys_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever bound it, and whatever its own environment holds."""
    server = GuardedServer(Settings(), [])
    monkeypatch.setenv("HGUARD_API_KEYS", "of-the-replica")
    said: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        said.append(message)

    await server({"type": "lifespan"}, receive, send)
    (failed,) = said
    assert failed["type"] == "lifespan.startup.failed"
    assert "there are no keys" in failed["message"]
