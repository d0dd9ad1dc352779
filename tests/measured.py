"""Signals that were never measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from guard.probe.signals import ENTROPY, LOGPROB, NEURONS, TokenSignals

Values = Sequence[float] | NDArray[np.floating]


def token_signals(prompt_score: float, neurons: Values, entropy: Values, logprob: Values) -> TokenSignals:
    """Of an answer whose tokens have these."""
    values = {NEURONS: neurons, ENTROPY: entropy, LOGPROB: logprob}
    return TokenSignals({NEURONS: prompt_score}, {name: np.array(one, np.float32) for name, one in values.items()})
