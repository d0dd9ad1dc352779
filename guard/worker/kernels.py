"""The taps on CUDA, in Triton: one kernel for each tapped layer, one for the logits of a step.

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
def _tap(z, h, neuron, folded, score, z_stride, h_stride, width, hidden, epsilon, K: tl.constexpr, H: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, K)
    inside = k < width
    column = tl.load(neuron + k, mask=inside, other=0)
    weight = tl.load(folded + k, mask=inside, other=0.0)
    value = tl.load(z + row * z_stride + column, mask=inside, other=0.0).to(tl.float32)
    contribution = tl.sum(tl.abs(value) * weight)
    squares = tl.zeros([H], tl.float32)
    for start in range(0, hidden, H):
        offset = start + tl.arange(0, H)
        part = tl.load(h + row * h_stride + offset, mask=offset < hidden, other=0.0).to(tl.float32)
        squares += part * part
    norm = tl.sqrt(tl.sum(squares)) + epsilon
    # 0 times the norm: an output that overflows must not look like one to which no neuron contributes.
    tl.store(score + row, tl.load(score + row) + (contribution + norm * 0) / norm)


def tap(z: torch.Tensor, h: torch.Tensor, neuron: torch.Tensor, folded: torch.Tensor, score: torch.Tensor) -> None:
    """As ``guard.worker.ops.tap``, in one launch: one program for each token."""
    if z.stride(1) != 1 or h.stride(1) != 1:
        z, h = z.contiguous(), h.contiguous()
    _tap[(z.shape[0],)](
        z,
        h,
        neuron,
        folded,
        score,
        z.stride(0),
        h.stride(0),
        neuron.shape[0],
        h.shape[1],
        EPSILON,
        K=triton.next_power_of_2(neuron.shape[0]),
        H=_HIDDEN_BLOCK,
    )


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
