"""How what the guard costs grows: with the batch, with neurons, layers and vocabulary, with an answer's length and its
windows, and what a fit takes of more neurons and more answers.

One size is varied at a time, the others stay those of SmolLM2-135M. Nothing here needs a model.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from guard.bench.components import Sizes, best, pieces
from guard.bench.models.synthetic import SHAPES
from guard.bench.results import setting
from guard.harness.features import Features
from guard.ipc.score_table import ScoreTable, Slot
from guard.probe.readout import Readout, unit_readout
from guard.probe.signals import ALWAYS, Source, TokenSignals, names
from guard.training.neurons import find_neurons

SMOLLM2 = Sizes(hidden=576, intermediate=1536, vocabulary=49_152, layers=30, neurons=26)
BATCH, WINDOW, TOKENS = 16, 8, 256  # where they are not varied
BATCHES = (1, 4, 16, 64, 256)
LENGTHS = (16, 64, 256, 1024, 4096)
WINDOWS = (1, 8, 64, 512)
NEURONS = (50, 500, 5_000, 50_000)  # of the whole probe
LAYERS = (8, 16, 32, 64)
VOCABULARIES = (8_192, 32_768, 131_072, 262_144)
FIT_NEURONS, FIT_ANSWERS = (4_000, 16_000, 64_000), (250, 1_000, 4_000)
CAP = 0.05  # of the neurons, that a fit may keep
SHARE = 0.01  # of a step


@dataclass(frozen=True, slots=True)
class Curve:
    """What one piece takes at each size of what is varied. exponent: of size, between the two largest: 1 is linear."""

    piece: str
    varied: str
    sizes: list[int]
    microseconds: list[float]
    exponent: float

    @classmethod
    def of(cls, piece: str, varied: str, sizes: Sequence[int], timed: Sequence[float]) -> Curve:
        return cls(piece, varied, list(sizes), list(timed), exponent(sizes[-2:], timed[-2:]))


@dataclass(frozen=True, slots=True)
class FitCurve:
    """What finding neurons takes: seconds, and memory beyond the features themselves, in MB."""

    varied: str
    sizes: list[int]
    seconds: list[float]
    megabytes: list[float]
    exponent: float


@dataclass(frozen=True, slots=True)
class Share:
    """What the guard's pieces add to a decoding step of one sequence, of a model that reads ``weights`` bytes there."""

    model: str
    weights: int
    guard_microseconds: float
    read_microseconds: float

    @property
    def share(self) -> float:
        return self.guard_microseconds / self.read_microseconds


def exponent(sizes: Sequence[float], timed: Sequence[float]) -> float:
    """The slope of log time over log size, of two sizes."""
    return float(np.log(timed[1] / timed[0]) / np.log(sizes[1] / sizes[0]))


def bench(say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure everything, for ``bench/results``."""
    torch.manual_seed(0)
    curves: list[Curve] = []
    for one in (_of_a_step, _of_an_answer, _of_windows):
        say(one.__name__.strip("_").replace("_", " "))
        curves += one()
    say("of a fit")
    fits = _of_fits()
    say("beside a model's step")
    shares = _shares()
    return {
        **setting(),
        "threads": torch.get_num_threads(),
        "growth": [asdict(curve) for curve in curves],
        "fits": [asdict(curve) for curve in fits],
        "shares": [{**asdict(one), "share": one.share} for one in shares],
        "one_percent": _one_percent(shares),
    }


def _of_a_step() -> list[Curve]:
    """The worker's pieces."""
    per_layer = [max(1, count // SMOLLM2.layers) for count in NEURONS]
    many = replace(SMOLLM2, intermediate=max(per_layer))  # so that as many can be read of a layer
    found = _steps("sequences in a batch", BATCHES, [(SMOLLM2, count) for count in BATCHES])
    whole = [one * SMOLLM2.layers for one in per_layer]
    found += _steps("neurons", whole, [(replace(many, neurons=one), BATCH) for one in per_layer], "taps")
    found += _steps("layers", LAYERS, [(replace(SMOLLM2, layers=one), BATCH) for one in LAYERS], "taps")
    of_vocabulary = [(replace(SMOLLM2, vocabulary=one), BATCH) for one in VOCABULARIES]
    return found + _steps("tokens in the vocabulary", VOCABULARIES, of_vocabulary, "entropy")


def _steps(varied: str, sizes: Sequence[int], of: Sequence[tuple[Sizes, int]], only: str = "") -> list[Curve]:
    timed: dict[str, list[float]] = {}
    for one, count in of:
        for name, piece in pieces(one, count).items():
            name = name.partition(" of ")[0]
            if name.startswith(only):
                timed.setdefault(name, []).append(best(piece))
    return [Curve.of(name, varied, sizes, values) for name, values in timed.items()]


def _readout(window: int) -> Readout:
    return replace(unit_readout(ALWAYS), window=window, tail=1.0)


def _table(slots: int, tokens: int) -> ScoreTable:
    """Every position of every slot measured, at generation 1."""
    table = ScoreTable.create(slots, tokens + 1)
    table.unlink()
    position = np.arange(tokens + 1)
    for slot in range(slots):
        for source in Source:
            values = {name: np.ones(len(position), np.float32) for name in names(source)}
            ones = np.ones(len(position), np.uint32)
            table.write(source, np.full(len(position), slot), ones, position, values)
    return table


def _judged(tokens: int, window: int) -> float:
    """Reading one answer, and its risk: at its end, in the API process."""
    table, readout, slot = _table(1, tokens), _readout(window), Slot(0, 1)

    def piece() -> None:
        forward = table.read(Source.FORWARD, slot, 0, tokens + 1)
        values = {name: one[1:] for name, one in forward.items()} | table.read(Source.DRAW, slot, 1, tokens + 1)
        readout.risk(TokenSignals({name: float(one[0]) for name, one in forward.items()}, values))

    return best(piece)


def _of_an_answer() -> list[Curve]:
    name = "judging an answer"
    return [
        Curve.of(name, "tokens of the answer", LENGTHS, [_judged(count, WINDOW) for count in LENGTHS]),
        Curve.of(f"{name} of {LENGTHS[-1]}", "tokens of a window", WINDOWS, [_judged(LENGTHS[-1], w) for w in WINDOWS]),
    ]


def _of_windows() -> list[Curve]:
    """All windows that a step completes, one of each answer that is held: in the API process."""

    def looked(answers: int, window: int) -> float:
        table, readout = _table(answers, TOKENS), _readout(window)
        slots, generations = np.arange(answers), np.ones(answers, np.int64)
        place = np.full(answers, TOKENS - window, np.int64)
        positions = 1 + place[:, None] + np.arange(window)

        def piece() -> None:
            values: dict[str, Any] = {}
            for source in Source:
                values |= table.read_rows(source, slots, generations, positions)[0]
            readout.window_risks(values, np.zeros(0, np.intp), {}, place)

        return best(piece)

    name, widths = "the windows of a step", [width for width in WINDOWS if width <= TOKENS]
    return [
        Curve.of(name, "answers that are held", BATCHES, [looked(count, WINDOW) for count in BATCHES]),
        Curve.of(name, "tokens of a window", widths, [looked(BATCH, width) for width in widths]),
    ]


def _of_fits() -> list[FitCurve]:
    return [
        _fits("neurons", FIT_NEURONS, [(one, FIT_ANSWERS[1]) for one in FIT_NEURONS]),
        _fits("answers", FIT_ANSWERS, [(FIT_NEURONS[0], one) for one in FIT_ANSWERS]),
    ]


def _fits(varied: str, sizes: Sequence[int], of: Sequence[tuple[int, int]]) -> FitCurve:
    timed = [_fit(*one) for one in of]
    seconds, megabytes = ([one[which] for one in timed] for which in (0, 1))
    return FitCurve(varied, list(sizes), seconds, megabytes, exponent(sizes[-2:], seconds[-2:]))


def _fit(neurons: int, answers: int) -> tuple[float, float]:
    """Seconds, and peak MB, of finding neurons of which twenty know something."""
    rng = np.random.default_rng(0)
    wrong = rng.random(answers) < 0.5
    table = rng.random((answers, neurons), np.float32)
    table[:, :20] += 0.2 * wrong[:, None]
    features, entities = Features(table), [str(i) for i in range(answers)]
    tracemalloc.start()
    began = time.perf_counter()
    find_neurons(features, wrong, entities, CAP)
    seconds = time.perf_counter() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds, peak / 1e6


def _shares() -> list[Share]:
    """Of models from 135M to 8B in bfloat16, on one sequence: this machine reads each weight once in a step."""
    bandwidth = _bandwidth()
    known = {"SmolLM2-135M": (SMOLLM2, 134_515_008)}
    for shape in SHAPES.values():
        matrices = shape.hidden * (2 * shape.hidden + 2 * shape.hidden * shape.kv_heads // shape.heads)
        weights = shape.layers * (matrices + 3 * shape.hidden * shape.intermediate) + shape.vocabulary * shape.hidden
        sizes = Sizes(shape.hidden, shape.intermediate, shape.vocabulary, shape.tapped, shape.neurons)
        known[shape.name] = sizes, weights
    found = []
    for name, (sizes, weights) in known.items():
        own = pieces(replace(sizes, dtype=torch.bfloat16), 1)
        spent = sum(best(piece) for what, piece in own.items() if what != "filling alpha")
        found.append(Share(name, 2 * weights, spent, 1e6 * 2 * weights / bandwidth))
    return sorted(found, key=lambda one: one.weights)


def _bandwidth() -> float:
    """Bytes a second at which torch reads memory here."""
    read = torch.ones(1 << 28, dtype=torch.uint8).view(torch.int64)
    return 1e6 * (1 << 28) / best(lambda: read.sum())


def _one_percent(shares: Sequence[Share]) -> int | None:
    """Bytes of weights at which the guard would take SHARE of a step, between two of these models on a line of
    logarithms; None where it lies beyond them."""
    for low, high in pairwise(shares):
        if low.share >= SHARE >= high.share:
            along = np.log(low.share / SHARE) / np.log(low.share / high.share)
            return int(low.weights * (high.weights / low.weights) ** along)
    return None
