"""What became of the streams of one run, and which limit was reached first."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from bench.scaling.events import Clock

LATE = 1.0  # seconds of an API process's work that wait for it: from then on it counts as a limit


class Limit(StrEnum):
    """What there may be too little of."""

    BATCH = "engine batch"  # a request waits for a row of the step
    QUEUE = "queue"  # 503: capacity is rows and queue
    SLOTS = "score slots"  # 503: capacity is --slots
    CALLER = "requests of one key"  # 429
    API = "API process"  # LATE
    DESCRIPTORS = "descriptors"  # a connection more than the process may have
    REPLICAS = "replicas"  # sent to none, or to one that is not there


@dataclass(slots=True)
class Stream:
    """One caller's request. prompt, tokens: of it and of its answer. sent: how often."""

    number: int
    prompt: int
    tokens: int
    caller: int
    arrived: float
    sent: int = 0
    entered: float = 0.0  # the engine's queue, the last time


@dataclass
class Tally:
    """Counts of streams and seconds; every stream that arrived is answered, rejected or lost in the end."""

    clock: Clock
    arrived: int = 0
    answered: int = 0
    tokens: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # gave up, by what refused them last
    refusals: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    lost: Counter[str] = field(default_factory=Counter)  # by how their replica ended
    first: list[float] = field(default_factory=list)  # seconds to the first token, from the first time that it was sent
    waits: list[float] = field(default_factory=list)  # seconds in the engine's queue
    in_flight: int = 0
    most_in_flight: int = 0
    most_of_replica: int = 0
    most_connections: int = 0
    reached: dict[Limit, float] = field(default_factory=dict)
    replicas: list[tuple[float, int]] = field(default_factory=list)  # that take requests
    busy: defaultdict[str, float] = field(
        default_factory=lambda: defaultdict(float)
    )  # seconds of the API process, and of rows, as shares
    there: float = 0.0  # seconds of replicas, from ready to their end

    @property
    def open(self) -> int:
        return self.arrived - self.answered - self.rejected.total() - self.lost.total()

    def reach(self, limit: Limit) -> None:
        """A limit binds now; only the first time counts."""
        if limit not in self.reached:
            self.reached[limit] = self.clock.now

    def admitted(self, of_replica: int) -> None:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.most_of_replica = max(self.most_of_replica, of_replica)

    def summary(self) -> dict[str, Any]:
        """For JSON; times in seconds."""
        order = sorted(self.reached.items(), key=lambda one: one[1])
        return {
            "arrived": self.arrived,
            "answered": self.answered,
            "rejected": dict(sorted(self.rejected.items())),
            "refusals": dict(sorted(self.refusals.items())),
            "retries": self.retries,
            "lost": dict(sorted(self.lost.items())),
            "seconds": round(self.clock.now, 1),
            "tokens_per_second": round(self.tokens / self.clock.now, 1),
            "first_token": _quantiles(self.first),
            "queue_wait": _quantiles(self.waits),
            "most_in_flight": self.most_in_flight,
            "most_of_replica": self.most_of_replica,
            "most_connections": self.most_connections,
            "busy": {name: round(seconds / self.there, 3) for name, seconds in sorted(self.busy.items())},
            "reached": [{"limit": limit.value, "at": round(time, 1)} for limit, time in order],
            "replicas": [[round(time, 1), count] for time, count in self.replicas],
        }


def _quantiles(seconds: list[float]) -> dict[str, float]:
    cuts = np.quantile(seconds, (0.5, 0.99)) if seconds else (0.0, 0.0)
    return {name: round(float(cut), 4) for name, cut in zip(("p50", "p99"), cuts, strict=True)}
