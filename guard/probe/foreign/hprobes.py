"""Probes that the package hprobes saved: ``probe.json`` and ``probe.safetensors`` (version 0.9).

Its features are CETT as ours are, but standardised: a coefficient c of a neuron with mean m and deviation s stands for
a weight c / (s + 1e-8) on CETT as it is, and takes m times that from the intercept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from guard.errors import BundleError
from guard.probe.foreign.folder import folder_of
from guard.probe.foreign.neurons import Neurons

CARD, TENSORS = "probe.json", "probe.safetensors"
_NEEDED = ("clf_coef", "clf_intercept", "top_k_idx", "col_mean", "col_std")
_FLOOR = 1e-8  # that it adds to every deviation


def is_hprobes(path: Path) -> bool:
    """Whether this is a folder with such a probe, or one of its two files."""
    return folder_of(path, CARD, TENSORS) is not None


def read_hprobes(path: Path, layers: int, neurons_per_layer: int) -> Neurons:
    """The neurons with a weight, for a model of this size. Raises BundleError naming the file and the fault."""
    folder = path if path.is_dir() else path.parent
    used, width = _config(folder / CARD, layers)
    if width != neurons_per_layer:
        raise BundleError(f"{folder / CARD}: its model has {width} neurons in a layer, this one {neurons_per_layer}")
    coefficient, intercept, index, mean, deviation = _tensors(folder / TENSORS)
    if (index < 0).any() or (index >= len(used) * width).any():
        raise BundleError(f"{folder / TENSORS}: top_k_idx points past its {len(used)} layers of {width} neurons")
    weight = coefficient / (deviation + _FLOOR)
    kept = np.flatnonzero(coefficient)
    if not len(kept):
        raise BundleError(f"{folder / TENSORS}: every coefficient is 0, so there is nothing to read")
    layer = np.array(used, np.int32)[index[kept] // width]
    neuron = (index[kept] % width).astype(np.int32)
    with np.errstate(over="ignore"):
        rounded, shifted = weight[kept].astype(np.float32), float(intercept - weight @ mean)
    if not np.isfinite(rounded).all() or not np.isfinite(shifted):
        raise BundleError(f"{folder / TENSORS}: a coefficient over its deviation is not finite in float32")
    if len({*zip(layer.tolist(), neuron.tolist(), strict=True)}) < len(kept):
        raise BundleError(f"{folder / TENSORS}: top_k_idx names a neuron twice")
    return Neurons(layer, neuron, rounded, shifted)


def _config(file: Path, layers: int) -> tuple[list[int], int]:
    """(the model's layers that it read, neurons in each)."""
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))["config"]
        used, width = config["layers"], config["intermediate_dim"]
        known = isinstance(used, list) and all(type(layer) is int for layer in (*used, width))
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise BundleError(f"{file} is no probe of hprobes: config.layers and config.intermediate_dim are not there")
    if not used or not all(0 <= layer < layers for layer in used):
        raise BundleError(f"{file}: its layers go to {max(used, default=-1)}, the model's to {layers - 1}")
    return used, width


def _tensors(file: Path) -> list[NDArray[Any]]:
    """coefficient [k], intercept, index int64 [k], mean [k], deviation [k], in float64. Nothing else is read: a probe
    may have brought its training data along."""
    try:
        with safe_open(file, framework="np") as tensors:
            if missing := [name for name in _NEEDED if name not in tensors.keys()]:  # noqa: SIM118 - no mapping
                raise BundleError(
                    f"{file} lacks {', '.join(missing)}: its coefficients cannot be brought to CETT as it is; "
                    "list its neurons, and fit them again with --refit"
                )
            found = {name: tensors.get_tensor(name) for name in _NEEDED}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{file} cannot be read: {error}") from None
    except TypeError:  # a type that numpy has not
        raise BundleError(f"{file}: its tensors are not float32 or float64") from None
    values = [found[name].astype(np.int64 if name == "top_k_idx" else np.float64).reshape(-1) for name in _NEEDED]
    coefficient, intercept, index, mean, deviation = values
    if len(intercept) != 1 or not len(coefficient) == len(index) == len(mean) == len(deviation):
        raise BundleError(
            f"{file}: clf_coef, top_k_idx, col_mean and col_std are not of one length, or not one class's"
        )
    if not all(np.isfinite(one).all() for one in values):
        raise BundleError(f"{file}: a value is not finite")
    if (deviation < 0).any():
        raise BundleError(f"{file}: a deviation in col_std is negative")
    return [coefficient, intercept[0], index, mean, deviation]
