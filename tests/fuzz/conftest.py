"""One small bundle for tests that hypothesis runs many times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from guard.probe.bundle import Bundle, save_bundle
from tests.conftest import make_card, make_tensors


@pytest.fixture(scope="session")
def bundle_once(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return save_bundle(tmp_path_factory.mktemp("probe"), make_card(), make_tensors())


@pytest.fixture(scope="session")
def foreseeing_once(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    card = make_card()
    card = card.model_copy(update={"readout": card.readout.model_copy(update={"prompt_platt": (1.0, 0.0)})})
    tensors = {**make_tensors(), "right_prompt_risks": np.linspace(0.01, 0.99, 99, dtype=np.float32)}
    folder: Path = tmp_path_factory.mktemp("foreseeing")
    return save_bundle(folder, card, tensors)
