"""The runs of the simulation: 100,000 streams each.

Two servers. ``atlas``: on a CPU, with the step times and the API process's costs of ``bench/results``. ``short``: what
a GPU would do to the same API process; steps of 10 ms and a prompt's tokens at the H100's peak are parameters, and not
measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.scaling import recorded, roofline
from bench.scaling.arrivals import Lengths, Rate, burst, poisson, ramp, steady
from bench.scaling.autoscaler import Policy, Scaling
from bench.scaling.ceiling import DESCRIPTORS, STREAMS, default
from bench.scaling.events import in_no_task
from bench.scaling.fleet import Fleet, Times
from bench.scaling.recorded import StepTime
from bench.scaling.replica import Server
from bench.scaling.tally import Stream, Tally

SEED = 26
START = 60.0  # seconds from asking for a replica to its first request: an assumption, as no file here records it
FULL, HALF = 0.8, 0.6  # of what the engines can do
MANY = 8  # replicas

SHORT = 0.010  # seconds of a step
_8B = roofline.SHAPES[0]

DRAINED = f"{FULL:.0%} of what eight API processes carry of long answers, one replica drains"
NO_QUEUE = "the same with as many score slots as rows, so that nothing can wait in the engine"
IN_FLIGHT = "the same, autoscaled on answers in flight: a third of the rows"
FASTER = "the same, without a window, two replicas in 60 s"
TWO = "the same with two API processes a replica, which the guard refuses today"


def _server(step: StepTime, clients: int, rows: int, budget: int) -> Server:
    return Server(
        step,
        recorded.api_cost(clients),
        rows,
        budget,
        slots=default("slots"),
        per_caller=default("max_concurrent_requests"),
        queue=default("max_queue"),
        descriptors=DESCRIPTORS,
    )


def atlas() -> Server:
    """As many rows as were recorded; 2048 tokens a step are vLLM's on a CPU."""
    return _server(recorded.step_time(), clients=64, rows=64, budget=2048)


def short() -> Server:
    prompt = 2 * _8B.weights / roofline.TENSOR
    return _server(StepTime(SHORT, 0.0, prompt), clients=256, rows=256, budget=roofline.ROWS)


ATLAS_LENGTHS = Lengths(64, 64, 1024)  # means of the runs that the step times come from
SHORT_LENGTHS = Lengths(256, 128, 4096)
LONG = Lengths(256, 1024, default("max_tokens"))


@dataclass(frozen=True, slots=True)
class Scenario:
    """A run. rate: of arrivals; most: its highest. event: what befalls the fleet after ``at`` seconds."""

    name: str
    says: str
    server: Server
    lengths: Lengths
    replicas: int
    rate: Rate
    most: float
    balancer: str = "round robin"
    scaling: Scaling | None = None
    event: Callable[[Fleet], Any] | None = None
    at: float = 120.0

    def arrivals(self, count: int, seed: int) -> Iterator[Stream]:
        return poisson(count, self.rate, self.most, self.lengths, seed)

    def fleet(self, count: int = STREAMS, seed: int = SEED) -> Fleet:
        fleet = Fleet(
            self.server,
            self.replicas,
            Times.deployed(START),
            self.arrivals(count, seed),
            balancer=self.balancer,
            scaling=self.scaling,
            seed=seed,
        )
        if self.event is not None:
            fleet.clock.at(self.at, self.event, fleet)
        return fleet

    def run(self, count: int = STREAMS, seed: int = SEED) -> Tally:
        return in_no_task(lambda: self.fleet(count, seed).run())

    def given(self) -> dict[str, Any]:
        """What the run is of, for the file."""
        one = self.server.streams_per_second(self.lengths.tokens, self.lengths.prompt)
        scaled = None if self.scaling is None else {"metric": self.scaling.metric, "target": self.scaling.target}
        return {
            "name": self.name,
            "says": self.says,
            "event_at": None if self.event is None else self.at,
            "replicas_at_first": self.replicas,
            "balancer": self.balancer,
            "scaling": scaled,
            "most_streams_per_second": round(self.most, 1),
            "engine_streams_per_second": round(one, 1),
            "limits": self.server.limits,
            "lengths": asdict(self.lengths),
        }

    def result(self) -> dict[str, Any]:
        """What the run is of, and what it did."""
        return {**self.given(), **self.run().summary()}


def scenarios() -> Iterator[Scenario]:
    yield from _recorded(atlas(), ATLAS_LENGTHS)
    yield from _short(short(), SHORT_LENGTHS)


def _recorded(server: Server, lengths: Lengths) -> Iterator[Scenario]:
    one = server.streams_per_second(lengths.tokens, lengths.prompt)
    full, half = FULL * one * MANY, HALF * one * MANY
    steadily = Scenario("steady", f"{FULL:.0%} of what eight engines can do", server, lengths, MANY, steady(full), full)
    yield steadily
    says = f"{HALF:.0%}, and four times as much for 20 s"
    bursting = Scenario("burst", says, server, lengths, MANY, burst(half, 4, start=60, seconds=20), 4 * half)
    yield bursting
    yield replace(bursting, name="burst, least", says="the same, each to the replica with the fewest", balancer="least")
    scaling = Scaling.deployed()
    rate = ramp(HALF * one * scaling.least, full, 400)
    says = f"from {HALF:.0%} of two engines to {FULL:.0%} of eight in 400 s, autoscaled"
    rising = Scenario("ramp", says, server, lengths, scaling.least, rate, full, scaling=scaling)
    yield rising
    yield replace(rising, name="ramp, no queue", says=NO_QUEUE, server=replace(server, slots=server.rows))
    yield replace(rising, name="ramp, in flight", says=IN_FLIGHT, scaling=scaling.on_in_flight(server.rows / 3))
    faster = replace(scaling.on_in_flight(server.rows / 3), up=Policy(window=0, pods=2, period=60))
    yield replace(rising, name="ramp, in flight, faster", says=FASTER, scaling=faster)
    yield replace(steadily, name="drain", says=f"{FULL:.0%}, one replica drains", event=Fleet.drain)
    killed = replace(steadily, name="kill", says=f"{FULL:.0%}, one replica is killed", event=Fleet.kill)
    yield killed
    yield replace(killed, name="kill, least", says="the same, each to the replica with the fewest", balancer="least")


def _short(server: Server, lengths: Lengths) -> Iterator[Scenario]:
    replicas = MANY // 2
    full = FULL * replicas * server.streams_per_second(lengths.tokens, lengths.prompt)
    scaling = replace(Scaling.deployed(), least=replicas)
    says = f"{FULL:.0%} of what four engines can do, autoscaled"
    alone = Scenario("short steps", says, server, lengths, replicas, steady(full), full, scaling=scaling)
    yield alone
    yield replace(alone, name="short steps, in flight", says=IN_FLIGHT, scaling=scaling.on_in_flight(server.rows / 3))
    yield replace(alone, name="short steps, eight", says="the same on eight replicas from the start", replicas=MANY)
    yield replace(alone, name="short steps, two processes", says=TWO, server=replace(server, processes=2))
    # As many as eight API processes carry at FULL, where answers are so long.
    carried = FULL * MANY / (server.api.request + server.api.frame * LONG.tokens)
    yield Scenario("drain, long answers", DRAINED, server, LONG, MANY, steady(carried), carried, event=Fleet.drain)
