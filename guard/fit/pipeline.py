"""Fit a probe bundle: ask the model, judge its answers, find the neurons, calibrate, measure on held-out entities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from guard.errors import GuardError
from guard.fit import metrics
from guard.fit.calibrate import fit_readout
from guard.fit.collect import Reader, Reading
from guard.fit.judge import judge
from guard.fit.questions import Question, split
from guard.fit.train import Found, find_neurons
from guard.probe import cett, conformal
from guard.probe.bundle import Bundle, save_bundle
from guard.probe.card import (
    Interval,
    ModelIdentity,
    ProbeCard,
    ReadoutParameters,
    SetMetrics,
    StackParameters,
    Training,
)
from guard.probe.readout import Readout, Signals, Stack

SHARES = {"train": 0.5, "calibration": 0.2, "test": 0.3}
TARGETS = (0.01, 0.05, 0.10)
RANDOM_DRAWS = 5

Locate = Callable[[str], tuple[int, int]]  # character range of an answer that states the fact


@dataclass(frozen=True, slots=True)
class Options:
    """id: of the bundle. cap: largest share of all neurons that may be kept."""

    id: str
    seed: int = 0
    cap: float = 0.04


@dataclass(slots=True)
class Answers:
    """The model's own answers that are right or wrong (declined ones are left out), aligned with ``questions``."""

    questions: list[Question]
    prompts: list[list[int]]
    tokens: list[list[int]]
    texts: list[str]
    wrong: NDArray[np.bool_]

    def take(self, index: Sequence[int]) -> Answers:
        return Answers(
            [self.questions[i] for i in index],
            [self.prompts[i] for i in index],
            [self.tokens[i] for i in index],
            [self.texts[i] for i in index],
            self.wrong[list(index)],
        )


def ask(reader: Reader, questions: Sequence[Question]) -> Answers:
    """Greedy answers to all questions, judged."""
    prompts = [reader.prompt(question.text) for question in questions]
    answers = reader.answer(prompts)
    texts = [reader.tokenizer.decode(answer) for answer in answers]
    verdicts = [judge(question, text) for question, text in zip(questions, texts, strict=True)]
    kept = [i for i, verdict in enumerate(verdicts) if verdict is not None and answers[i]]
    return Answers(
        [questions[i] for i in kept],
        [prompts[i] for i in kept],
        [answers[i] for i in kept],
        [texts[i] for i in kept],
        np.array([not verdicts[i] for i in kept], bool),
    )


def fit(
    reader: Reader,
    questions: Sequence[Question],
    identity: ModelIdentity,
    out: Path,
    options: Options,
    locate: Locate = lambda text: (0, len(text)),
    say: Callable[[str], None] = print,
) -> Bundle:
    """Fit and save a bundle. Raises GuardError when the answers cannot teach anything."""
    answers = ask(reader, questions)
    say(f"{len(answers.wrong)} of {len(questions)} answers judged, {answers.wrong.mean():.1%} wrong")
    parts = {name: answers.take(index) for name, index in split(answers.questions, SHARES, options.seed).items()}
    train, calibration, test = parts["train"], parts["calibration"], parts["test"]
    features = np.stack([reading.mean for reading in reader.read(train.prompts, train.tokens)])
    entities = [question.entity for question in train.questions]
    try:
        found = find_neurons(features, train.wrong, entities, options.cap, options.seed)
    except ValueError as error:
        raise GuardError(str(error)) from None
    positive = int((found.coefficient > 0).sum())
    say(f"C={found.C:g}: {len(found.index)} neurons, {positive} positive, of {features.shape[1]}")

    signals = _signals(reader, calibration, found)
    longest = max(1, int(np.ceil(np.quantile([len(tokens) for tokens in train.tokens], 0.9))))
    spans = [
        _span(reader, tokens, locate(text)) for tokens, text in zip(calibration.tokens, calibration.texts, strict=True)
    ]
    readout = fit_readout(signals, calibration.wrong, spans, longest)
    right = [readout.risk(s)[0] for s, wrong in zip(signals, calibration.wrong, strict=True) if not wrong]
    right_risks = np.sort(np.array(right, np.float32))

    reports = _evaluate(reader, train, features, test, found, readout, options.seed)
    layer, neuron = _places(reader, found.index)
    norms = reader.norms.numpy()[layer, neuron]
    card = ProbeCard(
        schema_version=1,
        id=options.id,
        model=identity,
        training=Training(
            method="l1-logistic-regression",
            labels="1-vs-1",
            C=found.C,
            seed=options.seed,
            span="answer-tokens-and-last-prompt-token",
            answers={name: len(part.wrong) for name, part in parts.items()},
        ),
        intercept=found.intercept,
        readout=ReadoutParameters(
            window=readout.window,
            answer=_parameters(readout.answer),
            platt=readout.platt,
            token=_parameters(readout.token),
        ),
        thresholds={f"{t:.2f}": conformal.threshold(right_risks, t) for t in TARGETS},
        metrics=reports,
        tensors_sha256="0" * 64,
    )
    tensors: dict[str, NDArray[np.generic]] = {
        "layer": layer,
        "neuron": neuron,
        "coefficient": found.coefficient,
        "folded": cett.fold(found.coefficient, norms),
        "right_risks": right_risks,
    }
    return save_bundle(out, card, tensors)


def _places(reader: Reader, index: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    width = reader.norms.shape[1]
    return (index // width).astype(np.int32), (index % width).astype(np.int32)


def _signals(reader: Reader, answers: Answers, found: Found) -> list[Signals]:
    places = _places(reader, found.index)
    readings = reader.read(answers.prompts, answers.tokens, places)
    return [signals_of(reading, found.coefficient) for reading in readings]


def signals_of(reading: Reading, coefficient: NDArray[np.float32]) -> Signals:
    """What the taps would have measured: scores of the probe's neurons, the last prompt token's apart."""
    scores = (reading.tokens @ coefficient).astype(np.float32)
    return Signals(float(scores[0]), scores[1:], reading.entropy, reading.logprob)


def _span(reader: Reader, tokens: list[int], characters: tuple[int, int]) -> tuple[int, int]:
    """The range of tokens that covers a range of characters of the answer's text."""
    lengths = [len(reader.tokenizer.decode(tokens[: i + 1])) for i in range(len(tokens))]
    covered = [
        i for i, end in enumerate(lengths) if end > characters[0] and (lengths[i - 1] if i else 0) < characters[1]
    ]
    return (covered[0], covered[-1] + 1) if covered else (0, len(tokens))


def _parameters(stack: Stack) -> StackParameters:
    return StackParameters(mean=stack.mean, scale=stack.scale, weight=stack.weight, bias=stack.bias)


def _evaluate(
    reader: Reader,
    train: Answers,
    train_features: NDArray[np.float32],
    test: Answers,
    found: Found,
    readout: Readout,
    seed: int,
) -> dict[str, SetMetrics]:
    """Each part alone beside the stack, on every group of held-out questions."""
    places = _places(reader, found.index)
    readings = list(reader.read(test.prompts, test.tokens, places))
    signals = [signals_of(reading, found.coefficient) for reading in readings]
    risk = np.array([readout.risk(s)[0] for s in signals])
    scores = {
        "stack": risk,
        "neurons": np.array([np.append(s.neurons, s.lead).mean() for s in signals]),
        "entropy": np.array([s.entropy.max() for s in signals]),
        "logprob": np.array([-s.logprob.mean() for s in signals]),
        "length": np.array([len(s) for s in signals], float),
    }
    features = np.stack([reading.mean for reading in readings])
    for draw in range(RANDOM_DRAWS):
        drawn = np.random.default_rng(seed + draw).choice(features.shape[1], len(found.index), replace=False)
        refit = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        refit.fit(train_features[:, drawn], train.wrong)
        scores[f"random{draw}"] = refit.decision_function(features[:, drawn])
    groups = sorted({group for question in test.questions for group in question.groups})
    reports = {}
    for group in ["all", *groups]:
        member = np.array([group == "all" or group in q.groups for q in test.questions])
        wrong = test.wrong[member]
        if len(wrong) < 20 or wrong.all() or not wrong.any():
            continue
        measured = {name: metrics.auroc(wrong, values[member], seed) for name, values in scores.items()}
        draws = [measured.pop(f"random{draw}") for draw in range(RANDOM_DRAWS)]
        measured["random"] = Interval(
            value=float(np.mean([d.value for d in draws])),
            low=min(d.low for d in draws),
            high=max(d.high for d in draws),
        )
        reports[group] = SetMetrics(
            n=len(wrong),
            wrong=int(wrong.sum()),
            auroc=measured,
            ece=metrics.ece(wrong, risk[member]),
            brier=metrics.brier(wrong, risk[member]),
        )
    return reports
