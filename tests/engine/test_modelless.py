"""An engine without a model, which `hguard bench --api` puts behind both servers: the guard scores what it says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from app.settings import ATLAS
from guard.bench.models.synthetic import STEP_VARIABLE, modelless
from guard.policy import Action, Hold, Mode, Policy
from guard.probe.bundle import load_bundle
from guard.probe.signals import COLUMN, NEURONS
from tests.engine.harness import SCORE, Harness, guarded

LENGTH = 24


@pytest.fixture(scope="module")
def engine() -> Iterator[Harness]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STEP_VARIABLE, "200,0")
        harness = guarded(ATLAS, load_bundle(ATLAS / "probe"), modelless(sequences=16))
        yield harness
        harness.close()


def test_answers_are_scored_as_usual_ones(engine: Harness, prompts: list[list[int]]) -> None:
    readout = engine.engine.readout
    for produced in engine.produce(prompts[:24], LENGTH):
        assert len(produced.tokens) == LENGTH
        assert set(produced.logprobs) == {np.float32(-0.1)}
        verdict = produced.verdict
        assert verdict is not None
        assert verdict.signals is not None
        assert verdict.scored_tokens == LENGTH
        mean = readout.answer.mean[COLUMN[NEURONS]]
        np.testing.assert_allclose(verdict.signals[NEURONS][:-1], mean, rtol=1e-6)
        assert verdict.risk == readout.risk(verdict.signals)[0]


@pytest.mark.parametrize("hold", list(Hold))
def test_what_no_window_ends_passes_and_what_each_would_end_is_ended(
    engine: Harness, prompts: list[list[int]], hold: Hold
) -> None:
    """In one batch: the watch judges the windows of both kinds in one pass."""
    passing = Policy(Mode.ABSTAIN, 1.0, hold=hold)
    ending = Policy(Mode.ABSTAIN, 1e-6, hold=hold)
    policies = [passing if i % 2 else ending for i in range(12)] + [SCORE] * 4
    produced = engine.produce(prompts[:16], LENGTH, policies)
    actions = [one.verdict.decision.action for one in produced if one.verdict is not None]
    assert actions == [Action.PASS if i % 2 else Action.ABSTAINED for i in range(12)] + [Action.PASS] * 4
    ended = [one.verdict.scored_tokens for one in produced[:12:2] if one.verdict is not None]
    assert set(ended) == {2 * engine.engine.readout.window - 1}, "as many windows as a window has tokens"
    assert engine.engine.pool.in_use == 0
