"""Another probe, taken up while the server runs: what SIGHUP asks for.

What is made of the neurons that are read is exchanged at once: requests that have begun keep the probe that their
options were read for, to their last byte. Before other neurons or heads are read, what is in flight comes to its
end, and what comes meanwhile waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from app.protocols.options import PolicyResolver
from app.protocols.routes import Guard
from app.telemetry.metrics import Metrics
from guard.engine.client import GuardedEngine
from guard.errors import GuardError
from guard.launch.engines import self_test_prompt, warn
from guard.launch.retap import retap
from guard.launch.self_test import require_live_taps
from guard.probe.bundle import Bundle

log = logging.getLogger("hguard")


class ProbeExchange:
    """Holds what guards a request that begins now.

    read: the bundle that the settings name, as it stands there now. guard_of: what all guarded routes share, with a
    bundle. Both raise GuardError for what cannot be served. seconds: how long to wait for what is in flight.
    """

    def __init__(
        self,
        engine: GuardedEngine,
        read: Callable[[], Bundle],
        guard_of: Callable[[Bundle], Guard],
        metrics: Metrics,
        seconds: float,
    ) -> None:
        self._engine, self._read, self._guard_of, self._metrics = engine, read, guard_of, metrics
        self._guard, self._seconds = guard_of(engine.bundle), seconds
        self._one_at_a_time, self._settled = asyncio.Lock(), asyncio.Event()
        self._settled.set()

    async def current(self) -> Guard:
        """That of a request which begins now."""
        await self._settled.wait()
        return self._guard

    @property
    def resolver(self) -> PolicyResolver:
        return self._guard.resolver

    @property
    def bundle(self) -> Bundle:
        return self.resolver.bundle

    async def __call__(self) -> None:
        """Take up the bundle that is there now. One that cannot be served is refused in a line, and changes nothing."""
        async with self._one_at_a_time:
            before = self.bundle
            try:
                bundle = await asyncio.to_thread(self._read)
                if bundle.revision == before.revision:
                    print(f"hguard: probe {_named(before)} is the one that serves: nothing to exchange", flush=True)
                    return
                if missing := sorted(bundle.readout.used - self._engine.table.measured):
                    raise GuardError(
                        f"it reads {', '.join(missing)}, which the running engine does not measure: restart the server "
                        "with it"
                    )
                made = self._guard_of(bundle)
                if not bundle.reads_as(before):
                    await self._retap(bundle, before)
                self._engine.adopt(bundle, made.resolver.policy)
                self._guard = made
            except Exception as error:
                if not isinstance(error, GuardError | OSError):
                    log.exception("exchanging the probe failed")
                self._metrics.exchanged(None)
                then = (
                    "and workers may read neither, so nothing is served"
                    if self._engine.traffic.lost
                    else "the old one serves on"
                )
                warn(f"the probe was not exchanged, {then} ({_named(before)}): {error}")
                return
            finally:
                self._settled.set()
            self._metrics.exchanged(bundle)
            print(
                f"hguard: probe {_named(bundle)} serves from now on; requests that have begun keep {_named(before)}",
                flush=True,
            )

    async def _retap(self, bundle: Bundle, before: Bundle) -> None:
        """Read other neurons, if they pass the self-test; else the ones from before."""
        self._settled.clear()
        async with self._engine.traffic.paused(self._seconds):
            try:
                await retap(self._engine, bundle)
                await require_live_taps(self._engine, self_test_prompt(self._engine))
            except BaseException:
                await retap(self._engine, before)
                raise


def _named(bundle: Bundle) -> str:
    return f"{bundle.card.id} ({bundle.revision})"
