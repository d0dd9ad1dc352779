"""Signals that were never measured, stacks of them, and heads that nothing taught."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.probe.bundle import Bundle, save_bundle
from guard.probe.card import Term
from guard.probe.heads import Head, head_of, tensors_of
from guard.probe.readout import Stack
from guard.probe.signals import (
    ATTENTION,
    BLOCK,
    COUNTED,
    DISTANCE,
    ENTROPY,
    LOGPROB,
    NEURONS,
    OPTIONAL,
    RESIDUAL,
    SIGNALS,
    TokenSignals,
)
from guard.training.distance import AXES

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


def with_heads(bundle: Bundle, folder: Path, width: int, seed: int = 5) -> Bundle:
    """The same probe in ``folder``, which reads every optional signal, too: heads are random, of states so wide, and so
    is where its domain lies.

    Risks are nearly its own."""
    rng = np.random.default_rng(seed)
    last = bundle.card.model.layers - 1
    layers = {RESIDUAL: [0, last], ATTENTION: [1, last], BLOCK: [0, last]}
    heads = {
        name: Head(np.array(one, np.int32), rng.normal(size=(len(one), width)).astype(np.float32) / 8)
        for name, one in layers.items()
    }
    axes = rng.normal(size=(AXES, width + 1)).astype(np.float32) / 8
    heads[DISTANCE] = head_of(DISTANCE, np.array([(last + 1) // 2], np.int32), axes)  # where a fit would have it
    term = Term(mean=0.0, scale=1.0, weight=1e-3)
    readout = bundle.card.readout
    further = {name: term for name in OPTIONAL if name in COUNTED}
    answer = readout.answer.model_copy(update={"signals": {**readout.answer.signals, **further}})
    card = bundle.card.model_copy(update={"readout": readout.model_copy(update={"answer": answer})})
    return save_bundle(folder, card, {**bundle.tensors, **tensors_of(heads)})
