"""Column norms of every ``down_proj``, from the checkpoint: an engine may repack the weights after loading."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from guard.errors import FitError
from guard.probe.cett import column_norms

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
