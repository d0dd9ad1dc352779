"""The taps on CUDA, in Triton: two kernels for each tapped layer, before and after it, one for each layer of a linear
head, and one for a step's logits.

Imported only where a CUDA device is; under ``TRITON_INTERPRET=1`` the same source runs on any machine.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from guard.probe.cett import EPSILON

_HIDDEN_BLOCK = 1024
_VOCABULARY_BLOCK = 2048


@triton.jit
def _scale(z, neuron, folded, scaled, alpha, contribution, row_stride, column_stride, width, K: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, K)
    inside = k < width
    column = tl.load(neuron + k, mask=inside, other=0)
    weight = tl.load(folded + k, mask=inside, other=0.0)
    chosen = tl.load(scaled + k, mask=inside, other=0) != 0
    factor = tl.where(chosen, tl.load(alpha + row), 1.0)
    place = z + row * row_stride + column * column_stride
    value = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    tl.store(contribution + row, tl.sum(tl.abs(value) * weight))
    # Padding repeats a column, and several threads may hold one: all have read before any writes.
    tl.debug_barrier()
    tl.store(place, (value * factor).to(z.dtype.element_ty), mask=inside & (factor != 1))


def scale(
    z: torch.Tensor, neuron: torch.Tensor, folded: torch.Tensor, scaled: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    """As ``guard.worker.ops.scale``, one program for each token, which writes only what alpha changes."""
    contribution = torch.empty(z.shape[0], dtype=torch.float32, device=z.device)
    if z.shape[0]:
        width = triton.next_power_of_2(neuron.shape[0])
        _scale[(z.shape[0],)](
            z,
            neuron,
            folded,
            scaled,
            alpha,
            contribution,
            z.stride(0),
            z.stride(1),
            neuron.shape[0],
            K=width,
            num_warps=min(max(width // 64, 1), 4),
        )
    return contribution


@triton.jit
def _tap(h, contribution, score, h_stride, hidden, epsilon, H: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([H], tl.float32)
    for start in range(0, hidden, H):
        offset = start + tl.arange(0, H)
        part = tl.load(h + row * h_stride + offset, mask=offset < hidden, other=0.0).to(tl.float32)
        squares += part * part
    norm = tl.sqrt(tl.sum(squares)) + epsilon
    # 0 times the norm: an output that overflows must not look like one to which no neuron contributes.
    share = (tl.load(contribution + row) + norm * 0) / norm
    tl.store(score + row, tl.load(score + row) + share)


def tap(h: torch.Tensor, contribution: torch.Tensor, score: torch.Tensor) -> None:
    """As ``guard.worker.ops.tap``, in one launch: one program for each token."""
    if h.stride(1) != 1:
        h = h.contiguous()
    if h.shape[0]:
        _tap[(h.shape[0],)](h, contribution, score, h.stride(0), h.shape[1], EPSILON, H=_HIDDEN_BLOCK)


@triton.jit
def _head(x, weight, score, row_stride, width, W: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    products = tl.zeros([W], tl.float32)
    for start in range(0, width, W):
        offset = start + tl.arange(0, W)
        inside = offset < width
        part = tl.load(x + row * row_stride + offset, mask=inside, other=0.0).to(tl.float32)
        products += part * tl.load(weight + offset, mask=inside, other=0.0)
    tl.store(score + row, tl.load(score + row) + tl.sum(products))


def head(x: torch.Tensor, weight: torch.Tensor, score: torch.Tensor) -> None:
    """As ``guard.worker.ops.head``, in one launch: one program for each token."""
    if x.stride(1) != 1:
        x = x.contiguous()
    if x.shape[0]:
        _head[(x.shape[0],)](x, weight, score, x.stride(0), x.shape[1], W=_HIDDEN_BLOCK)


@triton.jit
def _row_statistics(logits, entropy, normaliser, stride, vocabulary, V: tl.constexpr):  # type: ignore[no-untyped-def]
    # The online softmax of each lane: peak, S = sum exp(x - peak), T = sum (x - peak) exp(x - peak).
    row = tl.program_id(0).to(tl.int64)
    peak = tl.full([V], float("-inf"), tl.float32)
    total = tl.zeros([V], tl.float32)
    weighted = tl.zeros([V], tl.float32)
    for start in range(0, vocabulary, V):
        offset = start + tl.arange(0, V)
        x = tl.load(logits + row * stride + offset, mask=offset < vocabulary, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, x)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        moved = tl.where(total > 0, peak - base, 0.0)
        weight = tl.exp(x - base)
        distance = tl.where(weight > 0, x - base, 0.0)
        scale = tl.exp(moved)
        weighted = scale * (weighted + moved * total) + weight * distance
        total = scale * total + weight
        peak = higher
    top = tl.max(peak)
    moved = tl.where(total > 0, peak - top, 0.0)
    scale = tl.exp(moved)
    weighted_sum = tl.sum(scale * (weighted + moved * total))
    total_sum = tl.sum(scale * total)
    log_total = tl.log(total_sum)
    tl.store(entropy + row, log_total - weighted_sum / total_sum)
    tl.store(normaliser + row, top + log_total)


def row_statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``guard.worker.batch.statistics``, in one launch: one program for each row."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    entropy = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    normaliser = torch.empty_like(entropy)
    if logits.shape[0]:
        _row_statistics[(logits.shape[0],)](
            logits, entropy, normaliser, logits.stride(0), logits.shape[1], V=_VOCABULARY_BLOCK
        )
    return entropy, normaliser
