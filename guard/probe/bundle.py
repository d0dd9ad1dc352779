"""A probe bundle: a folder with ``probe.safetensors`` and ``probe.json``, and often ``reference.json``. Never pickle.

Tensors: layer, neuron int32 [k], with k 0 where a probe reads heads alone; coefficient, folded float32 [k]; right_risks
float32 [m], ascending, the risks of the calibration answers that were right (thresholds for any false-positive rate
come from them). Optional: wrong_risks float32, ascending, those of the wrong ones (with them, live risks can be held
against the calibration's), and, where a risk is known before any text exists, right_prompt_risks float32 [m], the same
as right_risks of that risk; usual float32 [k], what each neuron contributes to a score on average over the answers that
calibrate it, which an explanation holds against; train_questions uint64, ascending, hashes of the questions that the
neurons were found on, which nothing else may be measured on; residual_layer, attention_layer and block_layer
int32 [m], residual_weight, attention_weight and block_weight float32 [m, width], distance_layer int32 [1],
distance_weight float32 [k, width + 1]: the heads (``guard.probe.heads``) of a probe that reads these signals.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from guard.errors import BundleError, RequestError
from guard.probe import conformal, drift
from guard.probe.card import SCHEMA_VERSION, ProbeCard
from guard.probe.drift import Bands
from guard.probe.heads import HEAD_TENSORS, Head, head_flaw, heads_in, tensors_of
from guard.probe.identity import differences, forward_config, model_config
from guard.probe.readout import Readout
from guard.probe.reference import Reference, config_differences, read_reference, write_reference
from guard.probe.signals import ALWAYS, BLOCK, COLUMN, DISTANCE, HEADS, NEURONS, RESIDUAL

FILES = ("probe.json", "probe.safetensors")
TENSORS: dict[str, type[np.generic]] = {
    "layer": np.int32,
    "neuron": np.int32,
    "coefficient": np.float32,
    "folded": np.float32,
    "right_risks": np.float32,
}
OPTIONAL: dict[str, type[np.generic]] = {
    "wrong_risks": np.float32,
    "right_prompt_risks": np.float32,
    "train_questions": np.uint64,
    "usual": np.float32,
    **HEAD_TENSORS,
}
_PLAIN = [name for name in (*TENSORS, *OPTIONAL) if name not in HEAD_TENSORS]
_TABLES = {name for name in HEAD_TENSORS if name.endswith("_weight")}  # two-dimensional
_RISKS = {"right_risks", "wrong_risks", "right_prompt_risks"}
LARGEST = 64 << 20  # bytes; a probe has thousands of neurons at most


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified probe bundle. readout: what the card says of it."""

    path: Path
    card: ProbeCard
    layer: NDArray[np.int32]
    neuron: NDArray[np.int32]
    coefficient: NDArray[np.float32]
    folded: NDArray[np.float32]
    right_risks: NDArray[np.float32]
    right_prompt_risks: NDArray[np.float32] | None = None
    wrong_risks: NDArray[np.float32] | None = None
    train_questions: NDArray[np.uint64] | None = None
    usual: NDArray[np.float32] | None = None
    heads: dict[str, Head] = field(default_factory=dict)
    reference: Reference | None = None
    readout: Readout = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "readout", self.card.readout.readout())

    @property
    def revision(self) -> str:
        """The first twelve hex digits of the hash of tensors and card."""
        text = json.dumps(self.card.as_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def fits_the_weights_of(self, other: Bundle) -> bool:
        """Whether both were fit on the same weights, in the same precision."""
        own, theirs = self.card.model, other.card.model
        return (own.fingerprint, own.dtype) == (theirs.fingerprint, theirs.dtype)

    def reads_as(self, other: Bundle) -> bool:
        """Whether both measure the same of the same weights, and differ at most in what is made of it."""
        return (
            self.fits_the_weights_of(other)
            and all(
                np.array_equal(getattr(self, name), getattr(other, name))
                for name in ("layer", "neuron", "folded", "coefficient")
            )
            and self.tapped_heads == other.tapped_heads
        )

    def reads_within(self, other: Bundle) -> bool:
        """Whether all that it makes a risk of is measured where ``other`` serves: it can be scored beside that."""
        neurons = ("layer", "neuron", "folded") if NEURONS in self.readout.used else ()
        return (
            self.fits_the_weights_of(other)
            and self.readout.used <= other.measured
            and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in neurons)
            and all(other.heads.get(name) == self.heads[name] for name in self.readout.used & self.heads.keys())
        )

    @property
    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """What ``save_bundle`` takes."""
        found = {name: getattr(self, name) for name in _PLAIN}
        return {name: tensor for name, tensor in found.items() if tensor is not None} | tensors_of(self.heads)

    @property
    def h_neurons(self) -> int:
        """How many neurons have a positive coefficient: the H-Neurons, and the ones that can be scaled."""
        return int((self.coefficient > 0).sum())

    @property
    def told_by_neurons(self) -> bool:
        """Whether neurons count in an answer's risk, so that they can explain it."""
        return len(self.neuron) > 0 and self.readout.answer.weight[COLUMN[NEURONS]] != 0

    @property
    def calibrated(self) -> bool:
        """Whether its risks are probabilities. Those of an imported list are not: no answers stand behind them."""
        return len(self.right_risks) > 0

    @property
    def measured(self) -> frozenset[str]:
        """The signals that an engine with this probe measures."""
        return frozenset({*self.readout.used, *ALWAYS, *self.tapped_heads})

    @property
    def tapped_heads(self) -> dict[str, Head]:
        """Those that count in a risk, and DISTANCE, by name of a signal."""
        used = self.readout.used
        return {name: head for name, head in self.heads.items() if name in used or name == DISTANCE}

    @property
    def layers_read(self) -> dict[str, list[int]]:
        """By name of a signal of the forward pass that counts, the layers that it is read of."""
        neurons = {NEURONS: sorted(set(self.layer.tolist()))} if len(self.layer) else {}
        return neurons | {name: head.layer.tolist() for name, head in self.tapped_heads.items()}

    @property
    def has_prompt_risk(self) -> bool:
        """Whether it gives a risk before any text exists, and thresholds for it."""
        return self.card.readout.prompt_platt is not None and self.right_prompt_risks is not None

    @property
    def bands(self) -> Bands | None:
        """How the risks of the calibration answers are distributed; None where the bundle does not say."""
        if self.wrong_risks is None:
            return None
        return drift.bands(np.concatenate([self.right_risks, self.wrong_risks]))

    def threshold(self, target_fpr: float) -> float:
        """The risk at which to flag for at most this rate of false alarms on right answers."""
        return conformal.threshold(self.right_risks, target_fpr)

    def prompt_threshold(self, target_fpr: float) -> float:
        """The same of the risk before any text exists. Raises RequestError where this bundle gives none."""
        if self.right_prompt_risks is None:
            raise RequestError(
                f"probe {self.card.id} gives no risk before generation; `hguard calibrate` adds it",
                param="hallucination.prompt_check",
            )
        return conformal.threshold(self.right_prompt_risks, target_fpr)


def load_bundle(path: str | Path, with_reference: bool = True) -> Bundle:
    """Read and verify a bundle. Raises BundleError with the cause and the remedy."""
    folder = Path(path)
    for name in FILES:
        file = folder / name
        if not file.is_file():
            raise BundleError(f"no probe bundle at {folder}: {name} is missing; fit one, or check --probe")
        if file.stat().st_size > LARGEST:
            raise BundleError(f"{file} exceeds the {LARGEST >> 20} MiB bundle limit")
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
    found: dict[str, Any] = {name: tensors[name] for name in _PLAIN if name in tensors}
    bundle = Bundle(folder, card, **found, heads=heads_in(tensors))
    return replace(bundle, reference=read_reference(folder, bundle.layers_read)) if with_reference else bundle


def save_bundle(
    folder: Path, card: ProbeCard, tensors: dict[str, NDArray[np.generic]], reference: Reference | None = None
) -> Bundle:
    """Write a bundle (its card's hash is filled in here) and read it back verified."""
    kept = {name: dtype for name, dtype in (TENSORS | OPTIONAL).items() if name in TENSORS or name in tensors}
    raw = save({name: np.ascontiguousarray(tensors[name], dtype=dtype) for name, dtype in kept.items()})
    card = card.model_copy(update={"tensors_sha256": hashlib.sha256(raw).hexdigest()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "probe.safetensors").write_bytes(raw)
    text = json.dumps(card.as_json(), indent=1, ensure_ascii=False)
    (folder / "probe.json").write_text(text + "\n", encoding="utf-8")
    write_reference(folder, reference)
    return load_bundle(folder)


def require_model(bundle: Bundle, model: str | Path, relaxed: bool = False) -> list[str]:
    """Check that ``model`` (a local folder) is the one the bundle was fit on.

    With ``relaxed`` a different chat template is tolerated; returns what differed, to be said loudly.
    Raises BundleError naming every difference that is not tolerated.
    """
    fatal, tolerable = differences(bundle.card.model, Path(model))
    hidden = model_config(Path(model)).get("hidden_size")
    fatal += [
        f"its states are {hidden} wide, and the probe's head on {name} is of {bundle.heads[name].width}"
        for name in (RESIDUAL, BLOCK, DISTANCE)
        if name in bundle.heads and hidden is not None and bundle.heads[name].width != hidden
    ]
    if bundle.reference is not None:
        fatal += config_differences(bundle.reference.config, forward_config(Path(model)))
    if fatal or (tolerable and not relaxed):
        listed = "; ".join(fatal + tolerable)
        raise BundleError(f"probe {bundle.card.id} was not fit on this model: {listed}. Fit a probe for this model.")
    return tolerable


def require_calibrated(bundle: Bundle, model: str | Path) -> None:
    """Raise BundleError for a bundle whose risks mean nothing yet; ``model`` is how to name its model."""
    if not bundle.calibrated:
        raise BundleError(
            f"probe {bundle.card.id} is not calibrated: run "
            f"`hguard calibrate {model} --probe {bundle.path} --data QUESTIONS --out DIR` and use what that makes"
        )


def _read_card(file: Path) -> ProbeCard:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not valid JSON: {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema version {version!r}, and this release reads version {SCHEMA_VERSION}: make the probe "
            "again with `hguard fit`, or use the release that wrote it"
        )
    try:
        # Through JSON, so that a list is a tuple and an int a float, as the file means them.
        return ProbeCard.model_validate_json(json.dumps(content))
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise BundleError(f"{file} is not a valid card: " + "; ".join(lines[:5])) from None


def _check_tensors(folder: Path, card: ProbeCard, tensors: dict[str, NDArray[np.generic]]) -> None:
    def fail(why: str) -> None:
        raise BundleError(f"probe bundle {folder}: {why}")

    for name, dtype in (TENSORS | OPTIONAL).items():
        if name not in tensors:
            if name in OPTIONAL:
                continue
            fail(f"tensor {name!r} is missing")
        dimensions = 2 if name in _TABLES else 1
        if tensors[name].dtype != dtype or tensors[name].ndim != dimensions:
            found = f"{tensors[name].dtype}{list(tensors[name].shape)}"
            shape = "two-dimensional" if dimensions == 2 else "one-dimensional"
            fail(f"tensor {name!r} must be {shape} {np.dtype(dtype).name}, not {found}")
    k = len(tensors["layer"])
    used = card.readout.readout().used
    if k == 0 and (NEURONS in used or not used & set(HEADS)):
        fail("it has no neurons, and no head counts in its risks: there is nothing to tap")
    if any(len(tensors[name]) != k for name in ("neuron", "coefficient", "folded", "usual") if name in tensors):
        fail("layer, neuron, coefficient, folded and usual differ in length")
    for name in set(tensors) & {"coefficient", "folded", "usual", *_RISKS}:
        if not np.isfinite(tensors[name]).all():
            fail(f"tensor {name!r} has values that are not finite")
    for name, limit in (("layer", card.model.layers), ("neuron", card.model.neurons_per_layer)):
        if k and (tensors[name].min() < 0 or tensors[name].max() >= limit):
            fail(f"a {name} index is outside 0..{limit - 1}")
    if len(set(zip(tensors["layer"].tolist(), tensors["neuron"].tolist(), strict=True))) != k:
        fail("a neuron is listed twice")
    for name in set(tensors) & _RISKS:
        if np.any(np.diff(tensors[name].astype(np.float64)) < 0):
            fail(f"{name} is not ascending")
    if (card.readout.prompt_platt is None) != ("right_prompt_risks" not in tensors):
        fail("a risk before generation needs both its calibration in the card and the tensor right_prompt_risks")
    if (flaw := head_flaw(tensors, card.model.layers)) is not None:
        fail(flaw)
    if missing := sorted(used & set(HEADS) - set(heads_in(tensors))):
        fail(f"its readout reads {', '.join(missing)}, and it has no head for that")
    if card.readout.distance_limit is not None and DISTANCE not in heads_in(tensors):
        fail("its card has a limit of the distance, and there is no head for that")
