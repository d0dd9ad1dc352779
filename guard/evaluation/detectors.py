"""What a probe is worth on held-out answers: its parts alone beside the stack, and beside what needs no probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from guard.evaluation import metrics, random_baseline
from guard.harness.features import Features
from guard.judge.question import Question
from guard.probe.card import SetMetrics
from guard.probe.readout import Readout, oriented
from guard.probe.signals import NEURONS, SIGNALS, Pooling, Signal, TokenSignals

LAST_PROMPT = "last_prompt"  # the neuron score of the last prompt token
_LEAST = 20  # answers of a set that is reported

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Baseline:
    """What random neurons are refit on: features [answers, all neurons] of the answers that are reported on, train the
    same of the training answers, wrong bool [training answers]. index: int64 [k], the probe's neurons, and width: how
    many a layer has; as many are drawn in each layer."""

    features: Features
    train: Features
    wrong: Bools
    index: NDArray[np.int64]
    width: int

    def scores(self, seeds: Sequence[int]) -> list[NDArray[np.float64]]:
        """The decisions of a probe on random neurons, for each reported answer; one draw for each seed."""
        draws = [random_baseline.layer_matched(self.index, self.width, seed) for seed in seeds]
        # Each pass over the answers may read more than memory holds: one for all draws.
        every, place = np.unique(np.concatenate(draws), return_inverse=True)
        features, train = self.features.take(every), self.train.take(every)
        found = []
        for at in np.split(place, len(draws)):
            refit = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            found.append(refit.fit(train[:, at], self.wrong).decision_function(features[:, at]))
        return found


def alone(signals: TokenSignals, signal: Signal) -> np.floating[Any]:
    """What one signal says of a whole answer: higher is riskier."""
    values, before = oriented(signals, signal)
    known = values if np.isnan(before) else np.append(values, before)
    return np.nanmean(known) if signal.alone is Pooling.MEAN else np.nanmax(known)


def parts_of(signals: Sequence[TokenSignals], readout: Readout) -> dict[str, NDArray[np.floating]]:
    """What each part of the probe, and an answer's length, say of each answer: higher is riskier."""
    measured = [signal for signal in SIGNALS if signal.counts and all(signal.name in one.values for one in signals)]
    if without := NEURONS not in readout.used:  # and of heads alone: the engine's neuron scores are all 0
        measured = [signal for signal in measured if signal.name != NEURONS]
    return {
        "stack": np.array([readout.risk(one)[0] for one in signals]),
        **{signal.name: np.array([alone(one, signal) for one in signals]) for signal in measured},
        **({} if without else {LAST_PROMPT: np.array([one.prompt_score for one in signals])}),
        "length": np.array([len(one) for one in signals], float),
    }


def reports(
    questions: Sequence[Question],
    wrong: Bools,
    signals: Sequence[TokenSignals],
    readout: Readout,
    random: Baseline | None,
    seed: int,
) -> dict[str, SetMetrics]:
    """Metrics on all answers and on every group of questions; without ``random``, no random neurons beside them."""
    scores = parts_of(signals, readout)
    if random is not None:
        drawn = random.scores(range(seed, seed + random_baseline.DRAWS))
        scores |= {f"random{draw}": values for draw, values in enumerate(drawn)}
    found = {}
    for group in ["all", *sorted({group for question in questions for group in question.groups})]:
        member = np.array([group == "all" or group in question.groups for question in questions])
        if member.sum() < _LEAST or wrong[member].all() or not wrong[member].any():
            continue
        own = {name: values[member] for name, values in scores.items()}
        entities = [question.entity for question, is_in in zip(questions, member, strict=True) if is_in]
        found[group] = _report(wrong[member], own, entities, seed)
    return found


def _report(wrong: Bools, scores: dict[str, NDArray[np.floating]], entities: Sequence[str], seed: int) -> SetMetrics:
    measured = {name: metrics.auroc(wrong, values, entities, seed) for name, values in scores.items()}
    draws = [measured.pop(name) for name in list(measured) if name.startswith("random")]
    if draws:
        measured["random"] = metrics.over(draws)
    risk = scores["stack"]
    return SetMetrics(
        n=len(wrong),
        wrong=int(wrong.sum()),
        auroc=measured,
        ece=metrics.ece(wrong, risk),
        brier=metrics.brier(wrong, risk),
    )
