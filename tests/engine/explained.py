"""Whether the neurons of an explanation are those of transformers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle
from guard.probe.signals import COLUMN, NEURONS
from models.atlas.recipe.reference import Reader
from tests.engine.harness import Harness

EXPLAIN = Policy(Mode.SCORE, 0.5, explain=True, explain_neurons=True)


def assert_told_apart(
    harness: Harness,
    reader: Reader,
    bundle: Bundle,
    prompts: Sequence[list[int]],
    lengths: Sequence[int],
    near: float = 1e-3,
) -> None:
    """What each neuron adds is within ``near`` of the largest, and together they add what the signal does."""
    produced = harness.produce(prompts, lengths, [EXPLAIN] * len(prompts))
    readings = reader.read(prompts, [one.tokens for one in produced], (bundle.layer, bundle.neuron), batch=8)
    place = COLUMN[NEURONS]
    mean = bundle.readout.answer.mean[place]
    usual = np.zeros(len(bundle.neuron)) if bundle.usual is None else bundle.usual
    for one, reading in zip(produced, readings, strict=True):
        assert one.verdict is not None
        why = one.verdict.explanation
        assert why is not None
        first, end = why.span
        # Of a reading the first token is the last of the prompt.
        whole = why.per_score * reading.tokens[first + 1 : end + 1].mean(0) * bundle.coefficient
        adds = whole - why.per_score * usual
        room = near * np.abs(whole).max()
        assert abs(whole.sum() - why.per_score * mean - why.signals[NEURONS]) < room * np.sqrt(len(whole))
        by_name = dict(zip(zip(bundle.layer.tolist(), bundle.neuron.tolist(), strict=True), adds, strict=True))
        assert len(why.neurons) == 10
        for told in why.neurons:
            assert abs(by_name.pop((told.layer, told.neuron)) - told.adds) < room
        assert min(abs(told.adds) for told in why.neurons) > max(map(abs, by_name.values())) - room
