"""The taps as torch ops: opaque to the compiler, so they survive torch.compile; each mutates one buffer only."""

from __future__ import annotations

import torch

from guard.probe.cett import EPSILON


def tap(z: torch.Tensor, h: torch.Tensor, neuron: torch.Tensor, folded: torch.Tensor, score: torch.Tensor) -> None:
    """score[t] += sum_k folded[k] |z[t, neuron[k]]| / ||h[t]||.

    z [tokens, neurons] and h [tokens, hidden] in the model's dtype; neuron int64 [K]; folded float32 [K];
    score float32 [at least tokens].
    """
    if z.is_cuda:
        from guard.engine import kernels

        kernels.tap(z, h, neuron, folded, score)
    else:
        # Seven calls of torch, most of them in place: at a decode's few rows it is their number that costs.
        contribution = z.index_select(1, neuron).float().abs_().mv(folded)
        norm = torch.linalg.vector_norm(h, dim=-1, dtype=torch.float32).add_(EPSILON)
        score.narrow(0, 0, z.shape[0]).addcdiv_(contribution, norm)


def collect(z: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, sums: torch.Tensor) -> None:
    """sums[s] += sum_t weight[s, t] |z[t]| / ||h[t]||: what a probe is fit on.

    z [tokens, neurons] and h [tokens, hidden] in the model's dtype; weight float32 [slots, at least tokens];
    sums float32 [slots, neurons].
    """
    norm = torch.linalg.vector_norm(h, dim=-1, dtype=torch.float32).add_(EPSILON)
    sums.addmm_(weight[:, : z.shape[0]] / norm, z.float().abs())


def _tap_fake(
    z: torch.Tensor, h: torch.Tensor, neuron: torch.Tensor, folded: torch.Tensor, score: torch.Tensor
) -> None:
    return None


def _collect_fake(z: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, sums: torch.Tensor) -> None:
    return None


# The ops live as long as their library does.
_library = torch.library.Library("hguard", "FRAGMENT")  # type: ignore[no-untyped-call]


def register() -> None:
    """Register ``torch.ops.hguard.tap`` and ``collect``; again is harmless."""
    if hasattr(torch.ops.hguard, "tap"):
        return
    from vllm.utils.torch_utils import direct_register_custom_op

    direct_register_custom_op("tap", tap, mutates_args=["score"], fake_impl=_tap_fake, target_lib=_library)
    direct_register_custom_op("collect", collect, mutates_args=["sums"], fake_impl=_collect_fake, target_lib=_library)
