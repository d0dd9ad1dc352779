"""From what was measured at each token to a calibrated risk, per token and per answer.

The answer's risk is that of its worst window of ``window`` tokens (a shorter answer is one window): over a long answer
the truth signal averages away and length dominates. Three features describe a window: the mean neuron score, the
highest entropy and the highest surprise (negative log-probability) of its tokens. The first window also counts the
neuron score of the last prompt token, the state from which the answer sets out. A logistic stack turns features into
a logit. The longer an answer, the more windows might look wrong by chance, so a later window has to be more extreme to
count as much: ``handicap``. Platt scaling or isotonic regression on held-out answers turns the highest logit into a
probability. The score of the last prompt token alone gives a risk before any text exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class SignalFault(StrEnum):
    """Why signals cannot be scored."""

    EMPTY = "empty"
    MISSING = "missing"
    NOT_FINITE = "not_finite"


@dataclass(frozen=True, slots=True)
class Signals:
    """What was measured on one answer of n tokens (the end-of-sequence token is not one of them).

    NaN stands for what was not measured, an infinity for a measurement that is not a finite number.

    lead: neuron score of the last prompt token.
    neurons: float32 [n], neuron score of each token; NaN where its activation does not exist (an answer that stops at
        a length limit never feeds its last token back).
    entropy, logprob: float32 [n], nats, of the distribution that each token was drawn from, before any sampling option.
    """

    lead: float
    neurons: Array
    entropy: Array
    logprob: Array

    def __len__(self) -> int:
        return len(self.neurons)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Signals:
        """As ``to_dict`` wrote them."""
        neurons, entropy, logprob = (np.array(row[name], np.float32) for name in ("neurons", "entropy", "logprob"))
        return cls(row["lead"], neurons, entropy, logprob)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "lead": self.lead,
            "neurons": self.neurons.tolist(),
            "entropy": self.entropy.tolist(),
            "logprob": self.logprob.tolist(),
        }

    def flaw(self, draws: bool = True) -> SignalFault | None:
        """Why these signals cannot be scored, or None; without ``draws``, entropy and log-probability may lack."""
        if len(self) == 0:
            return SignalFault.EMPTY
        lead = np.array([self.lead], np.float32)
        last = self.neurons[-1:]
        return _flaw_in(lead, self.neurons[:-1], last[~np.isnan(last)], *self._draws(draws))

    def flaw_within(self, draws: bool = True) -> SignalFault | None:
        """The same of tokens in the middle of an answer: each must have a score, and the lead does not count."""
        return _flaw_in(self.neurons, *self._draws(draws))

    def _draws(self, wanted: bool) -> tuple[Array, ...]:
        return (self.entropy, self.logprob) if wanted else ()

    def part(self, first: int, last: int) -> Signals:
        """Those of tokens first..last-1; the lead stays with the first token of all."""
        cut = slice(first, last)
        lead = self.lead if first == 0 else float(np.nan)
        return Signals(lead, self.neurons[cut], self.entropy[cut], self.logprob[cut])


def _flaw_in(*measured: Array) -> SignalFault | None:
    values = np.concatenate(measured)
    if np.isfinite(values).all():
        return None
    return SignalFault.MISSING if np.isnan(values).any() else SignalFault.NOT_FINITE


@dataclass(frozen=True, slots=True)
class Stack:
    """A logistic regression on standardised features: bias + sum_k weight_k (x_k - mean_k) / scale_k."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[float, ...]
    bias: float

    def logit(self, features: Array) -> NDArray[np.float64]:
        """features [m, 3] -> logits [m]."""
        used = np.flatnonzero(self.weight)  # what has no weight need not have been measured
        mean, scale, weight = (np.array(values)[used] for values in (self.mean, self.scale, self.weight))
        return (features[:, used].astype(np.float64) - mean) / scale @ weight + self.bias


@dataclass(frozen=True, slots=True)
class Peak:
    """The worst window: tokens start (inclusive) to end (exclusive)."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Readout:
    """The calibrated reading of one bundle.

    platt: (a, b) of sigmoid(a logit + b). isotonic: (logit, risk) points, ascending, joined by straight lines; they
    stand in place of Platt scaling where given. preemptive: Platt scaling of the lead score, None without one.
    longest: tokens of the longest answer that thresholds come from; None where the bundle does not say.
    tail: by how much logits of right answers exceed their high quantiles, on average; 0 counts all windows alike.
    """

    window: int
    answer: Stack
    platt: tuple[float, float]
    token: Stack
    isotonic: tuple[tuple[float, float], ...] | None = None
    preemptive: tuple[float, float] | None = None
    longest: int | None = None
    tail: float = 0.0

    @property
    def uses_draws(self) -> bool:
        """Whether entropy and log-probability count; a probe of neurons alone spares the engine their measurement."""
        return any(any(stack.weight[1:]) for stack in (self.answer, self.token))

    def logit(self, signals: Signals, before: int = 0) -> tuple[float, Peak]:
        """The highest stack logit over the answer's windows less their handicaps, uncalibrated, and where it is.

        ``before``: how many tokens the answer had before these.
        """
        features, starts, width = windows(signals, self.window)
        logits = self.answer.logit(features)
        if self.tail:
            logits = logits - self.tail * handicap((before + starts) / self.window)
        worst = int(np.argmax(logits))
        return float(logits[worst]), Peak(int(starts[worst]), int(starts[worst]) + width)

    def risk(self, signals: Signals, before: int = 0) -> tuple[float, Peak]:
        """The calibrated probability that the answer is wrong, and its worst window; ``before`` as in ``logit``."""
        logit, peak = self.logit(signals, before)
        if self.isotonic is not None:
            logits, risks = zip(*self.isotonic, strict=True)
            return float(np.interp(logit, logits, risks)), peak
        a, b = self.platt
        return float(sigmoid(np.float64(a * logit + b))), peak

    def prompt_risk(self, lead: float) -> float | None:
        """The calibrated probability that what follows the prompt is wrong, from its last token's neuron score alone.

        None without a score, or without a calibration of it.
        """
        if self.preemptive is None or not np.isfinite(lead):
            return None
        a, b = self.preemptive
        return float(sigmoid(np.float64(a * lead + b)))

    def token_risks(self, signals: Signals) -> list[float | None]:
        """For each token the calibrated probability that it states something wrong; None where it has no score."""
        features = token_features(signals)
        values = sigmoid(self.token.logit(features))
        known = np.isfinite(features[:, np.flatnonzero(self.token.weight)]).sum(1) == np.count_nonzero(
            self.token.weight
        )
        return [float(value) if k else None for value, k in zip(values, known, strict=True)]


def sigmoid(x: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    # Clipped: exp overflows in float64 beyond 709, and a probability is 0 or 1 in float32 long before 60.
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))))


def handicap(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of windows that start ``place`` window lengths after the answer: in units of the tail of right answers' logits.

    The j-th window of an answer is allowed a false alarm 1 / (j (1 + ln j)^2) times as often as the first, so that all
    of them together are allowed 1.6 times as many, however long the answer is, and what a window counts is known as
    soon as it is complete (alpha spending: Lan and DeMets, Biometrika 70, 1983). With an exponential tail of scale b a
    logit is exceeded by c times fewer answers b ln c higher (Coles, An Introduction to Statistical Modeling of Extreme
    Values, 2001, section 4.2).
    """
    rank = 1 + place
    return np.asarray(np.log(rank) + 2 * np.log1p(np.log(rank)))


def windows(signals: Signals, width: int) -> tuple[Array, NDArray[np.int64], int]:
    """Features of every window: (float32 [m, 3], starts [m], width), where width is at most the answer's length."""
    n = len(signals)
    width = min(width, n)
    starts = np.arange(n - width + 1)
    present = np.isfinite(signals.neurons)
    total = _rolling_sum(np.where(present, signals.neurons, 0.0), width)
    count = _rolling_sum(present.astype(np.float64), width)
    if not np.isnan(signals.lead):
        total[0] += signals.lead
        count[0] += 1
    # A window of one token that has no score of its own (the last one) falls back on the token before it.
    previous = np.concatenate(([signals.lead], signals.neurons[:-1]))[starts + width - 1]
    neurons = np.where(count > 0, total / np.maximum(count, 1), previous)
    entropy = np.lib.stride_tricks.sliding_window_view(signals.entropy, width).max(-1)
    surprise = np.lib.stride_tricks.sliding_window_view(-signals.logprob, width).max(-1)
    return np.stack([neurons, entropy, surprise], -1).astype(np.float32), starts, width


def token_features(signals: Signals) -> Array:
    """Features of every token alone: float32 [n, 3]."""
    return np.stack([signals.neurons, signals.entropy, -signals.logprob], -1).astype(np.float32)


def _rolling_sum(values: NDArray[np.floating], width: int) -> NDArray[np.float64]:
    summed = np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
    return summed[width:] - summed[:-width]


def unit_readout() -> Readout:
    """A readout that uses everything, so that everything is measured; what it says is not used."""
    stack = Stack((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0.0)
    return Readout(1, stack, (1.0, 0.0), stack)
