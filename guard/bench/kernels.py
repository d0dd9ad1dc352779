"""The Triton kernels by themselves: how exact they are, and how near to a copy of the bytes that they must move.

On a GPU each is timed as an engine runs it, in a CUDA graph and with its input in the cache that its writer left it in;
under ``TRITON_INTERPRET=1`` the same kernels run anywhere, and there is no time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from guard.bench.results import setting
from guard.probe.cett import EPSILON

# hidden, intermediate: one layer of Llama's 1B, 8B and 70B.
LAYERS = {"1B": (2048, 8192), "8B": (4096, 14336), "70B": (8192, 28672)}
WIDTHS = (1, 5, 64, 256)  # H-neurons of one layer
ROWS = (1, 32, 256, 2048)
VOCABULARY = 128_256


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel on one input of bfloat16.

    error: the largest difference from float64; that of ``scale`` relative to the sum of its terms' magnitudes, that of
    ``tap`` to the score, that of entropy and normaliser in nats. moved: bytes that must be read and written, each once.
    copy_microseconds: what it takes to copy as many on the device. Both times are None without a GPU.
    """

    kernel: str
    layer: str
    neurons: int
    rows: int
    error: float
    moved: int
    microseconds: float | None
    copy_microseconds: float | None


def can_run() -> bool:
    """Whether this process can: compiled for a GPU, or interpreted."""
    return torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


def bench(
    layers: Sequence[str] = tuple(LAYERS), widths: Sequence[int] = WIDTHS, rows: Sequence[int] = ROWS
) -> dict[str, Any]:
    """Measure a tap's two kernels and the statistics of logits at all sizes, for ``bench/results``."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = [_scale(layer, width, count, device) for layer in layers for width in widths for count in rows]
    cases += [_tap(layer, count, device) for layer in layers for count in rows]
    cases += [_statistics(count, device) for count in rows]
    return {**setting(), "kernels": [asdict(case) for case in cases]}


def _scale(layer: str, width: int, rows: int, device: torch.device) -> Case:
    """With scaling in every row, so that all is written that may be; by -1, which however often leaves sizes alone."""
    from guard.worker import kernels

    z = torch.randn(rows, LAYERS[layer][1], device=device).bfloat16()
    neuron = torch.randperm(z.shape[1], device=device)[:width]
    folded = torch.randn(width, device=device)
    scaled, alpha = torch.ones_like(neuron).bool(), torch.full((rows,), -1.0, device=device)
    terms = z[:, neuron].double().abs() * folded.double()
    contribution = kernels.scale(z, neuron, folded, scaled, alpha)
    error = float(((contribution.double() - terms.sum(1)).abs() / terms.abs().sum(1)).max())
    moved = rows * (2 * width * z.itemsize + alpha.itemsize + contribution.itemsize)
    moved += width * (neuron.itemsize + folded.itemsize + scaled.itemsize)
    times = _times(lambda: kernels.scale(z, neuron, folded, scaled, alpha), moved)
    return Case("scale", layer, width, rows, error, moved, *times)


def _tap(layer: str, rows: int, device: torch.device) -> Case:
    from guard.worker import kernels

    h = torch.randn(rows, LAYERS[layer][0], device=device).bfloat16()
    contribution, score = torch.randn(rows, device=device), torch.zeros(rows, device=device)
    kernels.tap(h, contribution, score)
    exact = contribution.double() / (h.double().norm(dim=1) + EPSILON)
    error = float(((score.double() - exact) / exact).abs().max())
    moved = rows * (h.shape[1] * h.itemsize + contribution.itemsize + 2 * score.itemsize)
    return Case("tap", layer, 0, rows, error, moved, *_times(lambda: kernels.tap(h, contribution, score), moved))


def _statistics(rows: int, device: torch.device) -> Case:
    from guard.worker import kernels

    logits = (3 * torch.randn(rows, VOCABULARY, device=device)).bfloat16()
    entropy, normaliser = kernels.row_statistics(logits)
    error = 0.0
    for part, *got in zip(*(torch.split(one, 64) for one in (logits, entropy, normaliser)), strict=True):
        exact = part.double().log_softmax(-1)
        wanted = torch.special.entr(exact.exp()).sum(-1), part.double().logsumexp(-1)
        error = max(error, *(float((one - right).abs().max()) for one, right in zip(got, wanted, strict=True)))
    moved = rows * (2 * VOCABULARY + entropy.itemsize + normaliser.itemsize)
    return Case("statistics", "logits", 0, rows, error, moved, *_times(lambda: kernels.row_statistics(logits), moved))


def _times(work: Callable[[], object], moved: int) -> tuple[float, float] | tuple[None, None]:
    """Microseconds of ``work`` and of a copy of ``moved`` bytes."""
    if not torch.cuda.is_available():
        return None, None
    from triton.testing import do_bench_cudagraph

    source = torch.zeros(moved, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    milliseconds = [do_bench_cudagraph(one, return_mode="median") for one in (work, lambda: target.copy_(source))]
    return 1e3 * milliseconds[0], 1e3 * milliseconds[1]
