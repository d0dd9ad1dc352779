"""From what was measured at each token to a calibrated risk, per token and per answer.

The answer's risk is that of its worst window of ``window`` tokens (a shorter answer is one window): over a long answer
the truth signal averages away and length dominates. One feature for each signal (``guard.probe.signals``) describes a
window: the mean neuron score, the highest entropy and the highest surprise (negative log-probability) of its tokens,
and the like of further signals. The first window also counts what the last prompt token has of the forward pass: the
neuron score, the state from which the answer sets out. A logistic stack turns features into a logit. The longer an
answer, the more windows might look wrong by chance, so a later window has to be more extreme to count as much:
``handicap``. Platt scaling or isotonic regression on held-out answers turns the highest logit into a probability. The
score of the last prompt token alone gives a risk before any text exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from guard.probe.signals import (
    ALWAYS,
    COLUMN,
    DISTANCE,
    HEADS,
    NEURONS,
    SIGNALS,
    Array,
    Pooling,
    Signal,
    Source,
    TokenSignals,
    names,
)


@dataclass(frozen=True, slots=True)
class Stack:
    """A logistic regression on standardised features: bias + sum_k weight_k (x_k - mean_k) / scale_k.

    mean, scale, weight: one value for each signal, in the order of ``SIGNALS``. A signal of weight 0 is not used.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[float, ...]
    bias: float
    _columns: NDArray[np.intp] = field(init=False, repr=False, compare=False)  # of signals of any weight
    _terms: tuple[NDArray[np.float64], ...] = field(init=False, repr=False, compare=False)  # theirs

    def __post_init__(self) -> None:
        columns = np.flatnonzero(self.weight)
        object.__setattr__(self, "_columns", columns)
        terms = tuple(np.array(values)[columns] for values in (self.mean, self.scale, self.weight))
        object.__setattr__(self, "_terms", terms)

    def logit(self, features: Array) -> NDArray[np.float64]:
        """features [m, signals] -> logits [m]. What has no weight need not have been measured."""
        mean, scale, weight = self._terms
        return (features[:, self._columns].astype(np.float64) - mean) / scale @ weight + self.bias

    def contributions(self, features: Array) -> dict[str, float]:
        """features [signals] of one window -> what each signal of any weight adds to its logit."""
        return {
            signal.name: weight * (float(value) - mean) / scale
            for signal, value, mean, scale, weight in zip(
                SIGNALS, features, self.mean, self.scale, self.weight, strict=True
            )
            if weight
        }


@dataclass(frozen=True, slots=True)
class Peak:
    """The worst window: tokens start (inclusive) to end (exclusive)."""

    start: int
    end: int


class NeuronShare(NamedTuple):
    """What one neuron adds to a logit."""

    layer: int
    neuron: int
    adds: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an answer's worst window has its logit: base + the sum of ``signals``, exactly, as the stack is linear.

    signals: by name, what each that counts adds beyond its mean over the calibration's windows. base: what a window of
    nothing but means would have at its place: the stack's bias, less its handicap.
    span: the tokens (from the first, inclusive, which is -1 for the last prompt token, to the last, exclusive) over
    which the neuron score was averaged. per_score: what a neuron score of 1 more adds. neurons: those that add or take
    most, where they were told apart; all the others together make up the rest of what ``signals`` has of them.
    """

    base: float
    signals: Mapping[str, float]
    span: tuple[int, int]
    per_score: float
    neurons: tuple[NeuronShare, ...] = ()

    @property
    def logit(self) -> float:
        return self.base + sum(self.signals.values())

    @property
    def other_neurons(self) -> float:
        """What the neurons add that are not listed."""
        return self.signals.get(NEURONS, 0.0) - sum(one.adds for one in self.neurons)

    def told_apart(
        self, layer: NDArray[np.int32], neuron: NDArray[np.int32], beyond: NDArray[np.float64], most: int = 10
    ) -> Explanation:
        """The same with neurons. layer, neuron: [k], the probe's; beyond float64 [k]: by how much each one's part of
        the neuron score exceeds its usual one."""
        adds = self.per_score * beyond
        chosen = np.argsort(-np.abs(adds), kind="stable")[:most]
        return replace(self, neurons=tuple(NeuronShare(int(layer[i]), int(neuron[i]), float(adds[i])) for i in chosen))


@dataclass(frozen=True, slots=True)
class Readout:
    """The calibrated reading of one bundle.

    platt: (a, b) of sigmoid(a logit + b). isotonic: (logit, risk) points, ascending, joined by straight lines; they
    stand in place of Platt scaling where given. prompt_platt: Platt scaling of the last prompt token's neuron score,
    None without one. calibrated_tokens: tokens of the longest answer that thresholds come from; None where the bundle
    does not say.
    distance_limit: the distance of its question beyond which an answer lies outside the calibration's domain; None
    where the bundle does not say.
    tail: by how much logits of right answers exceed their high quantiles, on average; 0 counts all windows alike.
    used: names of the signals that count, of which none may be missing; that of the neurons, too, unless a head counts
    and they do not.
    """

    window: int
    answer: Stack
    platt: tuple[float, float]
    token: Stack
    isotonic: tuple[tuple[float, float], ...] | None = None
    prompt_platt: tuple[float, float] | None = None
    calibrated_tokens: int | None = None
    tail: float = 0.0
    distance_limit: float | None = None
    used: frozenset[str] = field(init=False)
    _curve: NDArray[np.float64] | None = field(init=False, repr=False, compare=False)  # isotonic, [2, points]

    def __post_init__(self) -> None:
        curve = None if self.isotonic is None else np.array(self.isotonic, np.float64).T
        object.__setattr__(self, "_curve", curve)
        weights = zip(SIGNALS, self.answer.weight, self.token.weight, strict=True)
        counting = {signal.name for signal, answer, token in weights if answer or token}
        object.__setattr__(self, "used", frozenset(counting if counting & set(HEADS) else counting | {NEURONS}))

    @property
    def uses_draws(self) -> bool:
        """Whether a signal of draws counts; a probe of neurons alone spares the engine their measurement."""
        return bool(names(Source.DRAW, self.used))

    def logit(self, signals: TokenSignals, before: int = 0) -> tuple[float, Peak]:
        """The highest stack logit over the answer's windows less their handicaps, uncalibrated, and where it is.

        ``before``: how many tokens the answer had before these.
        """
        _, logit, _, peak = self._worst(signals, before)
        return logit, peak

    def explain(self, signals: TokenSignals) -> Explanation:
        """What the logit of an answer's worst window is made of."""
        features, _, less, peak = self._worst(signals, 0)
        column = COLUMN[NEURONS]
        per_score = self.answer.weight[column] / self.answer.scale[column]
        span = _averaged(signals, peak)
        return Explanation(self.answer.bias - less, self.answer.contributions(features), span, per_score)

    def _worst(self, signals: TokenSignals, before: int) -> tuple[Array, float, float, Peak]:
        """(features [signals], logit, by how much that counts less, place) of the worst window."""
        features, starts, width = windows(signals, self.window)
        less = self.tail * _handicaps(before, len(starts), self.window) if self.tail else np.zeros(len(starts))
        logits = self.answer.logit(features) - less
        worst = int(np.argmax(logits))
        start = int(starts[worst])
        return features[worst], float(logits[worst]), float(less[worst]), Peak(start, start + width)

    def risk(self, signals: TokenSignals, before: int = 0) -> tuple[float, Peak]:
        """The calibrated probability that the answer is wrong, and its worst window; ``before`` as in ``logit``."""
        logit, peak = self.logit(signals, before)
        return float(self._calibrated(np.float64(logit))), peak

    def _calibrated(self, logit: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
        if self._curve is not None:
            return np.asarray(np.interp(logit, self._curve[0], self._curve[1]))
        a, b = self.platt
        return sigmoid(a * logit + b)

    def window_risks(
        self,
        values: Mapping[str, Array],
        opening: NDArray[np.intp],
        before: Mapping[str, Array],
        place: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """The risk of one window of each of m answers, in one pass: float64 [m], as ``risk`` has it of each alone.

        values: by name of a signal, float32 [m, window], all finite. place: how many tokens each answer had before its
        window, [m]. opening: indices [k] of those that begin an answer. before: by name of a signal of the forward
        pass, what the last prompt token of these has, float32 [k].
        """
        features = np.zeros((len(place), len(SIGNALS)), np.float32)
        for column, signal in enumerate(SIGNALS):
            if signal.name not in self.used:
                continue
            measured, lead = values[signal.name], before.get(signal.name)
            if signal.sign < 0:
                measured, lead = -measured, None if lead is None else -lead
            if signal.pooling is Pooling.MAX:
                highest = measured.max(axis=1)
                if lead is not None:
                    highest[opening] = np.maximum(highest[opening], lead)
                features[:, column] = highest
                continue
            total = np.cumsum(measured, axis=1, dtype=np.float64)[:, -1]  # one after the other, as ``_mean``
            mean = total / self.window
            if lead is not None:
                mean[opening] = (total[opening] + lead) / (self.window + 1)
            features[:, column] = mean
        logits = self.answer.logit(features)
        if self.tail:
            logits = logits - self.tail * handicap(place / self.window)
        return self._calibrated(logits)

    def prompt_risk(self, score: float) -> float | None:
        """The calibrated probability that what follows the prompt is wrong, from its last token's neuron score alone.

        None without a score, or without a calibration of it.
        """
        if self.prompt_platt is None or not np.isfinite(score):
            return None
        a, b = self.prompt_platt
        return float(sigmoid(np.float64(a * score + b)))

    def in_domain(self, signals: TokenSignals) -> bool | None:
        """Whether the question is of a kind that stands behind the thresholds; None where that is not known."""
        distance = signals.last_prompt.get(DISTANCE, np.nan)
        if self.distance_limit is None or not np.isfinite(distance):
            return None
        return distance <= self.distance_limit

    def token_risks(self, signals: TokenSignals) -> list[float | None]:
        """For each token the calibrated probability that it states something wrong; None where it has no score."""
        features = token_features(signals)
        values = sigmoid(self.token.logit(features))
        known = np.isfinite(features[:, np.flatnonzero(self.token.weight)]).sum(1) == np.count_nonzero(
            self.token.weight
        )
        return [float(value) if k else None for value, k in zip(values, known, strict=True)]


def sigmoid(x: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    # Bounded: exp overflows in float64 beyond 709, and a probability is 0 or 1 in float32 long before 60.
    return np.asarray(1 / (1 + np.exp(-np.minimum(np.maximum(x, -60), 60))))


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


@lru_cache(1024)
def _handicaps(before: int, count: int, window: int) -> NDArray[np.float64]:
    """Of so many windows, the first of which starts ``before`` tokens after the answer."""
    return handicap((before + np.arange(count)) / window)


def windows(signals: TokenSignals, width: int) -> tuple[Array, NDArray[np.int64], int]:
    """Features of every window: (float32 [m, signals], starts [m], width), where width is at most the answer's length.

    Risk rises with each feature: where lower values of a signal are riskier, its sign is turned. Of a signal that the
    engine does not measure they are NaN.
    """
    n = len(signals)
    width = min(width, n)
    features = np.full((n - width + 1, len(SIGNALS)), np.nan, np.float32)
    for column, signal in enumerate(SIGNALS):
        if signal.name in signals.values and signal.counts:
            features[:, column] = _POOLED[signal.pooling](*oriented(signals, signal), width)
    return features, np.arange(n - width + 1), width


def token_features(signals: TokenSignals) -> Array:
    """Features of every token alone: float32 [n, signals]; NaN of what was not measured, or counts in no risk."""
    missing = np.full(len(signals), np.nan, np.float32)
    columns = [oriented(signals, signal)[0] if signal.counts else missing for signal in SIGNALS]
    return np.stack(columns, -1).astype(np.float32)


def oriented(signals: TokenSignals, signal: Signal) -> tuple[Array, float]:
    """A signal's values [n] and that of the last prompt token (NaN where it has none), so that higher is riskier."""
    values, before = signals[signal.name], signals.last_prompt.get(signal.name, np.nan)
    return (values, before) if signal.sign > 0 else (-values, -before)


def _mean(values: Array, before: float, width: int) -> NDArray[np.float64]:
    """Means of the windows' finite values; ``before`` counts in the first."""
    present = np.isfinite(values)
    if present[:-1].all():  # all, or all but the last
        count = np.full(len(values) - width + 1, float(width))
        if not present[-1]:
            values = values.copy()
            values[-1] = 0
            count[-1] -= 1
        total = _rolling_sum(values, width)
    else:
        total = _rolling_sum(np.where(present, values, 0.0), width)
        count = _rolling_sum(present.astype(np.float64), width)
    if not np.isnan(before):
        total[0] += before
        count[0] += 1
    if count.all():
        return total / count
    # A window of one token that has no value of its own (the last one) falls back on the token before it.
    previous = np.concatenate(([before], values[:-1]))[width - 1 :]
    return np.where(count > 0, total / np.maximum(count, 1), previous)


def _averaged(signals: TokenSignals, window: Peak) -> tuple[int, int]:
    """The tokens over which ``_mean`` averages a window's neuron score. Only the last of an answer may lack one."""
    known = np.isfinite(signals[NEURONS][window.start : window.end])
    end = window.start + int(known.sum())
    if end == window.start:
        return window.start - 1, window.start
    before = window.start == 0 and not np.isnan(signals.prompt_score)
    return window.start - before, end


def _max(values: Array, before: float, width: int) -> Array:
    """Maxima of the windows' values that are not missing; ``before`` counts in the first."""
    highest, span = values, 1
    while span < width:  # of twice as many values each time
        further = min(span, width - span)
        highest = np.fmax(highest[:-further], highest[further:])
        span += further
    if not np.isnan(before):
        highest[0] = np.fmax(highest[0], before)
    return highest


_POOLED: dict[Pooling, Callable[[Array, float, int], NDArray[Any]]] = {Pooling.MEAN: _mean, Pooling.MAX: _max}


def _rolling_sum(values: NDArray[np.floating], width: int) -> NDArray[np.float64]:
    summed = np.cumsum(values, dtype=np.float64)
    total = summed[width - 1 :].copy()
    total[1:] -= summed[:-width]
    return total


def unit_readout(used: frozenset[str] = ALWAYS) -> Readout:
    """A readout that uses all of these, so that all of them are measured; what it says is not used."""
    weight = tuple(float(signal.name in used and signal.counts) for signal in SIGNALS)
    stack = Stack((0.0,) * len(SIGNALS), (1.0,) * len(SIGNALS), weight, 0.0)
    return Readout(1, stack, (1.0, 0.0), stack)
