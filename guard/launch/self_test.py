"""The self-test at start: refuse to serve unless the taps are where they should be and answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from guard import precision
from guard.engine.client import GuardedEngine
from guard.engine.traffic import Purpose
from guard.errors import TapError
from guard.ipc.capture import SELF_TEST
from guard.probe.identity import forward_config
from guard.probe.reference import Reference
from guard.probe.signals import NEURONS
from guard.versions import engine_version

_LONGEST = 24


async def require_live_taps(engine: GuardedEngine, prompt_ids: list[int]) -> None:
    """Raise TapError unless every worker tapped what the bundle names, scores are finite, not 0, and scaling acts; and,
    where the bundle has a reference, unless each layer alone scores its prompt as it did then."""
    await require_every_layer(engine)
    reference = engine.bundle.reference
    ids = _prompt(prompt_ids) if reference is None else reference.prompt
    plain = await _scores(engine, ids, 1.0)
    dtype = precision.name_of(engine.model_config.dtype)
    for name, scores in plain.items():
        if np.isinf(scores).any():  # measured, and not finite; NaN is what no tap wrote
            raise TapError(f"the activations of a probe prompt are not finite in {dtype}: {precision.overflow(dtype)}")
        if not np.isfinite(scores).all() or not np.any(scores != 0):
            raise TapError(
                f"self-test: taps return no valid scores of {name} ({scores[:4].tolist()}); clear the compile cache"
            )
    if engine.bundle.h_neurons and np.array_equal(plain[NEURONS], (await _scores(engine, ids, 0.0))[NEURONS]):
        raise TapError("self-test: scaling has no effect: scores do not change when the neurons are switched off")
    if reference is None:
        return
    found = reference.differences(await scores_by_layer(engine, ids), _coarsest(engine))
    if found:
        raise TapError(
            f"the probe's neurons do not score its reference prompt as they did when probe {engine.bundle.card.id} was "
            f"made ({reference.engine}, {reference.dtype}): {'; '.join(found[:3])}{'; ...' if len(found) > 3 else ''}. "
            "Another layer, shard or norm is read, or the model computes otherwise: serve with the engine that the "
            "probe was made with. Where it is known that this one is right, `hguard probe reference` takes its scores"
        )


async def make_reference(engine: GuardedEngine, prompt_ids: list[int]) -> Reference:
    """What this engine's checkpoint says and does, to be kept beside its bundle."""
    ids = _prompt(prompt_ids)
    scores = {
        name: {layer: [float(f"{value:.7g}") for value in values] for layer, values in by_layer.items()}
        for name, by_layer in (await scores_by_layer(engine, ids)).items()
    }
    return Reference(
        engine=" ".join(engine_version()),
        dtype=cast("Any", precision.name_of(engine.model_config.dtype)),
        config=forward_config(Path(engine.model_config.model)),
        prompt=ids,
        scores=scores.pop(NEURONS, {}),
        heads=scores,
    )


async def scores_by_layer(engine: GuardedEngine, ids: list[int]) -> dict[str, dict[int, NDArray[np.float32]]]:
    """What each tapped layer alone makes of a prompt, by signal and layer. For an engine that does nothing else
    meanwhile.

    Raises TapError unless they add up to what all of them make of it, afterwards: an engine goes on with all or not.
    """
    found: dict[str, dict[int, NDArray[np.float32]]] = {}
    try:
        for name, layers in engine.bundle.layers_read.items():
            found[name] = {}
            for layer in layers:
                await engine.collective_rpc("hguard_count", args=(name, layer))
                found[name][layer] = (await _scores(engine, ids, 1.0))[name]
    finally:
        await engine.collective_rpc("hguard_count", args=(None, None))
    everything = await _scores(engine, ids, 1.0)
    for name, by_layer in found.items():
        whole, parts = everything[name], np.stack(list(by_layer.values()))
        # In half precision, too: scores are float32, and the same activations are read each time.
        if not np.allclose(whole, parts.sum(0), rtol=0, atol=1e-2 * float(np.abs(parts).sum(0).max())):
            raise TapError(f"the {name} scores of the tapped layers do not add up to that of all of them")
    return found


def _coarsest(engine: GuardedEngine) -> str:
    """The precision that scores are held to: a cache of another one than the model's rounds, too."""
    dtype = precision.name_of(engine.model_config.dtype)
    cache = str(engine.vllm_config.cache_config.cache_dtype)
    return dtype if cache in ("auto", dtype) else "bfloat16"


def _prompt(ids: list[int]) -> list[int]:
    return (ids * _LONGEST)[:_LONGEST]


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


async def _scores(engine: GuardedEngine, ids: list[int], scale: float) -> dict[str, NDArray[np.float32]]:
    """What the probe reads of the forward pass, by name, from the token before the prompt's second half on."""
    split = len(ids) // 2
    signals = await engine.measure(ids[:split], ids[split:], scale, f"{SELF_TEST}-{scale}", Purpose.SELF_TEST)
    return {name: np.append(np.float32(signals.last_prompt[name]), signals[name]) for name in engine.bundle.layers_read}
