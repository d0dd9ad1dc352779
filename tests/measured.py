"""Signals that were never measured, and stacks of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from guard.probe.readout import Stack
from guard.probe.signals import ENTROPY, LOGPROB, NEURONS, SIGNALS, TokenSignals

Three = tuple[float, float, float]
Values = Sequence[float] | NDArray[np.floating]


def token_signals(prompt_score: float, neurons: Values, entropy: Values, logprob: Values) -> TokenSignals:
    """Of an answer whose tokens have these."""
    values = {NEURONS: neurons, ENTROPY: entropy, LOGPROB: logprob}
    return TokenSignals({NEURONS: prompt_score}, {name: np.array(one, np.float32) for name, one in values.items()})


def stack_of(mean: Three, scale: Three, weight: Three, bias: float) -> Stack:
    """Of neurons, entropy and log-probability; what comes after them in the registry has no weight."""
    further = len(SIGNALS) - 3
    return Stack((*mean, *[0.0] * further), (*scale, *[1.0] * further), (*weight, *[0.0] * further), bias)
