"""Paired rounds: every mode once in each round, in turning order; ratios are taken within a round."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.bench.load import Measured
from guard.launch.engines import warn

PLAIN = "plain"
_RESAMPLES = 10_000
# An engine that has just worked polls for a second before it sleeps, and would take time from the other.
PAUSE_SECONDS = 1.5

Run = Callable[[int], Awaitable[Measured]]


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of one mode against plain vLLM, under one load. plain, guarded: medians over rounds."""

    model: str
    mode: str
    concurrency: int
    metric: str
    plain: float
    guarded: float
    ratio: float
    ratio_ci95: tuple[float, float]


async def compare(model: str, concurrency: int, runs: Mapping[str, Run], rounds: int) -> list[Row]:
    """Run ``runs`` (one of them called ``plain``) for some rounds; each gets the round's number as its seed."""
    seen: dict[str, list[dict[str, float]]] = {mode: [] for mode in runs}
    modes = list(runs)
    for number in range(-1, rounds):  # the first round warms up, and is thrown away
        for mode in _turned(modes, number):
            await asyncio.sleep(PAUSE_SECONDS)
            measured = await runs[mode](number + 1)
            if number >= 0:
                seen[mode].append(measured.values)
    rows = []
    for mode in modes:
        if mode == PLAIN:
            continue
        for metric in seen[mode][0]:
            plain, guarded = (np.array([values[metric] for values in seen[name]]) for name in (PLAIN, mode))
            rows.append(_row(model, mode, concurrency, metric, plain, guarded))
    for row in rows:
        warn(f"{row.mode}, {row.concurrency} clients, {row.metric}: {row.ratio:.4f} of plain")
    return rows


def _turned(modes: list[str], number: int) -> list[str]:
    """Every other round backwards, so that a machine that slows down favours none."""
    start = number // 2 % len(modes)
    turned = modes[start:] + modes[:start]
    return turned if number % 2 else turned[::-1]


def _row(
    model: str, mode: str, concurrency: int, metric: str, plain: NDArray[np.float64], guarded: NDArray[np.float64]
) -> Row:
    ratio, interval = ratio_of(plain, guarded)
    medians = float(np.median(plain)), float(np.median(guarded))
    return Row(model, mode, concurrency, metric, *medians, ratio, interval)


def ratio_of(plain: NDArray[np.float64], guarded: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """The geometric mean of guarded / plain over rounds, and its bootstrap 95 % interval."""
    logs = np.log(guarded / plain)
    drawn = np.random.default_rng(0).choice(logs, (_RESAMPLES, len(logs))).mean(1)
    low, high = np.exp(np.quantile(drawn, (0.025, 0.975)))
    return float(np.exp(logs.mean())), (float(low), float(high))
