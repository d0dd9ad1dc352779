"""Linear probes of ``hallucination_probes`` (arXiv 2509.03531): ``probe_config.json`` and ``probe_head.bin``.

The first names a layer, the second holds a linear map from what that layer returns to one logit for each token.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.errors import BundleError
from guard.probe.foreign.folder import folder_of
from guard.probe.heads import Head

CONFIG, HEAD = "probe_config.json", "probe_head.bin"
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
LARGEST = 16 << 20  # bytes, however the file is packed; a head of 16,384 numbers in float64 has 128 KiB


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """head: of one layer. bias: what its score begins with."""

    head: Head
    bias: float


def is_linear(path: Path) -> bool:
    """Whether this is a folder with such a probe, or one of its two files."""
    return folder_of(path, CONFIG, HEAD) is not None


def read_linear(path: Path, layers: int, hidden_size: int) -> LinearProbe:
    """The probe, for a model of so many layers and so wide. Raises BundleError naming the file and the fault."""
    folder = path if path.is_dir() else path.parent
    if adapters := [name for name in _ADAPTERS if (folder / name).is_file()]:
        raise BundleError(
            f"{folder} has {adapters[0]}: its head was trained with an adapter (LoRA) on the model and reads other "
            "states than the model's own; merge the adapter into the model, and import the head for that"
        )
    layer, hidden = _config(folder / CONFIG, layers)
    if hidden != hidden_size:
        raise BundleError(f"{folder / CONFIG}: its model's states have {hidden} numbers, this one's {hidden_size}")
    weight, bias = _head(folder / HEAD)
    if len(weight) != hidden:
        raise BundleError(f"{folder / HEAD}: its head reads {len(weight)} numbers, {CONFIG} says {hidden}")
    return LinearProbe(Head(np.array([layer], np.int32), weight[None]), bias)


def _config(file: Path, layers: int) -> tuple[int, int]:
    """(layer, width of its states)."""
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
        layer, hidden = config["layer_idx"], config["hidden_size"]
        known = type(layer) is int and type(hidden) is int
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise BundleError(f"{file} does not say which layer the probe reads: layer_idx and hidden_size are not there")
    if not 0 <= layer < layers:
        raise BundleError(f"{file}: it reads layer {layer}, and the model's go from 0 to {layers - 1}")
    return layer, hidden


def _head(file: Path) -> tuple[NDArray[np.float32], float]:
    """(weight [hidden], bias). Tensors alone are read (``weights_only``): the file could hold any program."""
    if _unpacked(file) > LARGEST:
        raise BundleError(f"{file} is larger than {LARGEST >> 20} MiB, which no linear head is")
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
        if not all(_is_plain(tensor) for tensor in found.values()):
            raise ValueError
        tensors = {name: tensor.detach().resolve_neg().float() for name, tensor in found.items()}
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, KeyError, AttributeError, pickle.UnpicklingError):
        raise BundleError(f"{file} is not a state dict of plain tensors alone, so it is not read") from None
    weights = [one for one in tensors.values() if one.dim() == 2 and one.shape[0] == 1]
    biases = [one for one in tensors.values() if one.dim() == 1 and len(one) == 1]
    if len(weights) != 1 or len(biases) != 1 or len(tensors) != 2:
        shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in tensors.items())
        raise BundleError(f"{file} holds {shapes or 'nothing'}, and not a weight [1, hidden] and a bias [1]")
    weight, bias = weights[0][0].numpy(), float(biases[0][0])
    if not np.isfinite(weight).all() or not np.isfinite(bias):
        raise BundleError(f"{file}: a value is not finite")
    return weight, bias


def _unpacked(file: Path) -> int:
    """Bytes of the file, or of all that it holds where that is more."""
    size = file.stat().st_size
    if zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as packed:
                size = max(size, sum(one.file_size for one in packed.infolist()))
        except (zipfile.BadZipFile, OSError):
            pass  # which torch says, too
    return size


def _is_plain(tensor: Any) -> bool:
    """Whether it is a tensor of real numbers each of which is in the file."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_complex()
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )
