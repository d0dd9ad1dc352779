"""When streams arrive, and how long they are."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.scaling.tally import Stream

Rate = Callable[[float], float]  # streams a second at a moment


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of prompts and answers: geometric with these means, as if each token were as likely as any to be the last,
    and at most ``longest``."""

    prompt: float
    tokens: float
    longest: int

    def draw(self, rng: random.Random) -> tuple[int, int]:
        return self._one(rng, self.prompt), self._one(rng, self.tokens)

    def _one(self, rng: random.Random, mean: float) -> int:
        if mean <= 1:
            return 1
        return min(1 + int(math.log(1 - rng.random()) / math.log(1 - 1 / mean)), self.longest)


def poisson(count: int, rate: Rate, most: float, lengths: Lengths, seed: int, callers: int = 1) -> Iterator[Stream]:
    """A Poisson process whose rate changes, by thinning one of the rate ``most`` (Lewis and Shedler, 1979)."""
    rng, now = random.Random(seed), 0.0
    for number in range(count):
        now += rng.expovariate(most)
        while rng.random() * most > rate(now):
            now += rng.expovariate(most)
        prompt, tokens = lengths.draw(rng)
        yield Stream(number, prompt, tokens, rng.randrange(callers), now)


def steady(rate: float) -> Rate:
    return lambda now: rate


def burst(rate: float, factor: float, start: float, seconds: float) -> Rate:
    return lambda now: rate * factor if start <= now < start + seconds else rate


def ramp(low: float, high: float, seconds: float) -> Rate:
    """From ``low`` to ``high`` in so many seconds, and ``high`` from then on."""
    return lambda now: low + (high - low) * min(now / seconds, 1.0)
