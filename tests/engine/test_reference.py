"""The self-test compares each layer with the bundle's reference: what reads another layer, or with other norms, does
not serve. On atlas, whose reference ships."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.settings import ATLAS
from guard.errors import TapError
from guard.launch.engines import self_test_prompt
from guard.launch.self_test import make_reference, require_live_taps, scores_by_layer
from guard.probe.bundle import Bundle, save_bundle
from tests.engine.harness import Harness, guarded


def test_neurons_of_the_next_layer_do_not_serve(tmp_path: Path, atlas_bundle: Bundle) -> None:
    layers = atlas_bundle.card.model.layers
    moved = {**atlas_bundle.tensors, "layer": (atlas_bundle.layer + 1) % layers}
    wrong = save_bundle(tmp_path / "probe", atlas_bundle.card, moved, atlas_bundle.reference)
    with pytest.raises(TapError, match=r"do not score its reference prompt .* layer 0 is .*% off"):
        guarded(ATLAS, wrong, [])


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, atlas_bundle: Bundle) -> Iterator[Harness]:
    """Of a bundle whose norms are a twentieth too large, and which has no reference: it serves."""
    scaled: dict[str, Any] = {**atlas_bundle.tensors, "folded": atlas_bundle.folded * np.float32(1.05)}
    harness = guarded(ATLAS, save_bundle(tmp_path_factory.mktemp("scaled"), atlas_bundle.card, scaled), [])
    yield harness
    harness.close()


def test_norms_that_are_scaled_do_not_serve(engine: Harness, atlas_bundle: Bundle) -> None:
    prompt = self_test_prompt(engine.engine)
    engine.run(require_live_taps(engine.engine, prompt))
    engine.engine.bundle = replace(engine.engine.bundle, reference=atlas_bundle.reference)
    try:
        with pytest.raises(TapError, match=r"layer 0 is 5.0% off, where 1.0% are allowed in float32; layer 1 is"):
            engine.run(require_live_taps(engine.engine, prompt))
    finally:
        engine.engine.bundle = replace(engine.engine.bundle, reference=None)


def test_all_layers_count_afterwards(engine: Harness, prompts: list[list[int]]) -> None:
    async def score() -> Any:
        return (await engine.engine.measure(prompts[0], prompts[1], 1.0, "before-or-after"))["neurons"]

    before = engine.run(score())
    reference = engine.run(make_reference(engine.engine, self_test_prompt(engine.engine)))
    np.testing.assert_allclose(engine.run(score()), before, rtol=1e-5, atol=1e-5)
    again = engine.run(scores_by_layer(engine.engine, reference.prompt))
    assert reference.differences(again, "float32") == []
    assert {name: set(layers) for name, layers in again.items()} == {"neurons": set(range(4)), "distance": {2}}
    assert reference.config["rope"] == {"rope_type": "default", "rope_theta": 10000.0}
