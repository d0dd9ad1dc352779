"""A probe bundle: a folder with ``probe.safetensors`` and ``probe.json``. Never pickle.

Tensors: layer, neuron int32 [k]; coefficient, folded float32 [k]; right_risks float32 [m], ascending, the risks of the
calibration answers that were right (thresholds for any false-positive rate come from them).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from guard.errors import BundleError
from guard.probe import conformal
from guard.probe.card import SCHEMA_VERSION, ProbeCard, StackParameters
from guard.probe.identity import differences
from guard.probe.readout import Readout, Stack

TENSORS = {
    "layer": np.int32,
    "neuron": np.int32,
    "coefficient": np.float32,
    "folded": np.float32,
    "right_risks": np.float32,
}
LARGEST = 64 << 20  # bytes; a probe has thousands of neurons at most


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified probe bundle."""

    path: Path
    card: ProbeCard
    layer: NDArray[np.int32]
    neuron: NDArray[np.int32]
    coefficient: NDArray[np.float32]
    folded: NDArray[np.float32]
    right_risks: NDArray[np.float32]

    @property
    def revision(self) -> str:
        """The first twelve hex digits of the hash of tensors and card."""
        text = json.dumps(self.card.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def h_neurons(self) -> int:
        """How many neurons have a positive coefficient: the H-Neurons, and the ones that can be dampened."""
        return int((self.coefficient > 0).sum())

    @property
    def readout(self) -> Readout:
        r = self.card.readout
        return Readout(r.window, _stack(r.answer), r.platt, _stack(r.token))

    def threshold(self, target_fpr: float) -> float:
        """The risk at which to flag for at most this rate of false alarms on right answers."""
        return conformal.threshold(self.right_risks, target_fpr)


def _stack(p: StackParameters) -> Stack:
    return Stack(p.mean, p.scale, p.weight, p.bias)


def load_bundle(path: str | Path) -> Bundle:
    """Read and verify a bundle. Raises BundleError with the cause and the remedy."""
    folder = Path(path)
    for name in ("probe.json", "probe.safetensors"):
        file = folder / name
        if not file.is_file():
            raise BundleError(f"no probe bundle at {folder}: {name} is missing; fit one, or check --probe")
        if file.stat().st_size > LARGEST:
            raise BundleError(f"{file} is larger than {LARGEST >> 20} MiB, which no probe is")
    card = _read_card(folder / "probe.json")
    raw = (folder / "probe.safetensors").read_bytes()
    if hashlib.sha256(raw).hexdigest() != card.tensors_sha256:
        raise BundleError(
            f"{folder / 'probe.safetensors'} is not the file that probe.json was written for (sha256 differs)"
        )
    try:
        tensors = load(raw)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{folder / 'probe.safetensors'} is not a readable safetensors file: {error}") from None
    _check_tensors(folder, card, tensors)
    return Bundle(folder, card, **{name: tensors[name] for name in TENSORS})


def save_bundle(folder: Path, card: ProbeCard, tensors: dict[str, NDArray[np.generic]]) -> Bundle:
    """Write a bundle (its card's hash is filled in here) and read it back verified."""
    raw = save({name: np.ascontiguousarray(tensors[name], dtype=dtype) for name, dtype in TENSORS.items()})
    card = card.model_copy(update={"tensors_sha256": hashlib.sha256(raw).hexdigest()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "probe.safetensors").write_bytes(raw)
    text = json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (folder / "probe.json").write_text(text + "\n", encoding="utf-8")
    return load_bundle(folder)


def require_model(bundle: Bundle, model: str | Path, relaxed: bool = False) -> list[str]:
    """Check that ``model`` (a local folder) is the one the bundle was fit on.

    With ``relaxed`` a different chat template is tolerated; returns what differed, to be said loudly.
    Raises BundleError naming every difference that is not tolerated.
    """
    fatal, tolerable = differences(bundle.card.model, Path(model))
    if fatal or (tolerable and not relaxed):
        listed = "; ".join(fatal + tolerable)
        raise BundleError(f"probe {bundle.card.id} was not fit on this model: {listed}. Fit a probe for this model.")
    return tolerable


def _read_card(file: Path) -> ProbeCard:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{file} is not valid JSON: {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(f"{file} has schema version {version!r}; this release reads version {SCHEMA_VERSION}")
    try:
        # Through JSON, so that a list is a tuple and an int a float, as the file means them.
        return ProbeCard.model_validate_json(json.dumps(content))
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise BundleError(f"{file} is not a valid card: " + "; ".join(lines[:5])) from None


def _check_tensors(folder: Path, card: ProbeCard, tensors: dict[str, NDArray[np.generic]]) -> None:
    def fail(why: str) -> None:
        raise BundleError(f"probe bundle {folder}: {why}")

    for name, dtype in TENSORS.items():
        if name not in tensors:
            fail(f"tensor {name!r} is missing")
        if tensors[name].dtype != dtype or tensors[name].ndim != 1:
            found = f"{tensors[name].dtype}{list(tensors[name].shape)}"
            fail(f"tensor {name!r} must be one-dimensional {np.dtype(dtype).name}, not {found}")
    k = len(tensors["layer"])
    if k == 0:
        fail("it has no neurons, so there is nothing to tap")
    if any(len(tensors[name]) != k for name in ("neuron", "coefficient", "folded")):
        fail("layer, neuron, coefficient and folded differ in length")
    for name in ("coefficient", "folded", "right_risks"):
        if not np.isfinite(tensors[name]).all():
            fail(f"tensor {name!r} has values that are not finite")
    for name, limit in (("layer", card.model.layers), ("neuron", card.model.neurons_per_layer)):
        if tensors[name].min() < 0 or tensors[name].max() >= limit:
            fail(f"a {name} index is outside 0..{limit - 1}")
    if len(set(zip(tensors["layer"].tolist(), tensors["neuron"].tolist(), strict=True))) != k:
        fail("a neuron is listed twice")
    if np.any(np.diff(tensors["right_risks"].astype(np.float64)) < 0):
        fail("right_risks is not ascending")
