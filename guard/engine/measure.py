"""Entropy and log-probability of drawn tokens, from the logits, in one pass over them."""

from __future__ import annotations

import torch

# Rows whose float32 copy stays in a core's cache; a temporary of the whole batch costs several times as much.
_CACHED = 1 << 18
# exp(-200) is 0 in float32, and 0 * -200 is 0 where 0 * -inf (a token that the model rules out) is not.
_NEGLIGIBLE = -200.0


def statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(entropy in nats, log of the sum of exponentials) of each row: [rows, vocabulary] -> float32 [rows] each."""
    if logits.is_cuda:
        from guard.engine.kernels import row_statistics

        return row_statistics(logits)
    step = max(1, _CACHED // logits.shape[1])
    parts = [_statistics(part) for part in torch.split(logits, step)] or [_statistics(logits)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([entropy for entropy, _ in parts]), torch.cat([normaliser for _, normaliser in parts])


def _statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # H = log S - T / S with d = x - max x, S = sum exp d, T = sum d exp d.
    logits = logits.float()
    peak = logits.amax(-1, keepdim=True)
    distance = (logits - peak).clamp_min_(_NEGLIGIBLE)
    weight = distance.exp()
    total = weight.sum(-1)
    log_total = total.log()
    return log_total - weight.mul_(distance).sum(-1) / total, peak[:, 0] + log_total


def log_probability(logits: torch.Tensor, normaliser: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability in nats of one token of each row: tokens int64 [rows] -> float32 [rows]."""
    return logits.gather(1, tokens[:, None])[:, 0].float() - normaliser
