"""CETT: how much of an MLP's output one neuron contributes to it (arXiv 2512.01797, section 6.1.2).

For token t, z is the input of ``down_proj`` and h its output:

    CETT_j = |z_j| * ||W_down[:, j]||_2 / ||h||_2

A linear probe over CETT needs, per token, one number of each layer: sum_j c_j |z_j| / ||h|| with
c_j = w_j ||W_down[:, j]||_2 folded once from the checkpoint (an engine may repack the weights after loading).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

EPSILON = 1e-8  # added to ||h||, as in the official code


def column_norms(weight: torch.Tensor) -> torch.Tensor:
    """||W_down[:, j]||_2 for each neuron j; ``weight`` is [hidden, neurons], the result float32 [neurons]."""
    return weight.detach().float().norm(dim=0)


def contributions(z: torch.Tensor, h: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """CETT of every neuron: z [tokens, neurons], h [tokens, hidden], norms [neurons] -> float32 [tokens, neurons]."""
    return z.float().abs() * norms / (h.float().norm(dim=-1, keepdim=True) + EPSILON)


def fold(coefficients: NDArray[np.float32], norms: NDArray[np.float32]) -> NDArray[np.float32]:
    """c_j = w_j ||W_down[:, j]||_2, elementwise over the probe's neurons."""
    return (coefficients * norms).astype(np.float32)
