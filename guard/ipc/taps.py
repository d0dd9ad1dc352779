"""What the engine's configuration says of the taps: ``VllmConfig.additional_config["hguard"]``.

vLLM hashes this into the key of its compile cache and hands it to every worker. Without it a graph that was compiled
without taps would be loaded from the cache, silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guard.errors import TapError
from guard.probe.bundle import Bundle, load_bundle
from guard.probe.taps import TapSpec

KEY = "hguard"
COLLECT_KEY = "hguard_collect"  # how many sequences an engine collects activations of at once
# Which ops a compiled graph calls, and with what. Raised whenever that changes: no cache must bring back a graph that
# calls them as they were.
OPS = 2


def spec_of(bundle: Bundle) -> TapSpec:
    """The tap layout of a bundle."""
    return TapSpec.from_arrays(bundle.layer, bundle.neuron, bundle.folded, bundle.coefficient)


@dataclass(frozen=True, slots=True)
class TapConfig:
    """Which bundle to tap, and the layout that it must have."""

    bundle: str
    sha256: str
    layers: list[int]
    width: int
    ops: int = OPS

    @classmethod
    def of(cls, bundle: Bundle) -> TapConfig:
        summary = spec_of(bundle).summary()
        return cls(str(bundle.path.resolve()), bundle.card.tensors_sha256, summary["layers"], summary["width"])

    @classmethod
    def find(cls, additional_config: Any) -> TapConfig | None:
        """The configuration in ``additional_config``, or None."""
        found = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        return None if found is None else cls(**found)

    def additional_config(self) -> dict[str, Any]:
        return {KEY: asdict(self)}

    def spec(self) -> TapSpec:
        """Load the bundle again, in the worker. Raises TapError when it changed since the server read it."""
        bundle = load_bundle(Path(self.bundle))
        if bundle.card.tensors_sha256 != self.sha256:
            raise TapError(f"probe bundle {self.bundle} changed while the engine was starting; start again")
        return spec_of(bundle)
