"""The startup canary: refuse to serve unless the taps are where they should be and answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.engine import precision
from guard.engine.client import GuardedEngine
from guard.engine.own import Purpose
from guard.errors import TapError

_LONGEST = 24


async def require_live_taps(engine: GuardedEngine, prompt_ids: list[int]) -> None:
    """Raise TapError unless every worker tapped what the bundle names, scores are finite, not 0, and damping acts."""
    await require_every_layer(engine)
    ids = (prompt_ids * _LONGEST)[:_LONGEST]
    plain = await _scores(engine, ids, 1.0)
    if np.isinf(plain).any():  # measured, and not finite; NaN is what no tap wrote
        dtype = precision.name_of(engine.model_config.dtype)
        raise TapError(f"the activations of a probe prompt are not finite in {dtype}: {precision.overflow(dtype)}")
    if not np.isfinite(plain).all() or not np.any(plain != 0):
        raise TapError(f"the taps do not answer: a probe prompt scored {plain[:4].tolist()}; a stale compile cache?")
    if engine.bundle.h_neurons and np.array_equal(plain, await _scores(engine, ids, 0.0)):
        raise TapError("damping has no effect: the scores of a probe prompt do not change when the neurons are off")


async def require_every_layer(engine: Any) -> None:
    """Raise TapError unless every worker tapped as many layers as it should, with the same probe on every node."""
    reports = await engine.collective_rpc("hguard_report")
    if len({report["probe"] for report in reports}) > 1:
        raise TapError("the nodes of this engine were started with different probes; give each the same one")
    for number, report in enumerate(reports):
        if report["tapped"] != report["expected"]:
            raise TapError(
                f"worker {number} tapped {report['tapped']} of {report['expected']} layers: the model does not build "
                "them as RowParallelLinear named model.layers.N.mlp.down_proj"
            )


async def _scores(engine: GuardedEngine, ids: list[int], damp: float) -> NDArray[np.float32]:
    split = len(ids) // 2
    signals = await engine.measure(ids[:split], ids[split:], damp, f"hguard-canary-{damp}", Purpose.CANARY)
    return np.append(signals.neurons, np.float32(signals.lead))
