"""The tap as a torch op: opaque to the compiler, so it survives torch.compile; it mutates only the score buffer."""

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


def _tap_fake(
    z: torch.Tensor, h: torch.Tensor, neuron: torch.Tensor, folded: torch.Tensor, score: torch.Tensor
) -> None:
    return None


# The op lives as long as its library does.
_library = torch.library.Library("hguard", "FRAGMENT")  # type: ignore[no-untyped-call]


def register() -> None:
    """Register ``torch.ops.hguard.tap``; again is harmless."""
    if hasattr(torch.ops.hguard, "tap"):
        return
    from vllm.utils.torch_utils import direct_register_custom_op

    direct_register_custom_op("tap", tap, mutates_args=["score"], fake_impl=_tap_fake, target_lib=_library)
