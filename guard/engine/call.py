"""One HTTP request's guard state, carried from the API layer to the engine client in a context variable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np

from guard.policy import Decision, Policy
from guard.probe.readout import Peak, Readout, Signals


@dataclass(slots=True)
class Verdict:
    """The guard's word on one answer. ``reason`` says why it could not be scored; then risk and peak are None.

    foreseen: the risk before any text existed, where the probe gives one. preempted: nothing was generated, and
    ``risk`` is what was foreseen.
    """

    index: int
    policy: Policy
    decision: Decision
    risk: float | None
    peak: Peak | None
    token_ids: list[int]
    finish_reason: str | None = None
    reason: str | None = None
    signals: Signals | None = None
    readout: Readout | None = None
    foreseen: float | None = None
    preempted: bool = False

    @property
    def token_risks(self) -> list[float | None]:
        """The risk of each token, None where it has no score; worked out when somebody asks."""
        if self.readout is None or self.signals is None:
            return [None] * len(self.token_ids)
        return self.readout.token_risks(self.signals)

    @property
    def scored_tokens(self) -> int:
        """How many tokens have a risk of their own."""
        return 0 if self.signals is None else int(np.isfinite(self.signals.neurons).sum())


@dataclass(slots=True)
class GuardCall:
    """Filled by the engine client while an answer is produced, read by the API layer when it writes the response.

    verdicts: by choice index, once decided. token_risks: by choice index, as far as known, for streams.
    """

    policy: Policy
    choices: int = 0
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    token_risks: dict[int, list[float | None]] = field(default_factory=dict)
    overhead_seconds: float = 0.0

    def reserve(self, count: int) -> int:
        """The choice index of the first of ``count`` further answers."""
        first, self.choices = self.choices, self.choices + count
        return first


_current: ContextVar[GuardCall | None] = ContextVar("hguard_call", default=None)


def current_call() -> GuardCall | None:
    return _current.get()


@contextmanager
def use_call(call: GuardCall) -> Iterator[GuardCall]:
    """Make ``call`` the current one for everything that runs inside."""
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)
