"""Where the guard's time goes: each piece of its work in the worker by itself, on this machine's own tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from guard.ipc.capture import CaptureParams
from guard.ipc.score_table import ScoreTable
from guard.ipc.taps import LayerTap, TapSpec, spec_of
from guard.probe.bundle import Bundle
from guard.probe.signals import DISTANCE, Source, names
from guard.training.distance import AXES
from guard.worker import ops
from guard.worker.batch import BatchParams, Drawn, Room, Statistics, Step, StepCapture
from guard.worker.buffers import Taps

_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a decoding step of ``rows`` sequences: the best of its timings."""

    part: str
    rows: int
    microseconds: float


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a model and its probe: ``neurons`` are those read of each tapped layer, of ``intermediate``."""

    hidden: int
    intermediate: int
    vocabulary: int
    layers: int
    neurons: int
    dtype: torch.dtype = torch.float32

    def spec(self) -> TapSpec:
        """Taps of random neurons, and a random distance."""
        rng = np.random.default_rng(0)
        chosen = np.sort(rng.permutation(self.intermediate)[: self.neurons])
        tap = LayerTap(0, chosen, rng.standard_normal(self.neurons).astype(np.float32), chosen[::2])
        distance = rng.standard_normal((AXES, self.hidden + 1)).astype(np.float32)
        return TapSpec(dict.fromkeys(range(self.layers), tap), self.neurons, {DISTANCE: {0: distance}})


def measure(bundle: Bundle, engine: Any, rows: Sequence[int]) -> list[Part]:
    """Time the pieces of one decoding step, for several batch sizes."""
    config, spec = engine.model_config, spec_of(bundle)
    sizes = Sizes(
        config.get_hidden_size(),
        bundle.card.model.neurons_per_layer,
        config.get_vocab_size(),
        len(spec.layers),
        spec.width,
        config.dtype,
    )
    return [Part(name, count, best(piece)) for count in rows for name, piece in pieces(sizes, count, spec).items()]


def pieces(sizes: Sizes, count: int, spec: TapSpec | None = None) -> dict[str, Callable[[], None]]:
    """The guard's work in a step of ``count`` sequences of a model, by name, ready to be repeated. ``spec``: random
    taps by default."""
    dtype, device = sizes.dtype, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = sizes.spec() if spec is None else spec
    tap = next(iter(spec.layers.values()))
    taps = Taps(spec, torch.zeros(count, device=device), torch.ones(count, device=device))
    z = torch.randn(count, sizes.intermediate, dtype=dtype, device=device)
    h = torch.randn(count, sizes.hidden, dtype=dtype, device=device)
    neuron, folded = (torch.from_numpy(array).to(device) for array in (tap.neuron, tap.folded))
    marked = torch.from_numpy(np.isin(tap.neuron, tap.scaled)).to(device)
    logits = torch.randn(count, sizes.vocabulary, dtype=dtype, device=device)
    tokens = torch.zeros(count, dtype=torch.int64, device=device)
    table = ScoreTable.create(count, 64)
    table.unlink()
    scaled, plain = _step(count, 0.5), _step(count, 1.0)
    for layer in spec.layers:
        taps.add_layer(layer, folded)

    def taps_of_all_layers() -> None:
        if z.is_cuda:  # in the graph
            for _ in spec.layers:
                ops.tap(h, ops.scale(z, neuron, folded, marked, taps.alpha), taps.score)
            return
        taps.begin(plain)
        for _ in spec.layers:
            taps.read(z.index_select(1, neuron), h)
        taps.signals(len(z))

    room = Room()

    def draws() -> None:
        if logits.is_cuda:
            Statistics.of(logits).signals(logits, tokens)
        else:
            Drawn(logits, room=room).signals(tokens)

    def bookkeeping() -> None:
        score = taps.score[: plain.rows]
        rows = {
            Source.FORWARD: plain.activations(),
            Source.DRAW: plain.draws(np.ones(plain.rows, np.bool_), table.positions),
        }
        measured = [(source, of, dict.fromkeys(names(source), score)) for source, of in rows.items()]
        StepCapture(plain.captured, measured).to_host().deposit(table)

    heads = [
        (ops.distance if name == DISTANCE else ops.head, torch.from_numpy(one).to(device), taps.head_scores[name])
        for name, by_layer in spec.heads.items()
        for one in by_layer.values()
    ]
    states = [torch.randn(count, one.shape[-1] - one.dim() + 1, dtype=dtype, device=device) for _, one, _ in heads]

    def of_states() -> None:
        for (read, weight, score), x in zip(heads, states, strict=True):
            read(x, weight, score)

    return {
        f"taps of {len(spec.layers)} layers": taps_of_all_layers,
        **({"heads and distance": of_states} if heads else {}),
        "entropy and log-probability": draws,
        "bookkeeping and table": bookkeeping,
        "filling alpha": lambda: taps.begin(scaled),
    }


def _step(count: int, scale: float) -> Step:
    captured = BatchParams.of([CaptureParams(i, 1, scale) for i in range(count)], [8] * count)
    return Step(captured, np.full(count, 9), np.ones(count, np.int64))


@torch.inference_mode()
def best(piece: Callable[[], object]) -> float:
    """The fastest run, in microseconds: what the work takes when nothing disturbs it."""
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        piece()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 1e6 * best
