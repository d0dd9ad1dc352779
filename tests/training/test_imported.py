"""A bundle made of a list: folded with the model's norms, and open about what it does not know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from guard.errors import BundleError, FitError
from guard.probe.foreign.neurons import Neurons
from guard.training.imported import save_imported
from tests.conftest import LAYERS, NEURONS, make_card
from tests.measured import token_signals

MODEL = make_card().model
LIST = Neurons(np.array([3, 0], np.int32), np.array([63, 7], np.int32), np.array([0.5, -2], np.float32))
NORMS = np.arange(LAYERS * NEURONS, dtype=np.float32).reshape(LAYERS, NEURONS)


def test_weights_are_folded_and_nothing_is_made_up(tmp_path: Path) -> None:
    bundle = save_imported(tmp_path / "new", "new", MODEL, LIST, NORMS)
    assert bundle.coefficient.tolist() == [0.5, -2]
    assert bundle.folded.tolist() == [0.5 * (3 * NEURONS + 63), -14]
    assert (bundle.h_neurons, bundle.calibrated) == (1, False)
    card = bundle.card
    assert (card.id, card.model, card.intercept, card.thresholds, card.metrics) == ("new", MODEL, 0, {}, {})
    assert card.training.model_dump(exclude_none=True) == {"method": "imported", "answers": {}}


def test_its_readout_is_the_neuron_score(tmp_path: Path) -> None:
    readout = save_imported(tmp_path / "new", "new", MODEL, LIST, NORMS).readout
    unmeasured = np.full(2, np.nan, np.float32)
    logit, peak = readout.logit(token_signals(0.0, np.array([1.0, 3.0], np.float32), unmeasured, unmeasured))
    assert (logit, peak.start, peak.end, readout.uses_draws) == (3.0, 1, 2, False)


def test_weights_that_the_norms_make_too_large(tmp_path: Path) -> None:
    large = Neurons(LIST.layer, LIST.neuron, np.array([3e38, 1], np.float32))
    with pytest.raises(BundleError, match="more than a float32 holds"):
        save_imported(tmp_path / "new", "new", MODEL, large, NORMS)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("mine")
    with pytest.raises(FitError, match="new cannot be written"):
        save_imported(tmp_path / "new", "new", MODEL, LIST, NORMS)
