"""Another calibration of the probe, taken up while the server runs: what SIGHUP asks for.

The neurons that are read are fixed when the engine starts; what is made of them is not. Requests that have begun keep
the probe that their options were read for, to their last byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.protocols.routes import Guard
from app.telemetry.metrics import Metrics
from guard.engine.client import GuardedEngine
from guard.errors import GuardError
from guard.launch.engines import warn
from guard.probe.bundle import Bundle


class ProbeExchange:
    """Holds what guards a request that begins now.

    read: the bundle that the settings name, as it stands there now. guard_of: what all guarded routes share, with a
    bundle. Both raise GuardError for what cannot be served.
    """

    def __init__(
        self, engine: GuardedEngine, read: Callable[[], Bundle], guard_of: Callable[[Bundle], Guard], metrics: Metrics
    ) -> None:
        self._engine, self._read, self._guard_of, self._metrics = engine, read, guard_of, metrics
        self._guard = guard_of(engine.bundle)
        self._one_at_a_time = asyncio.Lock()

    def current(self) -> Guard:
        return self._guard

    @property
    def bundle(self) -> Bundle:
        return self._guard.resolver.bundle

    async def __call__(self) -> None:
        """Take up the bundle that is there now. One that cannot be served is refused in a line, and changes nothing."""
        async with self._one_at_a_time:
            before = self.bundle
            try:
                bundle = await asyncio.to_thread(self._read)
                if bundle.revision == before.revision:
                    print(f"hguard: probe {_named(before)} is the one that serves: nothing to exchange", flush=True)
                    return
                made = self._guard_of(bundle)
                self._engine.adopt(bundle, made.resolver.policy)
            except (GuardError, OSError) as error:
                self._metrics.exchanged(None)
                warn(f"the probe was not exchanged, {_named(before)} serves on: {error}")
                return
            self._guard = made
            self._metrics.exchanged(bundle)
            print(
                f"hguard: probe {_named(bundle)} serves from now on; requests that have begun keep {_named(before)}",
                flush=True,
            )


def _named(bundle: Bundle) -> str:
    return f"{bundle.card.id} ({bundle.revision})"
