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
from guard.ipc.taps import spec_of
from guard.probe.bundle import Bundle
from guard.probe.signals import Source, names
from guard.worker import ops
from guard.worker.batch import BatchParams, Drawn, Statistics, Step, StepCapture
from guard.worker.buffers import Taps

_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a decoding step of ``rows`` sequences: the best of its timings."""

    part: str
    rows: int
    microseconds: float


def measure(bundle: Bundle, engine: Any, rows: Sequence[int]) -> list[Part]:
    """Time the pieces of one decoding step, for several batch sizes."""
    config = engine.model_config
    hidden, vocabulary, dtype = config.get_hidden_size(), config.get_vocab_size(), config.dtype
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = spec_of(bundle)
    tap = next(iter(spec.layers.values()))
    measured: list[Part] = []
    for count in rows:
        taps = Taps(spec, torch.zeros(count, device=device), torch.ones(count, device=device))
        z = torch.randn(count, bundle.card.model.neurons_per_layer, dtype=dtype, device=device)
        h = torch.randn(count, hidden, dtype=dtype, device=device)
        neuron, folded = (torch.from_numpy(array).to(device) for array in (tap.neuron, tap.folded))
        marked = torch.from_numpy(np.isin(tap.neuron, tap.scaled)).to(device)
        logits = torch.randn(count, vocabulary, dtype=dtype, device=device)
        tokens = torch.zeros(count, dtype=torch.int64, device=device)
        table = ScoreTable.create(count, 64)
        table.unlink()
        scaled = _step(count, 0.5)
        plain = _step(count, 1.0)

        for layer in spec.layers:
            taps.add_layer(layer, folded)

        def taps_of_all_layers(
            z: torch.Tensor = z,
            h: torch.Tensor = h,
            neuron: torch.Tensor = neuron,
            folded: torch.Tensor = folded,
            marked: torch.Tensor = marked,
            taps: Taps = taps,
            plain: Step = plain,
        ) -> None:
            if z.is_cuda:  # in the graph
                for _ in spec.layers:
                    ops.tap(h, ops.scale(z, neuron, folded, marked, taps.alpha), taps.score)
                return
            taps.begin(plain)
            for _ in spec.layers:
                taps.read(z.index_select(1, neuron), h)
            taps.total(len(z))

        def draws(logits: torch.Tensor = logits, tokens: torch.Tensor = tokens) -> None:
            if logits.is_cuda:
                Statistics.of(logits).signals(logits, tokens)
            else:
                Drawn(logits).signals(tokens)

        def bookkeeping(step: Step = plain, taps: Taps = taps, table: ScoreTable = table) -> None:
            score = taps.score[: step.rows]
            rows = {
                Source.FORWARD: step.activations(),
                Source.DRAW: step.draws(np.ones(step.rows, np.bool_), table.positions),
            }
            measured = [(source, of, dict.fromkeys(names(source), score)) for source, of in rows.items()]
            StepCapture(step.captured, measured).to_host().deposit(table)

        def alpha(step: Step = scaled, taps: Taps = taps) -> None:
            taps.begin(step)

        pieces: dict[str, Callable[[], None]] = {
            f"taps of {len(spec.layers)} layers": taps_of_all_layers,
            "entropy and log-probability": draws,
            "bookkeeping and table": bookkeeping,
            "filling alpha": alpha,
        }
        measured += [Part(name, count, _best(piece)) for name, piece in pieces.items()]
    return measured


def _step(count: int, scale: float) -> Step:
    captured = BatchParams.of([CaptureParams(i, 1, scale) for i in range(count)], [8] * count)
    return Step(captured, np.full(count, 9), np.ones(count, np.int64))


@torch.inference_mode()
def _best(piece: Callable[[], None]) -> float:
    """The fastest run, in microseconds: what the work takes when nothing disturbs it."""
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        piece()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 1e6 * best
