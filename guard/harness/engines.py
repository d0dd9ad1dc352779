"""The two engines of a fit, started one after the other on the same model."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from guard.engine.activations import CollectingEngine
from guard.harness.progress import duration, tell
from guard.ipc.collecting import Collecting, Site
from guard.launch.engines import collecting_arguments, collecting_engine, engine_arguments, guarded_engine
from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle
from guard.probe.signals import ALWAYS

T = TypeVar("T")
_SCORE_SLOTS = 128


class Engines(Protocol):
    """Starts the two kinds of engines that a fit needs: one that samples and collects, one that serves a probe."""

    def collecting(self) -> AbstractAsyncContextManager[CollectingEngine]: ...

    def guarded(self, bundle: Bundle) -> AbstractAsyncContextManager[Any]: ...


@dataclass(frozen=True, slots=True)
class RealEngines:
    """vLLM on the model in ``model``; ``slots`` answers are collected at once, ``extra`` are vLLM's own options.

    sites, question, neurons: what is collected, as in ``Collecting``. measured: the signals of tokens.
    """

    model: Path
    dtype: str
    slots: int
    compiled: bool = False
    extra: Sequence[str] = ()
    sites: tuple[Site, ...] = ()
    question: bool = False
    measured: frozenset[str] = ALWAYS
    neurons: bool = True

    @asynccontextmanager
    async def collecting(self) -> AsyncIterator[CollectingEngine]:
        kept = Collecting(self.slots, self.sites, self.question, self.neurons)
        args = collecting_arguments(self.model, self.dtype, kept, self.compiled, self.extra)
        async with _told(collecting_engine(args, self.slots, self.measured), "answers and collects") as engine:
            yield engine

    def guarded(self, bundle: Bundle) -> AbstractAsyncContextManager[Any]:
        args = engine_arguments(self.model, str(self.model), bundle, self.compiled, self.extra)
        engine = guarded_engine(args, bundle, Policy(Mode.SCORE, 0.5), _SCORE_SLOTS)
        reads = f"{len(bundle.neuron)} neurons" if len(bundle.neuron) else ", ".join(bundle.tapped_heads)
        return _told(engine, f"reads {reads}")


@asynccontextmanager
async def _told(starting: AbstractAsyncContextManager[T], does: str) -> AsyncIterator[T]:
    """Say that it starts, which takes a while, and when it runs."""
    began = time.monotonic()
    tell(f"starting the engine that {does} ...")
    async with starting as engine:
        tell(f"the engine runs, after {duration(time.monotonic() - began)}")
        yield engine
