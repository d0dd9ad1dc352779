"""One replica: the server's own admission, its API process as one queue, its engine step by step.

What is simulated is time; who is let in, who is refused and how refusals are paced is decided by
``app.ingress.admission`` itself.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from app.errors import Reason, RefusedError
from app.ingress.admission import DRAINING, Admission, Pacer, Permit, capacity
from bench.scaling.events import Clock
from bench.scaling.recorded import ApiCost, StepTime
from bench.scaling.tally import LATE, Limit, Stream, Tally

_PACED = {Reason.TOO_MANY_REQUESTS: Limit.CALLER, Reason.QUEUE_FULL: Limit.QUEUE}


@dataclass(frozen=True, slots=True)
class Server:
    """What every replica is. rows: sequences of a step (max_num_seqs). budget: tokens of a step
    (max_num_batched_tokens). processes: of the API; more than one is not served today."""

    step: StepTime
    api: ApiCost
    rows: int
    budget: int
    slots: int
    per_caller: int
    queue: int | None = None
    processes: int = 1
    descriptors: float = float("inf")

    @property
    def capacity(self) -> int:
        return capacity(self.rows, self.queue, self.slots)

    @property
    def limits(self) -> dict[str, float]:
        """The number of each limit that has one."""
        return {
            Limit.BATCH: self.rows,
            Limit.QUEUE: self.capacity,
            Limit.SLOTS: self.slots,
            Limit.CALLER: self.per_caller,
            Limit.API: self.processes,
            Limit.DESCRIPTORS: self.descriptors,
        }

    def streams_per_second(self, tokens: float, prompt: float) -> float:
        """What the engine finishes with its batch full: with each step one in ``tokens`` of its ``rows`` ends, and
        another's prompt comes in its place."""
        ends = self.rows / tokens
        return ends / (self.step.base + self.step.each * (self.rows - ends) + self.step.prompt * prompt * ends)

    def keeps_up(self, tokens: float) -> float:
        """Streams at once, of so many ``tokens``, that leave the API process's core no time: their frames, and the
        requests among them, take it as long as a step takes the engine."""
        spent = (self.api.frame + self.api.request / tokens) / self.processes
        return self.step.base / (spent - self.step.each) if spent > self.step.each else math.inf

    def target(self, tokens: float) -> float:
        """Answers in flight of a replica that an autoscaler may aim at, as ``deploy/kubernetes/scaling.yaml`` says."""
        return min(min(self.rows, self.capacity, self.per_caller) / 3, self.keeps_up(tokens) * 3 / 4)


class Callers(Protocol):
    """Who hears what became of a stream."""

    def answered(self, stream: Stream) -> None: ...

    def refused(self, stream: Stream, why: str) -> None:
        """``why``: a reason of the ingress, or UNREACHABLE."""


UNREACHABLE = "unreachable"


class Replica:
    """A server that is there from the moment it is made, until it drains or is killed."""

    def __init__(self, number: int, server: Server, clock: Clock, tally: Tally, callers: Callers) -> None:
        self.number, self.server, self.alive = number, server, True
        self._clock, self._tally, self._callers = clock, tally, callers
        self.admission, self._pacer = Admission(server.per_caller, server.capacity), Pacer()
        self.engine = Engine(server, clock, tally, self._stepped)
        self._held: dict[int, Permit] = {}
        self.connections = 0
        self._free = 0.0  # when the API process has done all that waits for it
        self.since = clock.now

    @property
    def in_flight(self) -> int:
        return self.admission.requests

    def send(self, stream: Stream) -> None:
        """A request arrives; the event loop comes to it when it has done what came before."""
        if not self.alive:
            self._callers.refused(stream, UNREACHABLE)
            return
        self.connections += 1
        self._tally.most_connections = max(self._tally.most_connections, self.connections)
        if self.connections > self.server.descriptors:
            self._tally.reach(Limit.DESCRIPTORS)
        self._clock.at(max(self._clock.now, self._free), self._enter, stream)

    def _work(self, seconds: float) -> float:
        """When the API process has done this, after all that waits already."""
        seconds /= self.server.processes
        self._tally.busy["api"] += seconds
        self._free = max(self._clock.now, self._free) + seconds
        if self._free - self._clock.now > LATE:
            self._tally.reach(Limit.API)
        return self._free

    def _enter(self, stream: Stream) -> None:
        if not self.alive:
            self._turn_away(stream, UNREACHABLE)
            return
        try:
            self._held[stream.number] = self.admission.admit(stream.caller)
        except RefusedError as error:
            reason, now = error.reason, self._clock.now
            if limit := _PACED.get(reason):
                full = limit is Limit.QUEUE and self.server.capacity == self.server.slots
                self._tally.reach(Limit.SLOTS if full else limit)
            delay = self._pacer.delay(now) if reason in _PACED else 0.0
            self._clock.at(max(self._work(self.server.api.refusal), now + delay), self._turn_away, stream, reason.value)
        else:
            self._tally.admitted(self.in_flight)
            self._clock.at(self._work(self.server.api.request), self._begin, stream)

    def _turn_away(self, stream: Stream, why: str) -> None:
        self.connections -= 1
        self._callers.refused(stream, why)

    def _begin(self, stream: Stream) -> None:
        if self.alive:
            self.engine.put(stream)

    def _stepped(self, rows: int, fresh: list[Stream], ended: list[Stream]) -> None:
        """A step's tokens are there: a frame for each of ``rows``, after what the API process has to do before."""
        written = self._work(self.server.api.frame * rows)
        for stream in fresh:
            self._tally.first.append(written - stream.arrived)
        if ended:
            self._clock.at(written, self._leave, ended)

    def _leave(self, streams: list[Stream]) -> None:
        if not self.alive:
            return
        for stream in streams:
            self._held.pop(stream.number).release()
            self.connections -= 1
            self._tally.in_flight -= 1
            self._callers.answered(stream)
        if self.admission.closing and not self.in_flight:
            self._end()

    def drain(self, seconds: float) -> None:
        """Let nobody in; end when what is in flight has left, or after so long."""
        self.admission.close(DRAINING)
        if self.in_flight:
            self._clock.at(self._clock.now + seconds, self._cut)
        else:
            self._end()

    def _cut(self) -> None:
        self.end("drain")

    def end(self, how: str) -> int:
        """At once, and what is in flight is lost: how many streams."""
        if not self.alive:
            return 0
        lost = self.in_flight
        self.admission.cut_short()
        for permit in self._held.values():
            permit.release()
        self._held.clear()
        self._tally.lost[how] += lost
        self._tally.in_flight -= lost
        self._end()
        return lost

    def _end(self) -> None:
        self.alive = self.engine.alive = False
        self.connections = 0
        self._tally.there += self._clock.now - self.since


class Engine:
    """Continuous batching: each step gives a token to every sequence that runs; between steps those that wait come in,
    as far as rows and the step's budget of tokens go. The cache of keys and values is taken to be large enough."""

    def __init__(
        self,
        server: Server,
        clock: Clock,
        tally: Tally,
        stepped: Callable[[int, list[Stream], list[Stream]], None],
    ) -> None:
        self._server, self._clock, self._tally, self._stepped = server, clock, tally, stepped
        self.alive = True
        self.waiting: deque[Stream] = deque()
        self.running = 0
        self._ends: defaultdict[int, list[Stream]] = defaultdict(list)  # by the step that gives the last token
        self._steps = 0
        self._idle = True

    def put(self, stream: Stream) -> None:
        stream.entered = self._clock.now
        self.waiting.append(stream)
        if self._idle:
            self._step()

    def _step(self) -> None:
        server, now = self._server, self._clock.now
        fresh: list[Stream] = []
        decoding, prompts = self.running, 0
        while self.waiting and self.running < server.rows:
            stream = self.waiting[0]
            if fresh and decoding + prompts + stream.prompt > server.budget:
                break
            self.waiting.popleft()
            self._tally.waits.append(now - stream.entered)
            self._ends[self._steps + stream.tokens - 1].append(stream)
            self.running += 1
            prompts += stream.prompt
            fresh.append(stream)
        if self.waiting and self.running == server.rows:
            self._tally.reach(Limit.BATCH)
        self._idle = not self.running
        if self.running:
            seconds = server.step.of(decoding, prompts)
            self._tally.busy["rows"] += seconds * self.running / server.rows
            self._clock.at(now + seconds, self._done, fresh)

    def _done(self, fresh: list[Stream]) -> None:
        if not self.alive:
            return
        rows, ended = self.running, self._ends.pop(self._steps, [])
        self._steps += 1
        self.running -= len(ended)
        self._tally.tokens += rows
        self._stepped(rows, fresh, ended)
        self._step()
