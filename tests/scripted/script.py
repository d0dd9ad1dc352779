"""What the scripted engine says, what its neurons show meanwhile, and what goes wrong.

A request chooses by the words in its last user message, or in the answer that is given to ``/risk``; words combine
("Is it slow and risky?"). Numbers of tokens and of steps count from 0; step k draws token k.

    safe      nothing happens: seven tokens, each of low risk, and so without any of these words
    risky     each token is of high risk
    declines  each token is of high risk, and the answer only says that it does not know
    guesses   the same, and then it answers all the same
    rises     32 tokens, of high risk from token 12 on
    second    as risky, but only in the second of n answers
    prompt_risk  the last prompt token is of high risk, the answer is not
    elsewhere  the question is unlike those of the calibration
    long      200 tokens
    unicode   characters of several tokens each
    slow      0.05 seconds before each step
    nan       the neuron score of token 2 is NaN
    missing   the neuron score of token 2 is never written
    boom      at step 3 this request fails; nothing else does
    rejected  the engine does not take this request
    dies      at step 3 the engine dies
    hangs     step 3 never comes

Low risk is 0.02, high risk 0.98, of an answer that is all the one or all the other. Scaled neurons take the signals
of a token towards those of a safe one: with ``scale`` 0, risky is safe.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from guard.probe.readout import Readout
from tests.measured import token_signals

LOW, HIGH = 0.02, 0.98
DECLINE = "I'm sorry, but I do not know."
WORDS: dict[str, dict[str, Any]] = {
    "safe": {},
    "risky": {"risky_from": 0},
    "declines": {"risky_from": 0, "text": DECLINE},
    "guesses": {"risky_from": 0, "text": f"{DECLINE} It is in Rome."},
    "rises": {"risky_from": 12, "length": 32},
    "second": {"risky_from": 0, "risky_choice": 1},
    "prompt_risk": {"lead": True},
    "elsewhere": {"distance": 1e6},
    "long": {"length": 200},
    "unicode": {"text": "Île-de-France, 日本 🇯🇵."},
    "slow": {"seconds": 0.05},
    "nan": {"nan_at": 2},
    "missing": {"missing_at": 2},
    "boom": {"fails_at": 3},
    "rejected": {"rejected": True},
    "dies": {"dies_at": 3},
    "hangs": {"hangs_at": 3},
}


@dataclass(frozen=True)
class Script:
    """One sequence: its text, its risks, its pace, its fault.

    length: in tokens; the text is repeated or cut. risky_from: the first token of high risk; None for none.
    risky_choice: the only one of n answers that is risky; None for all. lead: whether the last prompt token is of high
    risk; None: as token 0. distance: of each token, where the probe measures it. Given text has one step, and the fault
    of any step happens there.
    """

    text: str = "It is in Sri Lanka."
    length: int | None = None
    risky_from: int | None = None
    risky_choice: int | None = None
    lead: bool | None = None
    distance: float = 1.0
    seconds: float = 0.0
    nan_at: int | None = None
    missing_at: int | None = None
    fails_at: int | None = None
    rejected: bool = False
    dies_at: int | None = None
    hangs_at: int | None = None

    def risky(self, token: int, choice: int) -> bool:
        """Whether a token is of high risk; token -1 is the last one of the prompt."""
        if token < 0 and self.lead is not None:
            return self.lead
        here = self.risky_choice in (None, choice)
        return here and self.risky_from is not None and max(token, 0) >= self.risky_from

    def tokens(self, encode: Callable[[str], list[int]]) -> list[int]:
        """The token ids of the answer, without the end-of-sequence token."""
        once = encode(self.text)
        if self.length is None:
            return once
        further = len(encode(f"{self.text} {self.text}")) - len(once)
        return encode(" ".join([self.text] * (self.length // further + 2)))[: self.length]


@dataclass(frozen=True)
class Asked:
    """What a script is chosen by: the text from the last user message on, and who asks."""

    text: str
    request_id: str  # as the caller named it
    choice: int = 0
    scale: float = 1.0
    given: bool = False


Choose = Callable[[Asked], Script]


def by_words(script: Script | None = None) -> Choose:
    """``script`` (or the safe one) with the changes that the words of the request make."""

    def choose(asked: Asked) -> Script:
        chosen = script or Script()
        for word in re.findall(r"\w+", asked.text.lower()):
            chosen = replace(chosen, **WORDS.get(word, {}))
        return chosen

    return choose


@dataclass(frozen=True)
class Signal:
    """What is measured at one token."""

    neurons: float
    entropy: float
    logprob: float


class Levels:
    """TokenSignals of low and of high risk under one readout."""

    def __init__(self, readout: Readout) -> None:
        mean, scale = readout.answer.mean, readout.answer.scale
        self.low = _solved(readout, LOW, 0.02, -0.01)
        self.high = _solved(readout, HIGH, mean[1] + 2 * scale[1], -(mean[2] + 2 * scale[2]))

    def at(self, risky: bool, scale: float) -> Signal:
        """Scaled signals lie between the wanted ones and those of low risk; the self-test wants a trace of it there."""
        if scale == 1:
            return self.high if risky else self.low
        low, wanted = self.low, self.high if risky else self.low
        return Signal(
            low.neurons + scale * (wanted.neurons - low.neurons) - 0.01 * (1 - scale),
            low.entropy + scale * (wanted.entropy - low.entropy),
            low.logprob + scale * (wanted.logprob - low.logprob),
        )


def _solved(readout: Readout, risk: float, entropy: float, logprob: float) -> Signal:
    """The neuron score that gives an answer of nothing else this risk, by halving."""
    stack, count = readout.answer, readout.window
    rising = stack.weight[0] > 0
    low, high = (stack.mean[0] + side * 100 * stack.scale[0] for side in (-1, 1))

    def risk_at(score: float) -> float:
        neurons, entropies, logprobs = (np.full(count, value, np.float32) for value in (score, entropy, logprob))
        return readout.risk(token_signals(score, neurons, entropies, logprobs))[0]

    for _ in range(60):
        middle = (low + high) / 2
        if (risk_at(middle) < risk) == rising:
            low = middle
        else:
            high = middle
    return Signal((low + high) / 2, entropy, logprob)
