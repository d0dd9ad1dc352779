"""Other neurons and heads for a running engine to read."""

from __future__ import annotations

from guard.engine.client import GuardedEngine
from guard.errors import UnsupportedError
from guard.ipc.taps import TapConfig, sendable, spec_of
from guard.probe.bundle import Bundle


async def retap(engine: GuardedEngine, bundle: Bundle) -> None:
    """Have the workers read another bundle's neurons and heads; only while the engine's traffic is paused. Where a
    worker fails to, nothing is scored, or served, until all of them have read one.

    Raises UnsupportedError for one of other weights, or for which there is no room.
    """
    if not bundle.fits_the_weights_of(engine.bundle):
        raise UnsupportedError(f"probe {bundle.card.id} is of other weights, or of another precision")
    config, spec = TapConfig.find(engine.vllm_config.additional_config), spec_of(bundle)
    assert config is not None
    try:
        spec.fitted(config.layers, config.width)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{error}; restart the server to serve it, or start it with --probe-room {spec.width} for such exchanges"
        ) from None
    config.fitted(spec)
    sha256 = bundle.card.tensors_sha256
    engine.traffic.lost = True
    await engine.collective_rpc("hguard_exchange", args=(sha256, sendable(bundle)))
    engine.traffic.lost = False
    engine.bundle, engine.readout, engine.salts.tensors_sha256 = bundle, bundle.readout, sha256
