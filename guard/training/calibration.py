"""From neuron scores to calibrated risks: window, stack, tail, calibration, the token head, what is prompt_risk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from guard.errors import FitError
from guard.probe import conformal
from guard.probe.card import ReadoutParameters, ThresholdMetrics
from guard.probe.readout import Readout, Stack, token_features, windows
from guard.probe.signals import COLUMN, COUNTED, DISTANCE, ENTROPY, TokenSignals
from guard.training.config import Method
from guard.training.distance import limit_of

PARTS = ("calibration", "thresholds", "test")
_UNREGULARISED = 1e6  # inverse strength that leaves a logistic regression on few features unregularised


def stack(features: NDArray[np.float32], wrong: NDArray[np.bool_]) -> Stack:
    """A logistic regression on standardised features [m, signals]; what is NaN everywhere was not measured."""
    measured = ~np.isnan(features).all(0)
    scaler = StandardScaler().fit(features[:, measured])
    model = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(features[:, measured]), wrong)
    mean, scale, weight = np.zeros((3, features.shape[1]))
    scale[:] = 1
    mean[measured], scale[measured], weight[measured] = scaler.mean_, scaler.scale_, model.coef_[0]
    return Stack(_floats(mean), _floats(scale), _floats(weight), float(model.intercept_[0]))


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(map(float, values))


def platt(scores: Sequence[float], wrong: NDArray[np.bool_]) -> tuple[float, float]:
    """(a, b) of sigmoid(a score + b), by maximum likelihood (Platt, 1999). The slope is never negative."""
    column = np.array(scores, np.float64)[:, None]
    model = LogisticRegression(C=_UNREGULARISED).fit(column, wrong)
    if model.coef_[0, 0] < 0:  # a score that says nothing here: everybody gets the base rate
        share = float(wrong.mean())
        return 0.0, float(np.log(share / (1 - share)))
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def isotonic(logits: Sequence[float], wrong: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """(logit, risk) points by isotonic regression, one in the middle of each of its steps, joined by straight lines.

    Plain steps would give many answers the same risk, and a threshold could not fall between them (centred isotonic
    regression: Oron and Flournoy, 2017). Risks stay off 0 and 1 by half an answer.
    """
    order = np.argsort(logits, kind="stable")
    x, y = np.array(logits, np.float64)[order], wrong[order].astype(np.float64)
    fitted = IsotonicRegression(y_min=0.5 / len(y), y_max=1 - 0.5 / len(y)).fit_transform(x, y)
    points = [(float(x[fitted == value].mean()), float(value)) for value in np.unique(fitted)]
    if len(points) == 1:
        return (float(x[0]) - 1.0, points[0][1]), (float(x[-1]) + 1.0, points[0][1])
    return tuple(points)


def fit_readout(
    signals: Sequence[TokenSignals],
    wrong: NDArray[np.bool_],
    spans: Sequence[tuple[int, int]],
    window: int,
    method: Method = "platt",
    by_token: Sequence[int] | None = None,
) -> Readout:
    """Fit the readout on calibration answers; ``by_token``: those of which every token was measured (all by default).

    The stack learns from each answer's highest-entropy window, Platt scaling or isotonic regression from the resulting
    logits; the token head from single tokens: those of a wrong answer's span (``spans``, token indices) are 1, all
    others 0; what is prompt_risk from the score of the last prompt token, where that says anything.
    """
    chosen = []
    for answer in signals:
        features, _, _ = windows(answer, window)
        chosen.append(features[np.argmax(features[:, COLUMN[ENTROPY]])])
    answer_stack = stack(np.stack(chosen), wrong)
    tokens, labels = [], []
    measured = [COLUMN[name] for name in COLUMN if name in signals[0].values and name in COUNTED]
    for i in range(len(signals)) if by_token is None else by_token:
        features, (start, end) = token_features(signals[i]), spans[i]
        known = np.isfinite(features[:, measured]).all(
            1
        )  # the last token of an answer that was cut has no neuron score
        position = np.arange(len(features))
        tokens.append(features[known])
        labels.append(((position >= start) & (position < end) & wrong[i])[known])
    token_stack = stack(np.concatenate(tokens), np.concatenate(labels))
    rough = Readout(window, answer_stack, (1.0, 0.0), token_stack)
    rough = replace(rough, tail=tail(np.array([rough.logit(one.part(0, window))[0] for one in signals])[~wrong]))
    logits = [rough.logit(answer)[0] for answer in signals]
    prompt_risk = platt([answer.prompt_score for answer in signals], wrong)
    return Readout(
        window,
        answer_stack,
        platt(logits, wrong),
        token_stack,
        isotonic(logits, wrong) if method == "isotonic" else None,
        prompt_risk if prompt_risk[0] > 0 else None,
        tail=rough.tail,
    )


def tail(logits: NDArray[np.float64]) -> float:
    """Scale of the exponential upper tail of right answers' first windows, by maximum likelihood: how far the highest
    fifth exceeds the rest, on average."""
    least = np.quantile(logits, 0.8)
    return float((logits[logits >= least] - least).mean())


def calibrated(
    readout: Readout, signals: Sequence[TokenSignals], wrong: NDArray[np.bool_]
) -> tuple[ReadoutParameters, dict[str, NDArray[np.float32]]]:
    """The card's parameters, and the tensors that thresholds and bands come from: risks of right and wrong answers."""
    right = [one for one, is_wrong in zip(signals, wrong, strict=True) if not is_wrong]
    risks = np.array([readout.risk(one)[0] for one in signals], np.float32)
    far = limit_of(np.array([one.last_prompt.get(DISTANCE, np.nan) for one in signals], np.float64))
    readout = replace(readout, calibrated_tokens=max(map(len, signals), default=None), distance_limit=far)
    tensors = {"right_risks": np.sort(risks[~wrong]), "wrong_risks": np.sort(risks[wrong])}
    if readout.prompt_platt is not None:
        prompt_risks = [readout.prompt_risk(one.prompt_score) for one in right]
        tensors["right_prompt_risks"] = np.sort(np.array(prompt_risks, np.float32))
    return ReadoutParameters.of(readout), tensors


@dataclass(frozen=True, slots=True)
class Calibration:
    """A readout, and what a card and a bundle's tensors say of it."""

    readout: Readout
    parameters: ReadoutParameters
    risks: dict[str, NDArray[np.float32]]
    thresholds: dict[str, float]
    at_thresholds: dict[str, ThresholdMetrics]


def calibration(
    signals: Mapping[str, Sequence[TokenSignals]],
    wrong: Mapping[str, NDArray[np.bool_]],
    spans: Sequence[tuple[int, int]],
    window: int,
    method: Method,
    by_token: Sequence[int] | None = None,
) -> Calibration:
    """From answers by part, none of whose entities are in two: ``calibration`` (whose ``spans`` these are) fits the
    readout (``by_token`` as there), ``thresholds`` sets them, ``test`` says what each costs. Raises FitError when a
    part has only one kind."""
    for name in PARTS:
        if wrong[name].all() or not wrong[name].any():
            raise FitError(f"the answers for {name} are all right or all wrong: ask more questions")
    readout = fit_readout(signals["calibration"], wrong["calibration"], spans, window, method, by_token)
    parameters, risks = calibrated(readout, signals["thresholds"], wrong["thresholds"])
    thresholds = conformal.thresholds(risks["right_risks"], conformal.TARGETS)
    risk = np.array([readout.risk(one)[0] for one in signals["test"]])
    return Calibration(readout, parameters, risks, thresholds, at_thresholds(thresholds, risk, wrong["test"]))


def at_thresholds(
    thresholds: dict[str, float], risk: NDArray[np.floating], wrong: NDArray[np.bool_]
) -> dict[str, ThresholdMetrics]:
    """What abstaining at each threshold does to these answers; both kinds must be there."""
    found = {}
    for target, threshold in thresholds.items():
        withheld = risk >= threshold
        found[target] = ThresholdMetrics(
            false_alarms=float(withheld[~wrong].mean()),
            caught=float(withheld[wrong].mean()),
            coverage=float(1 - withheld.mean()),
        )
    return found
