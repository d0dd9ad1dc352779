"""CETT: how much of an MLP's output one neuron contributes to it (arXiv 2512.01797, section 6.1.2).

For token t, z is the input of ``down_proj`` and h its output:

    CETT_j = |z_j| * ||W_down[:, j]||_2 / ||h||_2

A linear probe over CETT needs, per token, one number of each layer: sum_j c_j |z_j| / ||h|| with
c_j = w_j ||W_down[:, j]||_2 folded once from the checkpoint (an engine may repack the weights after loading).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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


_NAME = re.compile(r"(?:^|\.)layers\.(\d+)\.mlp\.down_proj\.(weight(?:_packed)?)$")
_QUANTISED = re.compile(r"(?:^|\.)layers\.\d+\.mlp\.down_proj\.(?:qweight|weight_scale_inv|weight_zero_point)$")
_NIBBLES = torch.arange(0, 32, 4)


def norms_of(folder: Path, layers: int, neurons: int) -> NDArray[np.float32]:
    """||W_down[:, j]||_2 of every neuron: float32 [layers, neurons]. One matrix is in memory at a time.

    Of a quantised checkpoint W_down is what its numbers stand for: compressed-tensors' int8 and float8 with scales, and
    symmetric int4 packed into int32. Raises FitError for another format.
    """
    norms = np.full((layers, neurons), np.nan, np.float32)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping, it only looks like one
                if _QUANTISED.search(name) and "vision" not in name:
                    raise FitError(
                        f"{file.name}: {name} is of a quantisation whose column norms are not read here; fit "
                        "heads alone (hguard fit --neurons none)"
                    )
                match = _NAME.search(name)
                # A vision tower has layers of its own.
                if match is None or "vision" in name or int(match[1]) >= layers:
                    continue
                weight = _dequantised(tensors, name, packed=match[2] != "weight")
                if weight.shape[1] != neurons:
                    raise FitError(f"{file.name}: {name} has {weight.shape[1]} neurons, config.json says {neurons}")
                norms[int(match[1])] = column_norms(weight).numpy()
    missing = np.flatnonzero(np.isnan(norms[:, 0])).tolist()
    if missing:
        raise FitError(f"{folder} has no mlp.down_proj.weight for layers {missing} in its safetensors files")
    return norms


def _dequantised(tensors: Any, name: str, packed: bool) -> torch.Tensor:
    """The matrix [hidden, neurons] that a tensor of a safetensors file stands for.

    Its scales lie beside it: one for all, for each row, for each group of a row, or for each block.
    """
    weight: torch.Tensor = tensors.get_tensor(name)
    scale_name = f"{name.removesuffix('_packed')}_scale"
    if scale_name not in tensors.keys():  # noqa: SIM118 - as above
        if weight.dtype in (torch.int8, torch.int32, torch.float8_e4m3fn):
            raise FitError(f"{name} is {weight.dtype}, and the file has no {scale_name}: its scales are not read here")
        return weight
    scale: torch.Tensor = tensors.get_tensor(scale_name).float()
    if packed:
        if weight.dtype != torch.int32:
            raise FitError(f"{name} is {weight.dtype}, and not int4 packed into int32")
        # Eight to an int32, the lowest four bits first, each as the number and 8.
        weight = ((weight[:, :, None] >> _NIBBLES) & 15).flatten(1) - 8
    rows, columns = weight.shape
    if scale.dim() == 1 and len(scale) == rows:
        scale = scale[:, None]
    if scale.numel() == 1:
        return weight.float() * scale.reshape(())
    if scale.dim() != 2 or rows % scale.shape[0] or columns % scale.shape[1]:
        raise FitError(f"{scale_name} has the shape {list(scale.shape)}, of which {[rows, columns]} is no multiple")
    return weight.float() * scale.repeat_interleave(rows // scale.shape[0], 0).repeat_interleave(
        columns // scale.shape[1], 1
    )
