"""The two engines of a fit, started one after the other on the same model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from guard.engine.activations import CollectingEngine
from guard.launch.engines import collecting_arguments, collecting_engine, engine_arguments, guarded_engine
from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle

_SCORE_SLOTS = 128


class Engines(Protocol):
    """Starts the two kinds of engines that a fit needs: one that samples and collects, one that serves a probe."""

    def collecting(self) -> AbstractAsyncContextManager[CollectingEngine]: ...

    def guarded(self, bundle: Bundle) -> AbstractAsyncContextManager[Any]: ...


@dataclass(frozen=True, slots=True)
class RealEngines:
    """vLLM on the model in ``model``; ``slots`` answers are collected at once, ``extra`` are vLLM's own options."""

    model: Path
    dtype: str
    slots: int
    compiled: bool = False
    extra: Sequence[str] = ()

    @asynccontextmanager
    async def collecting(self) -> AsyncIterator[CollectingEngine]:
        args = collecting_arguments(self.model, self.dtype, self.slots, self.compiled, self.extra)
        async with collecting_engine(args, self.slots) as engine:
            yield engine

    def guarded(self, bundle: Bundle) -> AbstractAsyncContextManager[Any]:
        args = engine_arguments(self.model, str(self.model), bundle, self.compiled, self.extra)
        return guarded_engine(args, bundle, Policy(Mode.SCORE, 0.5), _SCORE_SLOTS)
