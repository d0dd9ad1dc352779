"""Entropy and log-probability of drawn tokens, from the logits, in one pass over them."""

from __future__ import annotations

import torch

# Values whose float32 copy stays in a core's cache; a temporary of a whole large batch costs several times as much.
_CACHED = 1 << 18
# exp(-200) is 0 in float32, and 0 * -200 is 0 where 0 * -inf (a token that the model rules out) is not.
_NEGLIGIBLE = -200.0


def statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(entropy in nats, log of the sum of exponentials) of each row: [rows, vocabulary] -> float32 [rows] each."""
    if logits.is_cuda:
        from guard.worker.kernels import row_statistics

        return row_statistics(logits)
    step = max(1, _CACHED // logits.shape[1])
    if logits.shape[0] <= step:
        return _statistics(logits)
    entropy, normaliser = zip(*(_statistics(part) for part in torch.split(logits, step)), strict=True)
    return torch.cat(entropy), torch.cat(normaliser)


def _statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # H = log S - T / S with d = x - max x, S = sum exp d, T = sum d exp d.
    logits = logits.float()
    peak = logits.amax(-1, keepdim=True)
    distance = (logits - peak).clamp_min_(_NEGLIGIBLE)
    weight = distance.exp()
    total = weight.sum(-1)
    log_total = total.log()
    return log_total - weight.mul_(distance).sum(-1).div_(total), log_total + peak[:, 0]


def log_probability(logits: torch.Tensor, normaliser: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability in nats of one token of each row: tokens int64 [rows] -> float32 [rows]."""
    return logits.gather(1, tokens[:, None])[:, 0].float() - normaliser


class Drawn:
    """The distributions of one step, measured before anything is drawn from them.

    Sampling changes float32 logits in place, so what a draw's log-probability needs is kept. The normalised logits
    themselves where they are few: that takes fewer calls than anything else.
    """

    def __init__(self, logits: torch.Tensor) -> None:
        """logits [rows, vocabulary], on the CPU."""
        if logits.numel() <= _CACHED:
            self._kept = logits.float().log_softmax(-1).clamp_min_(_NEGLIGIBLE)
            self.entropy = -(self._kept.exp().mul_(self._kept).sum(-1))
            self._normaliser: torch.Tensor | None = None
        else:
            self.entropy, self._normaliser = statistics(logits)
            self._kept = logits.clone() if logits.dtype is torch.float32 else logits

    def log_probability(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of one token of each row, in nats: tokens int64 [rows] -> float32 [rows]."""
        if self._normaliser is None:
            return self._kept.gather(1, tokens[:, None])[:, 0]
        return log_probability(self._kept, self._normaliser, tokens)
