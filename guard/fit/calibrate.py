"""From neuron scores to calibrated risks: the window, the stack, Platt scaling, the token head, thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from guard.probe.readout import Readout, Signals, Stack, token_features, windows

_UNREGULARISED = 1e6  # inverse strength that leaves a logistic regression on few features unregularised


def stack(features: NDArray[np.float32], wrong: NDArray[np.bool_]) -> Stack:
    """A logistic regression on standardised features [m, 3]."""
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(features), wrong)
    return Stack(
        tuple(map(float, scaler.mean_)),
        tuple(map(float, scaler.scale_)),
        tuple(map(float, model.coef_[0])),
        float(model.intercept_[0]),
    )


def fit_readout(
    signals: Sequence[Signals], wrong: NDArray[np.bool_], spans: Sequence[tuple[int, int]], window: int
) -> Readout:
    """Fit the readout on calibration answers.

    The stack learns from each answer's highest-entropy window, Platt scaling from the resulting logits; the token head
    from single tokens: those of a wrong answer's span (``spans``, token indices) are 1, all others 0.
    """
    chosen = []
    for answer in signals:
        features, _, _ = windows(answer, window)
        chosen.append(features[np.argmax(features[:, 1])])
    answer_stack = stack(np.stack(chosen), wrong)
    tokens, labels = [], []
    for answer, (start, end), is_wrong in zip(signals, spans, wrong, strict=True):
        tokens.append(token_features(answer))
        position = np.arange(len(answer))
        labels.append((position >= start) & (position < end) & is_wrong)
    token_stack = stack(np.concatenate(tokens), np.concatenate(labels))
    rough = Readout(window, answer_stack, (1.0, 0.0), token_stack)
    logits = np.array([[rough.logit(answer)[0]] for answer in signals])
    platt = LogisticRegression(C=_UNREGULARISED).fit(logits, wrong)
    return Readout(window, answer_stack, (float(platt.coef_[0, 0]), float(platt.intercept_[0])), token_stack)
