"""The runs of the simulation: 100,000 streams each.

Three servers. ``atlas``: on a CPU, with the step times and the API process's costs of ``bench/results``. ``short``:
what a GPU would do to the same API process; steps of 10 ms and a prompt's tokens at the H100's peak are parameters, and
not measured. ``paper``: an 8B model on an H100, as the roofline has it, with the rows that vLLM runs there by default.
"""

from __future__ import annotations

import math
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
H100 = 1024  # rows that vLLM runs there by default: as many as there are score slots

# What the manifests had before: on what waits in the engine, with a window, slower.
WAITING = Scaling(2, 8, 4.0, Policy(60, 2, 180), Policy(600, 1, 300), average=60.0, interval=15.0, metric="waiting")
SLOW = 180.0  # seconds for a replica to start, in one run

DRAINED = f"{FULL:.0%} of what eight API processes carry of long answers, one replica drains"
NO_QUEUE = "as the ramp, with as many score slots as rows, so that nothing can wait in the engine"
BEFORE = "the same, autoscaled as before"
TWO = "the same on four with two API processes each, which the guard refuses today"


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


def paper() -> Server:
    """Its steps, of which nothing but the bytes of their rows grows, lie on a line."""
    least, *_, most = (step for step in roofline.steps() if step["shape"] == _8B.name)
    first, last = (1e-3 * (step["model"]["milliseconds"] + step["guard"]["milliseconds"]) for step in (least, most))
    each = (last - first) / (most["batch"] - least["batch"])
    server = short()
    return replace(server, step=StepTime(first - each * least["batch"], each, server.step.prompt), rows=H100)


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
    start: float = START

    def arrivals(self, count: int, seed: int) -> Iterator[Stream]:
        return poisson(count, self.rate, self.most, self.lengths, seed)

    def fleet(self, count: int = STREAMS, seed: int = SEED) -> Fleet:
        fleet = Fleet(
            self.server,
            self.replicas,
            Times.deployed(self.start),
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
            "start_seconds": self.start,
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
    yield from _paper(paper(), SHORT_LENGTHS)


def _recorded(server: Server, lengths: Lengths) -> Iterator[Scenario]:
    one = server.streams_per_second(lengths.tokens, lengths.prompt)
    full, half = FULL * one * MANY, HALF * one * MANY
    steadily = Scenario("steady", f"{FULL:.0%} of what eight engines can do", server, lengths, MANY, steady(full), full)
    yield steadily
    says = f"{HALF:.0%}, and four times as much for 20 s"
    bursting = Scenario("burst", says, server, lengths, MANY, burst(half, 4, start=60, seconds=20), 4 * half)
    yield bursting
    yield replace(bursting, name="burst, least", says="the same, each to the replica with the fewest", balancer="least")
    yield from _ramps(server, lengths, full)
    yield replace(steadily, name="drain", says=f"{FULL:.0%}, one replica drains", event=Fleet.drain)
    killed = replace(steadily, name="kill", says=f"{FULL:.0%}, one replica is killed", event=Fleet.kill)
    yield killed
    yield replace(killed, name="kill, least", says="the same, each to the replica with the fewest", balancer="least")


def _ramps(server: Server, lengths: Lengths, full: float) -> Iterator[Scenario]:
    manifest = Scaling.deployed()
    scaling = replace(manifest, target=math.floor(server.target(lengths.tokens)))
    low = HALF * server.streams_per_second(lengths.tokens, lengths.prompt) * scaling.least
    says = f"from {HALF:.0%} of two engines to {FULL:.0%} of eight in 400 s, autoscaled at {scaling.target} in flight"
    rising = Scenario("ramp", says, server, lengths, scaling.least, ramp(low, full, 400), full, scaling=scaling)
    yield rising
    yield replace(rising, name="ramp, before", says=BEFORE, scaling=WAITING)
    crowded = replace(rising, name="ramp, no queue", says=NO_QUEUE, server=replace(server, slots=server.rows))
    yield crowded
    yield replace(crowded, name="ramp, no queue, before", says=BEFORE, scaling=WAITING)
    says = "as the ramp, with window and policy from before"
    yield replace(rising, name="ramp, old policy", says=says, scaling=replace(scaling, up=WAITING.up))
    says = f"as the ramp, with the manifest's target, which is too high for so few rows: {manifest.target:g}"
    yield replace(rising, name="ramp, target not set", says=says, scaling=manifest)
    yield replace(rising, name="ramp, slow start", says=f"as the ramp, {SLOW:g} s to start a replica", start=SLOW)


def _short(server: Server, lengths: Lengths) -> Iterator[Scenario]:
    replicas = MANY // 2
    full = FULL * replicas * server.streams_per_second(lengths.tokens, lengths.prompt)
    scaling = Scaling.deployed()
    says = f"{FULL:.0%} of what four engines can do, autoscaled at {scaling.target:g} in flight"
    alone = Scenario("short steps", says, server, lengths, replicas, steady(full), full)
    yield replace(alone, scaling=replace(scaling, least=replicas))
    yield replace(alone, name="short steps, before", says=BEFORE, scaling=replace(WAITING, least=replicas))
    yield replace(alone, name="short steps, eight", says="the same on eight replicas, not autoscaled", replicas=MANY)
    yield replace(alone, name="short steps, two processes", says=TWO, server=replace(server, processes=2))
    # As many as eight API processes carry at FULL, where answers are so long.
    carried = FULL * MANY / (server.api.request + server.api.frame * LONG.tokens)
    yield Scenario("drain, long answers", DRAINED, server, LONG, MANY, steady(carried), carried, event=Fleet.drain)


def _paper(server: Server, lengths: Lengths) -> Iterator[Scenario]:
    scaling = Scaling.deployed()
    one = 1 / (server.api.request + server.api.frame * lengths.tokens)  # streams a second of an API process
    low, high = HALF * one * scaling.least, FULL * one * MANY
    span = f"from {HALF:.0%} of two API processes to {FULL:.0%} of eight in 400 s"
    says = f"{span}, autoscaled at {scaling.target:g} in flight"
    rising = Scenario("H100 ramp", says, server, lengths, scaling.least, ramp(low, high, 400), high, scaling=scaling)
    yield rising
    yield replace(rising, name="H100 ramp, before", says=BEFORE, scaling=WAITING)
    third = server.per_caller // 3
    says = f"as the H100 ramp, at a third of what one key may have, as if the API process were no bound: {third}"
    yield replace(rising, name="H100 ramp, a third", says=says, scaling=replace(scaling, target=third))
