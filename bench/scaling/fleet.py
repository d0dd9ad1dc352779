"""Replicas behind a load balancer, clients that come back when they are refused, and what befalls replicas."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from app import errors
from app.errors import Reason
from bench.scaling.autoscaler import SYNC, Autoscaler, Scaling, manifest
from bench.scaling.ceiling import default
from bench.scaling.events import Clock
from bench.scaling.replica import UNREACHABLE, Replica, Server
from bench.scaling.tally import Limit, Stream, Tally

ATTEMPTS = 3  # of a client, in all: openai's own default, two retries
RETRY_AFTER = float(errors.response(Reason.QUEUE_FULL.status, "").headers["Retry-After"])


def _pod() -> Any:
    return manifest("deployment")["spec"]["template"]["spec"]["containers"][0]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds. start: until a replica that was asked for takes requests. told: until no proxy sends to one that leaves,
    or has died. pause: a replica that leaves takes requests for so long. drain: and then finishes what is in flight."""

    start: float
    told: float
    pause: float
    drain: float

    @classmethod
    def deployed(cls, start: float) -> Times:
        pod = _pod()
        return cls(
            start,
            float(pod["readinessProbe"]["periodSeconds"] * pod["readinessProbe"]["failureThreshold"]),
            float(pod["lifecycle"]["preStop"]["sleep"]["seconds"]),
            float(default("drain_seconds")),
        )


class Fleet:
    """The whole of it. balancer: ``round robin``, or ``least``: the replica with the fewest connections."""

    def __init__(
        self,
        server: Server,
        replicas: int,
        times: Times,
        arrivals: Iterator[Stream],
        *,
        balancer: str = "round robin",
        scaling: Scaling | None = None,
        seed: int = 0,
    ) -> None:
        self.clock = Clock()
        self.tally = Tally(self.clock)
        self._server, self._times, self._arrivals, self._balancer = server, times, arrivals, balancer
        self._random = random.Random(seed)
        self._numbers, self._turn = 0, 0
        self.replicas: list[Replica] = []  # ready
        self._sent_to: list[Replica] = []  # by the balancer: it learns of an end late
        self._starting = 0
        self._more = True  # arrivals
        for _ in range(replicas):
            self._ready()
        self._autoscaler = None if scaling is None else Autoscaler(scaling, replicas)
        if self._autoscaler is not None:
            self.clock.at(self._autoscaler.scaling.interval, self._scrape)
            self.clock.at(SYNC, self._sync)
        self._next()

    def run(self) -> Tally:
        """To the end of all streams."""
        self.clock.run()
        for replica in self.replicas:
            self.tally.there += self.clock.now - replica.since
        return self.tally

    # Clients.

    def _next(self) -> None:
        stream = next(self._arrivals, None)
        if stream is None:
            self._more = False
        else:
            self.clock.at(stream.arrived, self._arrive, stream)

    def _arrive(self, stream: Stream) -> None:
        self.tally.arrived += 1
        self._send(stream)
        self._next()

    def _send(self, stream: Stream) -> None:
        stream.sent += 1
        pool = self._sent_to
        if not pool:
            self.refused(stream, UNREACHABLE)
        elif self._balancer == "round robin":
            self._turn += 1
            pool[self._turn % len(pool)].send(stream)
        else:
            min(pool, key=lambda replica: replica.connections).send(stream)

    def answered(self, stream: Stream) -> None:
        self.tally.answered += 1

    def refused(self, stream: Stream, why: str) -> None:
        """A client waits as long as Retry-After says, and up to as long again, so that not all come at once."""
        self.tally.refusals[why] += 1
        if why == UNREACHABLE:
            self.tally.reach(Limit.REPLICAS)
        if stream.sent >= ATTEMPTS:
            self.tally.rejected[why] += 1
        else:
            self.tally.retries += 1
            self.clock.at(self.clock.now + RETRY_AFTER * (1 + self._random.random()), self._send, stream)

    # Replicas.

    def _ready(self) -> None:
        replica = Replica(self._numbers, self._server, self.clock, self.tally, self)
        self._numbers += 1
        self.replicas.append(replica)
        self._sent_to.append(replica)
        self.tally.replicas.append((self.clock.now, len(self.replicas)))

    def _start(self) -> None:
        def ready() -> None:
            self._starting -= 1
            if self._outstanding:
                self._ready()

        self._starting += 1
        self.clock.at(self.clock.now + self._times.start, ready)

    def _gone(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        self.tally.replicas.append((self.clock.now, len(self.replicas)))

    def _forget(self, replica: Replica) -> None:
        if replica in self._sent_to:
            self._sent_to.remove(replica)

    def drain(self, replace: bool = True) -> None:
        """The oldest replica is told to end, as by Kubernetes; another is started for it."""
        replica, times, now = self.replicas[0], self._times, self.clock.now
        self._gone(replica)
        self.clock.at(now + times.told, self._forget, replica)
        self.clock.at(now + times.pause, replica.drain, times.drain)
        if replace:
            self._start()

    def kill(self) -> int:
        """The oldest replica is gone without a word, and is started again; returns how many streams it had."""
        replica = self.replicas[0]
        self._gone(replica)
        lost = replica.end("kill")
        self.clock.at(self.clock.now + self._times.told, self._forget, replica)
        self._start()
        return lost

    # The autoscaler.

    @property
    def _outstanding(self) -> bool:
        return self._more or self.tally.open > 0

    def _scrape(self) -> None:
        if self._autoscaler is None or not self._outstanding:
            return
        waiting = self._autoscaler.scaling.metric == "waiting"
        read = ((one.number, len(one.engine.waiting) if waiting else one.admission.answers) for one in self.replicas)
        self._autoscaler.read(self.clock.now, read)
        self.clock.at(self.clock.now + self._autoscaler.scaling.interval, self._scrape)

    def _sync(self) -> None:
        if self._autoscaler is None or not self._outstanding:
            return
        replicas = len(self.replicas) + self._starting
        wanted = self._autoscaler.desired(self.clock.now, replicas)
        for _ in range(wanted - replicas):
            self._start()
        for _ in range(replicas - wanted):
            self.drain(replace=False)
        self.clock.at(self.clock.now + SYNC, self._sync)
