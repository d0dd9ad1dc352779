"""The signals: what the engine measures at each token. Everything that handles them goes by this registry.

A signal is added here and measured in ``guard.worker.batch`` (one of draws) or ``guard.worker.buffers`` (one of the
forward pass). The score table, the readout, the card, the stages of a fit and evaluation take it from here. One in
HEADS is a linear head on states (``guard.probe.heads``), named after the site that it reads. DISTANCE says nothing of
a risk, but whether the question is of a kind that the risk was calibrated on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class Source(StrEnum):
    """What a signal is read of.

    FORWARD: the forward pass at a position, so the last prompt token has one; the answer's last token has one where the
    model itself ended the sequence, and is left out otherwise, since it is a matter of scheduling. DRAW: the
    distribution that a token was drawn from, before sampling options.
    """

    FORWARD = "forward"
    DRAW = "draw"


class Pooling(StrEnum):
    """How several tokens' values become one."""

    MEAN = "mean"
    MAX = "max"


@dataclass(frozen=True, slots=True)
class Signal:
    """One number for each token.

    sign: 1 where higher is riskier, -1 where lower is. pooling: over a window, in the stack. alone: over a whole
    answer, where evaluation takes this signal as a baseline. always: whether every engine measures it, or
    those whose probe reads it. counts: whether it may count in a risk.
    """

    name: str
    source: Source
    sign: int
    pooling: Pooling
    alone: Pooling
    always: bool = True
    counts: bool = True


NEURONS = "neurons"  # sum_j c_j |z_j| / ||h||: ``guard.probe.cett``
ENTROPY = "entropy"  # nats
LOGPROB = "logprob"  # nats, of the token itself
MARGIN = "margin"  # nats, by which the likeliest token is likelier than the next
TOP_MASS = "top_mass"  # probability of the ten likeliest tokens together
RESIDUAL = "residual"  # a head on what queries, keys and values are made of, most often the normed residual stream
ATTENTION = "attention"  # a head on the attention heads' outputs side by side, before they are projected
BLOCK = "block"  # a head on the residual stream as a layer leaves it
DISTANCE = "distance"  # of a layer's normed residual stream from where calibration's answers set out
HEADS = (RESIDUAL, ATTENTION, BLOCK)
OF_STATES = (*HEADS, DISTANCE)

SIGNALS = (
    Signal(NEURONS, Source.FORWARD, 1, Pooling.MEAN, Pooling.MEAN),
    Signal(ENTROPY, Source.DRAW, 1, Pooling.MAX, Pooling.MAX),
    Signal(LOGPROB, Source.DRAW, -1, Pooling.MAX, Pooling.MEAN),
    Signal(MARGIN, Source.DRAW, -1, Pooling.MAX, Pooling.MEAN, always=False),
    Signal(TOP_MASS, Source.DRAW, -1, Pooling.MAX, Pooling.MEAN, always=False),
    Signal(RESIDUAL, Source.FORWARD, 1, Pooling.MEAN, Pooling.MEAN, always=False),
    Signal(ATTENTION, Source.FORWARD, 1, Pooling.MEAN, Pooling.MEAN, always=False),
    Signal(BLOCK, Source.FORWARD, 1, Pooling.MEAN, Pooling.MEAN, always=False),
    Signal(DISTANCE, Source.FORWARD, 1, Pooling.MEAN, Pooling.MEAN, always=False, counts=False),
)
COLUMN = {signal.name: column for column, signal in enumerate(SIGNALS)}  # of a matrix of features
COUNTED = frozenset(signal.name for signal in SIGNALS if signal.counts)
ALWAYS = frozenset(signal.name for signal in SIGNALS if signal.always)
OPTIONAL = tuple(signal.name for signal in SIGNALS if not signal.always)


@cache
def names(source: Source, measured: frozenset[str] = ALWAYS) -> tuple[str, ...]:
    """The names of those of one source that are ``measured``."""
    return tuple(signal.name for signal in SIGNALS if signal.source is source and signal.name in measured)


class SignalFault(StrEnum):
    """Why signals cannot be scored."""

    EMPTY = "empty"
    MISSING = "missing"
    NOT_FINITE = "not_finite"


@dataclass(frozen=True, slots=True)
class TokenSignals:
    """What was measured on one answer of n tokens (the end-of-sequence token is not one of them).

    NaN stands for what was not measured, an infinity for a measurement that is not a finite number.

    last_prompt: of the last prompt token, by name of a signal of the forward pass.
    values: by name of a signal that the engine measures, float32 [n].
    """

    last_prompt: Mapping[str, float]
    values: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.values[NEURONS])

    def __getitem__(self, name: str) -> Array:
        """A signal's values; of one that the engine does not measure, NaN."""
        found = self.values.get(name)
        return np.full(len(self), np.nan, np.float32) if found is None else found

    @property
    def prompt_score(self) -> float:
        """The neuron score of the last prompt token."""
        return self.last_prompt[NEURONS]

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> TokenSignals:
        """As ``to_dict`` wrote them."""
        values = {name: np.array(measured, np.float32) for name, measured in row["values"].items()}
        return cls(dict(row["last_prompt"]), values)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = {name: measured.tolist() for name, measured in self.values.items()}
        return {"last_prompt": dict(self.last_prompt), "values": values}

    def fault(self, used: frozenset[str] | None = None) -> SignalFault | None:
        """Why these signals cannot be scored, or None; those not among ``used`` (None: all measured) may be missing."""
        if len(self) == 0:
            return SignalFault.EMPTY
        used = frozenset(self.values) if used is None else used
        forward = names(Source.FORWARD, used)
        return _fault_in(
            np.array([self.last_prompt.get(name, np.nan) for name in forward], np.float32),
            *(part for name in forward for part in _all_but_missing_last(self[name])),
            *(self[name] for name in names(Source.DRAW, used)),
        )

    def fault_within(self, used: frozenset[str] | None = None) -> SignalFault | None:
        """As ``fault``, of tokens amid an answer: each must have a score, and the prompt's does not count."""
        used = frozenset(self.values) if used is None else used
        return _fault_in(*(self[name] for name in used))

    def part(self, first: int, last: int) -> TokenSignals:
        """Those of tokens first..last-1; ``last_prompt`` is kept where ``first`` is 0."""
        before = self.last_prompt if first == 0 else unmeasured_prompt()
        return TokenSignals(before, {name: values[first:last] for name, values in self.values.items()})

    def without_question(self) -> TokenSignals:
        """The same, of tokens that follow no question: others of the assistant's turn stand before them."""
        before = {name: value for name, value in self.last_prompt.items() if name != DISTANCE}
        return TokenSignals(before, self.values)

    def forget_last(self) -> None:
        """Leave out the forward pass over the last token, in place."""
        for name in names(Source.FORWARD, frozenset(self.values)):
            self.values[name][-1] = np.nan


def unmeasured_prompt() -> dict[str, float]:
    """The last prompt token's signals where there are none; those that are not named were not measured, either."""
    return {NEURONS: float(np.nan)}


def parsed(given: Collection[str]) -> tuple[str, ...]:
    """Optional signals by name, in the order of the registry. Raises ValueError for any other name."""
    if unknown := sorted(set(given) - set(OPTIONAL)):
        raise ValueError(f"there is no further signal {', '.join(unknown)}; there are {', '.join(OPTIONAL)}")
    return tuple(name for name in OPTIONAL if name in given)


def _all_but_missing_last(values: Array) -> tuple[Array, Array]:
    last = values[-1:]
    return values[:-1], last[~np.isnan(last)]


def _fault_in(*measured: Array) -> SignalFault | None:
    values = np.concatenate(measured)
    if np.isfinite(values).all():
        return None
    return SignalFault.MISSING if np.isnan(values).any() else SignalFault.NOT_FINITE
