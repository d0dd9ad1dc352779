"""The simulated replica beside the recorded one: as many clients, of whom each asks again once it has its answer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from bench.scaling import recorded
from bench.scaling.events import Clock, in_no_task
from bench.scaling.recorded import ApiCost
from bench.scaling.replica import Replica, Server
from bench.scaling.tally import Stream, Tally


class ClosedLoop:
    """One replica and its clients."""

    def __init__(self, server: Server, clients: int, requests: int, prompt: int, tokens: int) -> None:
        self._clock = Clock()
        self.tally = Tally(self._clock)
        self._replica = Replica(0, server, self._clock, self.tally, self)
        self._left, self._sizes = requests, (prompt, tokens)
        for _ in range(clients):
            self._ask()

    def run(self) -> float:
        """Tokens a second."""
        self._clock.run()
        return self.tally.tokens / self._clock.now

    def _ask(self) -> None:
        if self._left:
            self._left -= 1
            self._replica.send(Stream(self._left, *self._sizes, 0, self._clock.now))

    def answered(self, stream: Stream) -> None:
        self.tally.answered += 1
        self._ask()

    def refused(self, stream: Stream, why: str) -> None:
        raise AssertionError(f"as many clients as fit, and one was refused: {why}")


def compared(server: Server) -> list[dict[str, Any]]:
    """Tokens a second, recorded without HTTP and simulated with an API process that costs nothing, by clients."""
    result = recorded.read(recorded.ENGINE)
    load, free = result["load"], replace(server, api=ApiCost(0, 0, 0))

    def simulated(clients: int) -> float:
        return ClosedLoop(free, clients, clients * load["requests"], load["prompt"], load["output"]).run()

    return [
        {"clients": clients, "recorded": tokens, "simulated": in_no_task(partial(simulated, clients))}
        for clients, tokens in recorded.values(result, "score+entropy", "tokens/s").items()
    ]
