"""CETT: how much of an MLP's output one neuron contributes to it (arXiv 2512.01797, section 6.1.2).

For token t, z is the input of ``down_proj`` and h its output:

    CETT_j = |z_j| * ||W_down[:, j]||_2 / ||h||_2

A linear probe over CETT needs, per token, one number of each layer: sum_j c_j |z_j| / ||h|| with
c_j = w_j ||W_down[:, j]||_2 folded once from the checkpoint (an engine may repack the weights after loading).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from guard.errors import FitError

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


_NAME = re.compile(r"(?:^|\.)layers\.(\d+)\.mlp\.down_proj\.weight$")


def norms_of(folder: Path, layers: int, neurons: int) -> NDArray[np.float32]:
    """||W_down[:, j]||_2 of every neuron: float32 [layers, neurons]. One matrix is in memory at a time."""
    norms = np.full((layers, neurons), np.nan, np.float32)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping, it only looks like one
                match = _NAME.search(name)
                # A vision tower has layers of its own.
                if match is None or "vision" in name or int(match[1]) >= layers:
                    continue
                weight: torch.Tensor = tensors.get_tensor(name)
                if weight.shape[1] != neurons:
                    raise FitError(f"{file.name}: {name} has {weight.shape[1]} neurons, config.json says {neurons}")
                norms[int(match[1])] = column_norms(weight).numpy()
    missing = np.flatnonzero(np.isnan(norms[:, 0])).tolist()
    if missing:
        raise FitError(f"{folder} has no mlp.down_proj.weight for layers {missing} in its safetensors files")
    return norms
