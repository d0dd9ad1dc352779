"""The taps as torch ops, opaque to the compiler; each mutates one tensor only.

CUDA calls the ops, which are Triton kernels where every server runs them. On CPU compiled models have the functions
themselves: there a call costs more than what it does, and the compiler makes loops of them that it puts into those
around them.
"""

from __future__ import annotations

import torch

from guard.probe.cett import EPSILON


def scale(
    z: torch.Tensor, neuron: torch.Tensor, folded: torch.Tensor, scaled: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    """Before the projection: sum_k folded[k] |z[t, neuron[k]]|, float32 [tokens]; then scaled columns of z times alpha.

    z [tokens, neurons] in the model's dtype, written in place; neuron int64 [K]; folded float32 [K]; scaled bool [K],
    the same for entries of the same neuron; alpha float32 [at least tokens]. A product is rounded once.
    """
    if z.is_cuda:
        from guard.worker import kernels

        return kernels.scale(z, neuron, folded, scaled, alpha)
    read = z.index_select(1, neuron)
    contribution = (read.float().abs() * folded).sum(1)
    write_scaled(z, read, neuron, scaled, alpha)
    return contribution


def write_scaled(
    z: torch.Tensor, read: torch.Tensor, neuron: torch.Tensor, scaled: torch.Tensor, alpha: torch.Tensor
) -> None:
    """z[t, neuron[k]] = alpha[t] read[t, k] where scaled[k]; ``read`` [tokens, K] is what stood there.

    The rest as for ``scale``. All K columns are written: entries of one neuron agree, so any of them may come last.
    """
    factor = torch.where(scaled, alpha.narrow(0, 0, z.shape[0])[:, None], 1.0)
    z.index_copy_(1, neuron, (read.float() * factor).to(z.dtype))


def tap(h: torch.Tensor, contribution: torch.Tensor, score: torch.Tensor) -> None:
    """After the projection: score[t] += contribution[t] / ||h[t]||.

    h [tokens, hidden] in the model's dtype; contribution float32 [tokens], from ``scale``; score float32 [at least
    tokens]; NaN where either is not finite.
    """
    if h.is_cuda:
        from guard.worker import kernels

        kernels.tap(h, contribution, score)
    else:
        norm = torch.linalg.vector_norm(h, dim=-1, dtype=torch.float32) + EPSILON
        # An output that overflows must not look like one to which no neuron contributes. Said, not left to infinity
        # times 0: the compiler takes that for 0.
        score.narrow(0, 0, h.shape[0]).add_(torch.where(norm.isinf(), torch.nan, contribution / norm))


def spread(z: torch.Tensor, neuron: torch.Tensor, folded: torch.Tensor, apart: torch.Tensor) -> None:
    """Before the projection and ``scale``: apart[t, k] = folded[k] |z[t, neuron[k]]|.

    z, neuron and folded as for ``scale``; apart float32 [at least tokens, K].
    """
    apart.narrow(0, 0, z.shape[0]).copy_(z.index_select(1, neuron).float().abs() * folded)


def share(h: torch.Tensor, apart: torch.Tensor) -> None:
    """After the projection: apart[t, k] /= ||h[t]||, as ``tap`` has it; h as there, apart from ``spread``."""
    norm = torch.linalg.vector_norm(h, dim=-1, dtype=torch.float32) + EPSILON
    apart.narrow(0, 0, h.shape[0]).div_(norm[:, None])


def head(x: torch.Tensor, weight: torch.Tensor, score: torch.Tensor) -> None:
    """score[t] += sum_i weight[i] x[t, i]: what one layer's states add to a linear head's score.

    x [tokens, width] in the model's dtype; weight float32 [width]; score float32 [at least tokens]; not finite where a
    state is not.
    """
    if x.is_cuda:
        from guard.worker import kernels

        kernels.head(x, weight, score)
    else:
        score.narrow(0, 0, x.shape[0]).add_((x.float() * weight).sum(1))


def distance(x: torch.Tensor, weight: torch.Tensor, score: torch.Tensor) -> None:
    """score[t] += mean_k (weight[k] . (x[t], 1))^2: how far a layer's states lie from where they usually do.

    x [tokens, width] in the model's dtype; weight float32 [k, width + 1]; score float32 [at least tokens]; not finite
    where a state is not. One layer of the model has it, so its few kernels need not be one.
    """
    if x.is_cuda:
        add_distances(x, weight, score)
    else:
        _add_distance(x, weight, score)


def add_distances(x: torch.Tensor, weight: torch.Tensor, score: torch.Tensor, at_once: int = 512) -> None:
    """``distance`` of so many rows at once: a whole prompt's states in float32 would take more memory than all else
    that the guard has."""
    for start in range(0, x.shape[0], at_once):
        _add_distance(x[start : start + at_once], weight, score[start:])


def _add_distance(x: torch.Tensor, weight: torch.Tensor, score: torch.Tensor) -> None:
    axes = torch.addmm(weight[:, -1], x.float(), weight[:, :-1].t())
    score.narrow(0, 0, x.shape[0]).add_(axes.square().mean(1))


def collect(z: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, sums: torch.Tensor) -> None:
    """sums[s] += sum_t weight[s, t] |z[t]| / ||h[t]||: what a probe is fit on.

    z [tokens, neurons] and h [tokens, hidden] in the model's dtype; weight float32 [slots, at least tokens];
    sums float32 [slots, neurons]. A row that counts and is not finite is left out, and its sequence's first sum is NaN.
    """
    if not z.is_cuda:
        weight, z, h = _counted(weight, z, h)
    weight, idle = _counting(weight, z.shape[0])
    norm = torch.linalg.vector_norm(h, dim=-1, dtype=torch.float32).add_(EPSILON)
    size = z.float().abs()
    flawed = ~(size.amax(1) + norm).isfinite()
    blank = idle | flawed
    sums.addmm_(weight / norm.masked_fill_(blank, 1), size.masked_fill_(blank[:, None], 0))
    _mark(sums, weight, flawed)


def collect_states(x: torch.Tensor, weight: torch.Tensor, sums: torch.Tensor) -> None:
    """sums[s] += sum_t weight[s, t] x[t]: what a linear probe on a layer's states is fit on.

    x [tokens, width] in the model's dtype; weight, and rows that are not finite, as for ``collect``; sums float32
    [slots, width].
    """
    if not x.is_cuda:
        weight, x = _counted(weight, x)
    weight, idle = _counting(weight, x.shape[0])
    flawed = ~torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).isfinite()
    sums.addmm_(weight, x.float().masked_fill((idle | flawed)[:, None], 0))
    _mark(sums, weight, flawed)


def _counted(weight: torch.Tensor, *rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Only what counts of a step: of a prompt all rows but the last do not. Not in a CUDA graph, whose shapes stand."""
    counted = weight[:, : len(rows[0])].any(0).nonzero().squeeze(1)
    return weight[:, counted], *(part[counted] for part in rows)


def _counting(weight: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of a step's rows, and which of them count nowhere, bool [rows].

    Rows that only pad a CUDA graph may hold anything: 0 times NaN is NaN, so they are blanked.
    """
    weight = weight[:, :rows]
    return weight, ~weight.any(0)


def _mark(sums: torch.Tensor, weight: torch.Tensor, flawed: torch.Tensor) -> None:
    """NaN in the first column of every sequence of which a ``flawed`` row, bool [rows], counts.

    In the product itself such a row would make NaN of the other sequences, too: 0 times infinity is NaN.
    """
    sums[:, 0].masked_fill_(((weight != 0) & flawed).any(1), torch.nan)


def _scale_fake(
    z: torch.Tensor, neuron: torch.Tensor, folded: torch.Tensor, scaled: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    return z.new_empty(z.shape[0], dtype=torch.float32)


def _tap_fake(h: torch.Tensor, contribution: torch.Tensor, score: torch.Tensor) -> None:
    return None


def _spread_fake(z: torch.Tensor, neuron: torch.Tensor, folded: torch.Tensor, apart: torch.Tensor) -> None:
    return None


def _share_fake(h: torch.Tensor, apart: torch.Tensor) -> None:
    return None


def _head_fake(x: torch.Tensor, weight: torch.Tensor, score: torch.Tensor) -> None:
    return None


def _distance_fake(x: torch.Tensor, weight: torch.Tensor, score: torch.Tensor) -> None:
    return None


def _collect_fake(z: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, sums: torch.Tensor) -> None:
    return None


def _collect_states_fake(x: torch.Tensor, weight: torch.Tensor, sums: torch.Tensor) -> None:
    return None


# The ops live as long as their library does.
_library = torch.library.Library("hguard", "FRAGMENT")  # type: ignore[no-untyped-call]


def register() -> None:
    """Register ``torch.ops.hguard``'s ops: those that serve, and those that collect; again is harmless."""
    if hasattr(torch.ops.hguard, "tap"):
        return
    from vllm.utils.torch_utils import direct_register_custom_op

    direct_register_custom_op("scale", scale, mutates_args=["z"], fake_impl=_scale_fake, target_lib=_library)
    direct_register_custom_op("tap", tap, mutates_args=["score"], fake_impl=_tap_fake, target_lib=_library)
    direct_register_custom_op("spread", spread, mutates_args=["apart"], fake_impl=_spread_fake, target_lib=_library)
    direct_register_custom_op("share", share, mutates_args=["apart"], fake_impl=_share_fake, target_lib=_library)
    direct_register_custom_op("head", head, mutates_args=["score"], fake_impl=_head_fake, target_lib=_library)
    direct_register_custom_op(
        "distance", distance, mutates_args=["score"], fake_impl=_distance_fake, target_lib=_library
    )
    direct_register_custom_op("collect", collect, mutates_args=["sums"], fake_impl=_collect_fake, target_lib=_library)
    direct_register_custom_op(
        "collect_states",
        collect_states,
        mutates_args=["sums"],
        fake_impl=_collect_states_fake,
        target_lib=_library,
    )
