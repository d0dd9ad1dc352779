"""Replicas simulated: nothing vanishes, queues wait as theory says, and the page says what the files do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from app.ingress.admission import Admission, Pacer
from bench import report
from bench.scaling import ceiling, closed_loop, recorded, roofline
from bench.scaling.__main__ import FOLDER, inputs
from bench.scaling.arrivals import Lengths, poisson, steady
from bench.scaling.autoscaler import MANIFESTS, SYNC, Autoscaler, Scaling, manifest
from bench.scaling.events import Clock, in_no_task
from bench.scaling.fleet import Fleet, Times
from bench.scaling.recorded import ApiCost, StepTime
from bench.scaling.replica import UNREACHABLE, Replica, Server
from bench.scaling.scenarios import H100, WAITING, atlas, paper, scenarios, short
from bench.scaling.tally import Limit, Stream, Tally

LENGTHS = Lengths(prompt=20, tokens=10, longest=200)
SERVER = Server(StepTime(0.01, 0, 0), ApiCost(0.002, 0.0002, 0.0005), rows=8, budget=100, slots=99, per_caller=99)
BEHIND = replace(SERVER, api=ApiCost(0.01, 0.01, 0))  # an API process that does not keep up
FREE = ApiCost(0, 0, 0)
TIMES = Times(start=2, told=0.5, pause=1, drain=30)
BRIEF = replace(TIMES, told=2, drain=0)  # the balancer still sends when the drain begins, which waits for nobody
FITS = 2 * SERVER.streams_per_second(LENGTHS.tokens, LENGTHS.prompt)  # streams a second of two replicas


def fleet(count: int = 2000, load: float = 0.7, server: Server = SERVER, times: Times = TIMES, **more: Any) -> Fleet:
    rate, seed = load * FITS, more.pop("seed", 1)
    return Fleet(server, 2, times, poisson(count, steady(rate), rate, LENGTHS, seed), seed=seed, **more)


def run(made: Callable[[], Fleet], *events: tuple[float, Callable[[Fleet], Any]]) -> tuple[Tally, list[Any]]:
    """The fleet's tally, and what the events returned."""
    returned: list[Any] = []

    def work() -> Tally:
        one = made()
        for time, event in events:
            one.clock.at(time, lambda event=event: returned.append(event(one)))  # type: ignore[misc]
        return one.run()

    return in_no_task(work), returned


def oldest_in_flight(one: Fleet) -> int:
    return one.replicas[0].in_flight


SCALED = replace(Scaling.deployed(), least=2, target=2, up=replace(Scaling.deployed().up, window=0))


@pytest.mark.parametrize(
    ("made", "events", "ends"),
    [
        (lambda: fleet(load=0.7), [], {"answered"}),
        (lambda: fleet(load=5), [], {"answered", "rejected"}),
        (lambda: fleet(load=5, balancer="least", server=replace(SERVER, per_caller=6)), [], {"answered", "rejected"}),
        (lambda: fleet(load=3, server=BEHIND), [], {"answered", "rejected"}),
        (lambda: fleet(load=3, scaling=SCALED), [], {"answered", "rejected"}),
        (lambda: fleet(), [(2.0, Fleet.kill)], {"answered", "lost"}),
        (lambda: fleet(load=3), [(2.0, Fleet.kill), (2.5, Fleet.kill)], {"answered", "rejected", "lost"}),
        (lambda: fleet(load=3, server=BEHIND), [(2.0, Fleet.kill)], {"answered", "rejected", "lost"}),
        (lambda: fleet(times=BRIEF), [(2.0, Fleet.drain)], {"answered", "lost"}),
    ],
    ids=[
        "calm",
        "overload",
        "one key",
        "API process",
        "scaled",
        "kill",
        "both killed",
        "killed behind",
        "drain cut short",
    ],
)
def test_every_arrival_is_answered_rejected_or_lost(made: Any, events: Any, ends: set[str]) -> None:
    tally, _ = run(made, *events)
    counts = {"answered": tally.answered, "rejected": tally.rejected.total(), "lost": tally.lost.total()}
    assert tally.arrived == 2000
    assert sum(counts.values()) == 2000
    assert {name for name, count in counts.items() if count} == ends
    assert tally.refusals.total() == tally.retries + tally.rejected.total()
    assert tally.in_flight == 0
    assert len(tally.first) >= tally.answered


def test_the_same_seed_is_the_same_run() -> None:
    first, again, other = (run(lambda seed=seed: fleet(load=2, seed=seed))[0].summary() for seed in (1, 1, 2))  # type: ignore[misc]
    assert first == again
    assert first != other


@pytest.mark.parametrize("mean", [1, 6])
def test_a_queue_waits_as_pollaczek_and_khinchine_say(mean: int) -> None:
    """One row, whose service time is an answer's tokens: the same for all (M/D/1), or geometric (M/G/1)."""
    step, load, p = 0.01, 0.7, 1 / mean
    rate = load / (step * mean)
    server = replace(SERVER, step=StepTime(step, 0, 0), api=FREE, rows=1, queue=10**6, slots=10**6, per_caller=10**6)
    lengths = Lengths(1, mean, 10**6)
    made = poisson(30_000, steady(rate), rate, lengths, seed=3)
    tally, _ = run(lambda: Fleet(server, 1, TIMES, made))
    second_moment = step**2 * (2 - p) / p**2
    expected = rate * second_moment / (2 * (1 - load))
    assert sum(tally.waits) / len(tally.waits) == pytest.approx(expected, rel=0.08)
    assert tally.busy["rows"] / tally.clock.now == pytest.approx(load, rel=0.03)


class Heard:
    """Callers who note what they are told, and when."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.told = clock, list[tuple[int, str, float]]()

    def answered(self, stream: Stream) -> None:
        self.told.append((stream.number, "answered", self.clock.now))

    def refused(self, stream: Stream, why: str) -> None:
        self.told.append((stream.number, why, self.clock.now))


def sent(server: Server, callers: list[int]) -> tuple[Heard, Tally, Replica]:
    """All at once to one replica."""
    clock = Clock()
    tally, heard = Tally(clock), Heard(clock)

    def work() -> Replica:
        one = Replica(0, server, clock, tally, heard)
        for number, caller in enumerate(callers):
            one.send(Stream(number, 1, 50, caller, 0.0))
        clock.run()
        return one

    return heard, tally, in_no_task(work)


def test_who_is_let_in_is_decided_by_the_server_s_own_admission() -> None:
    server = replace(SERVER, rows=2, queue=1, per_caller=2)
    heard, tally, one = sent(server, [0, 0, 0, 1, 2])
    assert isinstance(one.admission, Admission)
    assert (one.admission.requests_per_caller, one.admission.capacity) == (2, 3)
    told = {number: what for number, what, _ in heard.told}
    assert told == {0: "answered", 1: "answered", 2: "too_many_requests", 3: "answered", 4: "queue_full"}
    assert {Limit.CALLER, Limit.QUEUE, Limit.BATCH} <= set(tally.reached)
    assert Limit.SLOTS in sent(replace(server, slots=2), [0, 0, 1])[1].reached


def test_refusals_are_paced_as_the_server_s_are() -> None:
    heard, _, _ = sent(replace(SERVER, api=FREE, rows=1, queue=0), [0] * 400)
    pacer = Pacer()
    expected = [pacer.delay(0.0) for _ in range(399)]
    assert [time for _, what, time in heard.told if what == "queue_full"] == pytest.approx(expected)
    assert max(expected) > 0


def test_a_drain_loses_nothing_within_its_time() -> None:
    tally, _ = run(fleet, (2.0, Fleet.drain))
    assert (tally.answered, tally.lost.total()) == (2000, 0)
    assert [count for _, count in tally.replicas] == [1, 2, 1, 2], "another is started in its place"


def test_what_outlasts_a_drain_is_lost_and_nothing_else() -> None:
    leaving: list[Replica] = []
    tally, noted = run(
        lambda: fleet(times=BRIEF),
        (2.0, lambda one: leaving.append(one.replicas[0])),
        (2.0 + BRIEF.pause, lambda one: leaving[0].in_flight),  # before the drain, which was asked for later
        (2.0, Fleet.drain),
    )
    (held,) = (one for one in noted if one is not None)
    assert tally.lost == {"drain": held}
    assert held > 0


def test_a_kill_loses_what_was_in_flight_and_nothing_else() -> None:
    tally, (held, lost) = run(fleet, (2.0, oldest_in_flight), (2.0, Fleet.kill))
    assert held == lost > 0
    assert tally.lost == {"kill": lost}
    assert tally.refusals[UNREACHABLE] > 0, "the balancer learns of it late"
    assert tally.answered + tally.rejected.total() == 2000 - lost


def test_a_balancer_of_fewest_connections_is_drawn_to_the_dead() -> None:
    found = {
        balancer: run(lambda b=balancer: fleet(balancer=b), (2.0, Fleet.kill))[0].refusals[UNREACHABLE]  # type: ignore[misc]
        for balancer in ("round robin", "least")
    }
    assert found["least"] > 1.5 * found["round robin"]


def test_an_api_process_that_is_too_slow_is_the_limit() -> None:
    slow = replace(SERVER, api=replace(SERVER.api, frame=0.004), queue=60)
    tally, _ = run(lambda: fleet(load=0.7, server=slow))
    assert tally.reached[Limit.API] < tally.reached[Limit.QUEUE]
    assert tally.busy["api"] / tally.there > 0.95
    tally, _ = run(lambda: fleet(load=0.7, server=replace(slow, processes=8)))
    assert not {Limit.API, Limit.QUEUE} & set(tally.reached)


class Metric:
    """An autoscaler whose replicas all have one value of the metric."""

    def __init__(self, scaling: Scaling, replicas: int) -> None:
        self.scaler, self.replicas, self.now = Autoscaler(scaling, replicas), replicas, 0.0

    def syncs(self, value: float, seconds: float) -> Iterator[int]:
        until = self.now + seconds
        while self.now < until:
            self.now += SYNC
            self.scaler.read(self.now, ((number, value) for number in range(self.replicas)))
            self.replicas = self.scaler.desired(self.now, self.replicas)
            yield self.replicas


def test_the_autoscaler_keeps_to_the_manifest() -> None:
    spec, scaling = manifest("scaling")["spec"], Scaling.deployed()
    up, down = (spec["behavior"][name] for name in ("scaleUp", "scaleDown"))
    assert (scaling.metric, scaling.up.window) == ("in flight", up["stabilizationWindowSeconds"])
    fleet = Metric(scaling, spec["minReplicas"])
    high = 100 * scaling.target
    (policy,) = up["policies"]
    grown = scaling.least + policy["value"]
    assert set(fleet.syncs(high, policy["periodSeconds"])) == {grown}, "the policy"
    assert list(fleet.syncs(high, 10 * policy["periodSeconds"]))[-1] == spec["maxReplicas"]
    assert set(fleet.syncs(scaling.target, 1000)) == {spec["maxReplicas"]}, "within the tolerance"
    waited = list(fleet.syncs(0, down["stabilizationWindowSeconds"]))
    assert set(waited) == {spec["maxReplicas"]}
    assert set(fleet.syncs(0, SYNC)) == {spec["maxReplicas"] - down["policies"][0]["value"]}
    assert list(fleet.syncs(0, 10_000))[-1] == spec["minReplicas"]


def test_a_window_is_waited_for() -> None:
    fleet = Metric(WAITING, WAITING.least)
    assert set(fleet.syncs(100, WAITING.up.window)) == {WAITING.least}
    assert set(fleet.syncs(100, SYNC)) == {WAITING.least + WAITING.up.pods}


@pytest.mark.parametrize("metric", ["in flight", "waiting"])
def test_replicas_come_for_what_the_metric_counts(metric: str) -> None:
    """One key is refused at its limit before anything waits in the engine."""
    server, scaling = replace(SERVER, per_caller=SERVER.rows), replace(SCALED, metric=metric, most=4)
    tally, _ = run(lambda: fleet(10_000, load=3, server=server, scaling=scaling))
    assert max(count for _, count in tally.replicas) == (4 if metric == "in flight" else 2)


def passed(setting: str) -> int:
    """What the manifests give a server, else its default."""
    (generated,) = manifest("kustomization")["configMapGenerator"]
    given = dict(literal.split("=") for literal in generated["literals"])
    return int(given.get(f"HGUARD_{setting.upper()}", ceiling.default(setting)))


def test_the_target_follows_from_what_the_manifests_pass() -> None:
    (container,) = manifest("deployment")["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["serve", "--host", "0.0.0.0"], "what is set here may bear on the target"
    assert ceiling.default("max_queue") is None
    own = {"slots": passed("slots"), "per_caller": passed("max_concurrent_requests")}
    servers = [replace(paper(), rows=rows, **own) for rows in (256, H100)]  # vLLM's defaults on GPUs
    bound = min(one.target(128) for one in servers)
    assert 0.9 * bound <= Scaling.deployed().target <= bound
    comment = (MANIFESTS / "scaling.yaml").read_text().split("apiVersion")[0]
    said = [f"on paper {paper().keeps_up(128):.0f}", f", {short().keeps_up(128):.0f}\n#   at steps of 10 ms"]
    said += [f"256 / 3 = {256 // 3}", f"55 x 3/4 = {bound:.0f}, so {Scaling.deployed().target:g}"]
    said += [f"--max-num-seqs {atlas().rows}, {atlas().target(64):.0f}"]
    assert [one for one in said if one not in comment] == []


WIDE = {"rows": 300, "slots": 600, "per_caller": 600}


@pytest.mark.parametrize(
    ("changed", "target"),
    [
        ({}, 8 / 3),
        ({"slots": 6}, 6 / 3),
        ({"per_caller": 3}, 3 / 3),
        (WIDE | {"rows": 30}, 30 / 3),
        (WIDE, 25 * 3 / 4),  # frames and requests take 0.4 ms of a step of 10
        (WIDE | {"processes": 2}, 50 * 3 / 4),
        (WIDE | {"step": StepTime(0.01, 0.0005, 0)}, 300 / 3),  # the API process is never too slow
    ],
)
def test_a_target_is_the_least_of_its_bounds(changed: dict[str, Any], target: float) -> None:
    assert replace(SERVER, **changed).target(10) == pytest.approx(target)


def test_a_simulated_engine_is_as_fast_as_the_recorded_one() -> None:
    for one in closed_loop.compared(atlas()):
        assert one["simulated"] == pytest.approx(one["recorded"], rel=0.1), one["clients"]


def test_a_recorded_request_costs_what_was_recorded() -> None:
    result = recorded.read(recorded.API)
    for clients, milliseconds in recorded.values(result, "score", recorded.STREAMED).items():
        cost = recorded.api_cost(clients)
        assert 1e3 * (cost.request + cost.frame * result["load"]["output"]) == pytest.approx(milliseconds)


def test_a_step_on_paper() -> None:
    dense, _, spread, mixture = roofline.SHAPES
    assert dense.weights == pytest.approx(8.03e9, rel=1e-3)  # as the models' cards say
    assert spread.weights == pytest.approx(70.6e9, rel=1e-3)
    assert mixture.weights == pytest.approx(30.5e9, rel=1e-3)
    assert mixture.touched(1) == pytest.approx(mixture.active)
    assert mixture.active < mixture.touched(32) < mixture.touched(10**4) <= mixture.experts
    pieces = {one.piece: one for one in roofline.guard_work(mixture, 8)}
    assert "neurons" not in pieces
    assert pieces["head"].kernels == mixture.heads
    alone = replace(spread, ranks=1)
    (read, _), (whole, _) = spread.step(8), alone.step(8)
    assert whole == pytest.approx(spread.ranks * read)
    neurons = [next(roofline.guard_work(shape, 8)).moved for shape in (spread, alone)]
    assert neurons[0] == neurons[1], "every rank reads the whole output"


FILES = {"roofline": roofline.summary, "ceiling": ceiling.summary}


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_what_the_code_computes(name: str) -> None:
    said = json.loads((FOLDER / f"{name}.json").read_text())
    assert said == json.loads(json.dumps(FILES[name]())), "run `make scaling`"


def test_the_simulation_s_file_is_of_these_scenarios() -> None:
    said = json.loads((FOLDER / "simulation.json").read_text())
    runs = said.pop("scenarios")
    assert said == json.loads(json.dumps(inputs())), "run `make scaling`"
    for one, scenario in zip(runs, scenarios(), strict=True):
        given = json.loads(json.dumps(scenario.given()))
        assert {name: one[name] for name in given} == given, "run `make scaling`"
        assert one["answered"] + sum(one["rejected"].values()) + sum(one["lost"].values()) == one["arrived"]


def test_what_is_deployed_answers_more_than_what_was() -> None:
    runs = {one["name"]: one for one in json.loads((FOLDER / "simulation.json").read_text())["scenarios"]}
    before = {name for name in runs if name.endswith(", before")}
    assert len(before) == 4
    for name in before:
        assert runs[name.removesuffix(", before")]["answered"] > 1.15 * runs[name]["answered"], name
    assert min(runs[name]["answered"] for name in ("ramp", "ramp, no queue", "H100 ramp")) > 0.99 * ceiling.STREAMS


def test_the_page_of_scaling_says_what_was_computed() -> None:
    page = report.SCALING.read_text()
    assert page == report.scaling(page, report.RESULTS / "scaling"), "run `make benchmarks`"
