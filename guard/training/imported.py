"""From a list of neurons to a bundle that is yet to be calibrated, or to what a fit takes them from."""

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
from guard.probe.foreign.neurons import Neurons, read_neurons
from guard.probe.signals import NEURONS


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
    # The plain neuron score, token by token: the only thing that a list says. Nothing serves it before calibration.
    plain = StackParameters(signals={NEURONS: Term(mean=0.0, scale=1.0, weight=1.0)}, bias=0.0)
    try:
        card = ProbeCard(
            schema_version=SCHEMA_VERSION,
            id=bundle_id,
            model=model,
            training=Training(method="imported", answers={}),
            intercept=neurons.intercept,
            readout=ReadoutParameters(window=1, answer=plain, platt=(1.0, 0.0), token=plain),
            thresholds={},
            metrics={},
            tensors_sha256="0" * 64,
        )
    except ValidationError:
        raise BundleError(
            f"a bundle cannot be called {bundle_id!r}: give --id with letters, digits and ._- only, at most 96"
        ) from None
    tensors: dict[str, NDArray[np.generic]] = {
        "layer": neurons.layer,
        "neuron": neurons.neuron,
        "coefficient": neurons.weight,
        "folded": folded,
        "right_risks": np.zeros(0, np.float32),
    }
    with translate_os_errors(folder):
        return save_bundle(folder, card, tensors)
