"""Replicas of a guarded server behind Ray Serve, where Ray is there already.

    HGUARD_API_KEYS=... serve run deploy.ray.replicas:app replicas=2 model=atlas

Each replica is a whole server: its own engine, score table, admission and self-test. Ray's proxy spreads requests over
them, replaces one that has died, and drains one that leaves. Arguments are settings of ``hguard serve``, besides
``replicas``, ``cpus`` and ``gpus`` (of each replica) and ``engine`` (arguments for vLLM, as after ``--``). Settings are
read once, where the deployment is bound: a replica has them from there, whatever its own environment says.
"""

from __future__ import annotations

import os
import shlex
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp, Receive, Scope, Send

from app.ingress import auth
from app.settings import Settings
from guard.errors import GuardError, UnsupportedError

OWN = ("replicas", "cpus", "gpus", "engine")
REPLICA_HEADER = b"x-hguard-replica"  # which one answered: for logs and tests


_engine: Any = None  # this process's: Ray hands the app and the class below to a replica as copies of their own


def require_alive() -> None:
    """Raises RuntimeError when this replica's engine has died: then Ray replaces the replica."""
    if _engine is not None and _engine.errored:
        raise RuntimeError("the engine has died")


def require_keys(settings: Settings) -> None:
    """Raises UnsupportedError where everyone would be let in and nobody said so."""
    if not (settings.api_keys or settings.allow_unauthenticated):
        raise UnsupportedError(f"Ray's proxy lets in whoever reaches it, and there are no keys: {auth.REMEDY}")


class GuardedServer:
    """The server as an ASGI app that starts its engine when Ray starts the replica (ASGI's lifespan)."""

    def __init__(self, settings: Settings, engine: list[str]) -> None:
        self._settings, self._engine_arguments = settings, engine
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        assert self._app is not None
        name = serve.get_replica_context().replica_id.unique_id.encode()

        async def named(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (REPLICA_HEADER, name)]}
            await send(message)

        await self._app(scope, receive, named)

    async def _live(self, receive: Receive, send: Send) -> None:
        from app.server.app import guarded_app, plan

        await receive()
        try:
            require_keys(self._settings)
            prepared = plan(self._settings, self._engine_arguments)
            os.environ.pop(auth.VARIABLE, None)  # the engine's processes need no keys
            async with guarded_app(prepared) as app:
                self._app = app
                global _engine
                _engine = app.state.engine_client
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except (GuardError, RuntimeError) as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
        else:
            await send({"type": "lifespan.shutdown.complete"})


def app(arguments: dict[str, str]) -> Application:
    """What ``serve run`` and Ray's configuration files start. Raises UnsupportedError without keys."""
    values: dict[str, Any] = {name: value for name, value in arguments.items() if name not in OWN}
    settings = Settings(**values)
    require_keys(settings)
    server = GuardedServer(settings, shlex.split(arguments.get("engine", "")))
    # Whom a replica has no room for it refuses itself, in time and with Retry-After; Ray would let them wait.
    most = settings.max_concurrent_requests + 1

    @serve.ingress(server)
    class Replica:
        def check_health(self) -> None:
            from deploy.ray.replicas import require_alive

            require_alive()

    deployment = serve.deployment(
        name="hguard",
        num_replicas=int(arguments.get("replicas", "1")),
        max_ongoing_requests=most,
        ray_actor_options={
            "num_cpus": float(arguments.get("cpus", "1")),
            "num_gpus": float(arguments.get("gpus", "0")),
        },
        graceful_shutdown_timeout_s=settings.drain_seconds + 10,
        health_check_period_s=5,
    )
    return deployment(Replica).bind()
