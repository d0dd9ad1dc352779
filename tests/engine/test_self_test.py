"""The self-test at start refuses what would serve unguarded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from guard.engine.client import GuardedEngine
from guard.engine.traffic import Purpose
from guard.errors import TapError
from guard.launch.self_test import require_live_taps
from guard.probe.bundle import Bundle
from guard.probe.signals import TokenSignals
from tests.measured import token_signals

LIVE = [{"tapped": 3, "expected": 3, "probe": "a"}]


class ScriptedTaps:
    """Answers the self-test: ``scores`` by scale strength."""

    model_config = SimpleNamespace(dtype=torch.float16)

    def __init__(self, bundle: Bundle, reports: list[dict[str, int]], scores: dict[float, float]) -> None:
        self.bundle, self._reports, self._scores = bundle, reports, scores

    async def collective_rpc(self, method: str) -> list[dict[str, int]]:
        assert method == "hguard_report"
        return self._reports

    async def measure(
        self, prompt: list[int], response: list[int], scale: float, request_id: str, purpose: Purpose
    ) -> TokenSignals:
        assert purpose is Purpose.SELF_TEST
        value = np.full(len(response), self._scores[scale], np.float32)
        return token_signals(self._scores[scale], value, value, value)


async def run(bundle: Bundle, reports: list[dict[str, int]], scores: dict[float, float]) -> None:
    await require_live_taps(cast(GuardedEngine, ScriptedTaps(bundle, reports, scores)), [1, 2, 3])


async def test_live_taps_pass(bundle: Bundle) -> None:
    await run(bundle, LIVE, {1.0: 0.5, 0.0: 0.4})


@pytest.mark.parametrize(
    ("reports", "scores", "says"),
    [
        ([{"tapped": 0, "expected": 3, "probe": "a"}], {1.0: 0.5, 0.0: 0.4}, "worker 0 tapped 0 of 3 layers"),
        ([*LIVE, {"tapped": 2, "expected": 3, "probe": "a"}], {1.0: 0.5, 0.0: 0.4}, "worker 1 tapped 2 of 3 layers"),
        ([*LIVE, {"tapped": 3, "expected": 3, "probe": "b"}], {1.0: 0.5, 0.0: 0.4}, "started with different probes"),
        (LIVE, {1.0: 0.0, 0.0: 0.0}, "taps return no valid scores"),
        (LIVE, {1.0: np.nan, 0.0: 0.4}, "taps return no valid scores"),
        (LIVE, {1.0: np.inf, 0.0: 0.4}, r"not finite in float16: .*bfloat16 or float32 \(hguard fit --dtype bfloat16"),
        (LIVE, {1.0: 0.5, 0.0: 0.5}, "scaling has no effect"),
    ],
)
async def test_dead_taps_are_refused(bundle: Bundle, reports: Any, scores: Any, says: str) -> None:
    with pytest.raises(TapError, match=says):
        await run(bundle, reports, scores)
