"""From a list of neurons, or a head, to a bundle that is yet to be calibrated, or to what a fit takes neurons from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from guard.errors import BundleError
from guard.harness.store import translate_os_errors
from guard.probe.bundle import Bundle, save_bundle
from guard.probe.card import (
    SCHEMA_VERSION,
    ModelIdentity,
    ProbeCard,
    ReadoutParameters,
    StackParameters,
    Term,
    Training,
)
from guard.probe.cett import fold
from guard.probe.foreign.hprobes import is_hprobes, read_hprobes
from guard.probe.foreign.linear import LinearProbe
from guard.probe.foreign.neurons import Neurons, read_neurons
from guard.probe.heads import tensors_of
from guard.probe.signals import BLOCK, NEURONS


def listed(source: Path, model: ModelIdentity, weights: bool = True) -> Neurons:
    """A list's neurons, or those of a probe that hprobes saved. Without ``weights`` a list needs none.

    Raises BundleError for what cannot be read, or is for another model.
    """
    if is_hprobes(source):
        return read_hprobes(source, model.layers, model.neurons_per_layer)
    return read_neurons(source, model.layers, model.neurons_per_layer, weights)


def save_imported(
    folder: Path, bundle_id: str, model: ModelIdentity, neurons: Neurons, norms: NDArray[np.float32]
) -> Bundle:
    """Save a bundle of these neurons that is yet to be calibrated; ``norms`` is float32 [layers, neurons]."""
    with np.errstate(over="ignore"):
        folded = fold(neurons.weight, norms[neurons.layer, neurons.neuron])
    if not np.isfinite(folded).all():
        raise BundleError("a weight times its neuron's column norm is more than a float32 holds: scale the list down")
    card = _card(bundle_id, model, NEURONS, intercept=neurons.intercept)
    tensors: dict[str, NDArray[np.generic]] = {
        "layer": neurons.layer,
        "neuron": neurons.neuron,
        "coefficient": neurons.weight,
        "folded": folded,
        "right_risks": np.zeros(0, np.float32),
    }
    with translate_os_errors(folder):
        return save_bundle(folder, card, tensors)


def save_imported_head(folder: Path, bundle_id: str, model: ModelIdentity, probe: LinearProbe) -> Bundle:
    """Save a bundle of this head alone that is yet to be calibrated."""
    tensors: dict[str, NDArray[np.generic]] = {
        **{name: np.zeros(0, np.int32) for name in ("layer", "neuron")},
        **{name: np.zeros(0, np.float32) for name in ("coefficient", "folded", "right_risks")},
        **tensors_of({BLOCK: probe.head}),
    }
    with translate_os_errors(folder):
        return save_bundle(folder, _card(bundle_id, model, BLOCK, bias=probe.bias), tensors)


def _card(bundle_id: str, model: ModelIdentity, signal: str, intercept: float = 0.0, bias: float = 0.0) -> ProbeCard:
    """One whose risk is this signal alone, token by token: all that was imported. Nothing serves it uncalibrated."""
    plain = StackParameters(signals={signal: Term(mean=0.0, scale=1.0, weight=1.0)}, bias=bias)
    try:
        return ProbeCard(
            schema_version=SCHEMA_VERSION,
            id=bundle_id,
            model=model,
            training=Training(method="imported", answers={}),
            intercept=intercept,
            readout=ReadoutParameters(window=1, answer=plain, platt=(1.0, 0.0), token=plain),
            thresholds={},
            metrics={},
            tensors_sha256="0" * 64,
        )
    except ValidationError:
        raise BundleError(
            f"a bundle cannot be called {bundle_id!r}: give --id with letters, digits and ._- only, at most 96"
        ) from None
