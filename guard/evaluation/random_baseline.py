"""Neurons drawn at random, as many in each layer as a probe has there: what finding them is held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.errors import FitError
from guard.harness.store import translate_os_errors
from guard.probe.bundle import Bundle, save_bundle
from guard.probe.card import Training

DRAWS = 5


def layer_matched(index: NDArray[np.int64], width: int, seed: int) -> NDArray[np.int64]:
    """As many flat neurons in each layer as ``index`` int64 [k] has, of ``width`` in a layer: int64 [k], ascending.

    From all of a layer's neurons, so one of the probe's own may be drawn again.
    """
    rng = np.random.default_rng(seed)
    drawn = [
        layer * width + np.sort(rng.choice(width, count, replace=False))
        for layer, count in zip(*np.unique(index // width, return_counts=True), strict=True)
    ]
    return np.concatenate(drawn).astype(np.int64)


def flat(bundle: Bundle) -> NDArray[np.int64]:
    """A bundle's neurons as indices into all of the model's: int64 [k]."""
    return bundle.layer.astype(np.int64) * bundle.card.model.neurons_per_layer + bundle.neuron


def random_bundle(bundle: Bundle, folder: Path, seed: int) -> Bundle:
    """A bundle that scales random neurons in place of the probe's positive ones; what it scores means nothing.

    Raises FitError when the probe has no positive neurons.
    """
    width = bundle.card.model.neurons_per_layer
    positive = flat(bundle)[bundle.coefficient > 0]
    if not len(positive):
        raise FitError(f"probe {bundle.card.id} has no neuron with a positive weight, so there is nothing to scale")
    drawn = layer_matched(positive, width, seed)
    training = Training(
        method="random", labels="1-vs-1", C=1.0, seed=seed, span="answer-tokens-and-last-prompt-token", answers={}
    )
    readout = bundle.card.readout.model_copy(update={"prompt_platt": None, "distance_limit": None})
    card = bundle.card.model_copy(
        update={
            "id": f"random-{seed}",
            "training": training,
            "readout": readout,
            "at_thresholds": None,
            "metrics": {},
        }
    )
    ones = np.ones(len(drawn), np.float32)
    tensors: dict[str, NDArray[np.generic]] = {
        "layer": (drawn // width).astype(np.int32),
        "neuron": (drawn % width).astype(np.int32),
        "coefficient": ones,
        "folded": ones,
        "right_risks": bundle.right_risks,
    }
    with translate_os_errors(folder):
        return save_bundle(folder, card, tensors)
