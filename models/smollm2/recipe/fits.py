"""Detectors that learn from answers: neurons chosen by L1, all that were screened, the words alone, and the stack.

A score is float64 [answers], of every answer, higher is riskier; it means something on answers that the fit has not
seen. Fits over neurons read gigabytes, so each is kept in a folder, by a digest of what it was fit on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from guard.evaluation.baselines import INNER, STRENGTHS, folds
from guard.harness.features import Features
from guard.harness.questions import split
from guard.probe.readout import Stack
from guard.training import calibration
from guard.training.neurons import SEPARATED, find_neurons
from guard.training.path import Path as L1Path
from models.smollm2.recipe.answered import SEED, Answered, Bools, Floats, Index

CAP = 0.04  # largest share of neurons that a probe may keep
SCREENED = 3000  # neurons that the probe over many of them reads
FOLDS = 5  # three of them teach, one fits the stack, one is scored
STACKED = ("neurons", "entropy", "logprob")
_WORDS = (1.0, 10.0, 100.0)  # inverse strengths of regularisation of the words alone
_RATIO, _WARM = 1.5, 8  # values of C on the way to the one that is wanted

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Chosen:
    """index int64 [k]: flat neurons, and their coefficient float32 [k], of CETT as it is. scores: of every answer."""

    index: Index
    coefficient: NDArray[np.float32]
    C: float
    scores: Floats


class Fits:
    """Fits over the neurons of these answers, kept in ``folder``."""

    def __init__(self, answered: Answered, folder: Path, say: Say) -> None:
        self._answered, self._folder, self._say = answered, folder, say
        folder.mkdir(parents=True, exist_ok=True)

    def chosen(self, learn: Index, leads: bool = False) -> Chosen:
        """L1 on the answers ``learn``, C by folds among them; ``leads``: on the last prompt token alone."""

        def fit() -> dict[str, NDArray[Any]]:
            own = self._answered
            entities = [own.entities[i] for i in learn]
            found = find_neurons(self._features(learn, leads), own.wrong[learn], entities, CAP, tick=self._say)[0]
            everyone = self._features(np.arange(len(own)), leads).take(found.index)
            scores = everyone.astype(np.float64) @ found.coefficient
            return {"index": found.index, "coefficient": found.coefficient, "C": np.array(found.C), "scores": scores}

        kept = self._kept(f"chosen-{'leads' if leads else 'means'}", fit, learn.tolist())
        return Chosen(kept["index"], kept["coefficient"], float(kept["C"]), kept["scores"])

    def crossed(self, C: float, leads: bool = False) -> NDArray[np.float64]:
        """Decisions on every answer, float64 [FOLDS, answers], by fits at this C on the answers that teach in each
        fold's ``rotation``. With their intercepts: without, CETT's means, which are far from 0, would set folds apart.
        """

        def fit() -> dict[str, NDArray[Any]]:
            own = self._answered
            every = self._features(np.arange(len(own)), leads)
            weights = np.zeros((FOLDS, len(own)))
            for number, (learn, _, _) in enumerate(rotation(own)):
                weights[number, learn] = 1
            path = L1Path(every, None, 1.0, own.wrong, weights, self._say)
            fitted = [path.solve(1 / (C / _RATIO**step)) for step in range(_WARM, -1, -1)][-1]
            return {"decisions": np.stack([one.decision for one in fitted])}

        return self._kept(f"folds-{'leads' if leads else 'means'}", fit, C)["decisions"]

    def screened(self, learn: Index) -> Floats:
        """L2 on the SCREENED neurons whose mean CETT goes most with being wrong, among the answers ``learn``."""

        def fit() -> dict[str, NDArray[Any]]:
            own = self._answered
            index = screen(self._features(learn), own.wrong[learn], SCREENED)
            every = self._features(np.arange(len(own))).take(index)
            model = ridge(every[learn], own.wrong[learn], [own.entities[i] for i in learn])
            return {"scores": np.asarray(model.decision_function(every), np.float64)}

        return self._kept("screened", fit, learn.tolist())["scores"]

    def linear(self, name: str, learn: Index, features: Callable[[], Floats], *what: object) -> Floats:
        """L2 on ``features()`` [answers, k] of every answer, learnt from the answers ``learn``, its strength by folds.

        ``name`` and ``what`` say which features these are.
        """

        def fit() -> dict[str, NDArray[Any]]:
            every, own = features(), self._answered
            model = ridge(every[learn], own.wrong[learn], [own.entities[i] for i in learn])
            return {"scores": np.asarray(model.decision_function(every), np.float64)}

        return self._kept(f"linear-{name}", fit, learn.tolist(), *what)["scores"]

    def words(self, learn: Index) -> Floats:
        """Those of ``words``, fit on the answers ``learn``."""
        return self._kept("words", lambda: {"scores": words(self._answered, learn)}, learn.tolist())["scores"]

    def path(self, learn: Index, counts: Sequence[int], ratio: float = 1.25, steps: int = 60) -> list[Index]:
        """For each count, as many neurons: those of largest weight in the sparsest fit that keeps at least so many.

        A count that no fit reaches gets none.
        """

        def fit() -> dict[str, NDArray[Any]]:
            own = self._answered
            path = L1Path(self._features(learn), None, 1.0, own.wrong[learn], np.ones((1, len(learn))), self._say)
            kept: dict[str, NDArray[Any]] = {}
            open_ = sorted(counts)
            deviation = spread(self._features(learn))
            for step in range(1, steps + 1):
                (one,) = path.solve(path.largest / ratio**step)
                while open_ and len(one.index) >= open_[0]:
                    order = np.argsort(-np.abs(one.coefficient * deviation[one.index]), kind="stable")
                    kept[str(open_[0])] = np.sort(one.index[order[: open_[0]]])
                    open_.pop(0)
                if not open_ or one.explained > SEPARATED:
                    break
                self._say(f"step {step} of at most {steps}: {len(one.index)} neurons")
            return kept

        found = self._kept("path", fit, learn.tolist(), list(counts), ratio, steps)
        return [found.get(str(count), np.zeros(0, np.int64)) for count in counts]

    def _features(self, index: Index, leads: bool = False) -> Features:
        return self._answered.leads(index) if leads else self._answered.means(index)

    def _kept(self, name: str, fit: Callable[[], dict[str, NDArray[Any]]], *what: object) -> dict[str, NDArray[Any]]:
        file = self._folder / f"{name}-{self._answered.digest(*what)}.npz"
        if not file.is_file():
            self._say(f"fitting {name}")
            made = fit()
            beside = file.with_suffix(".part.npz")
            np.savez(beside, **made)  # type: ignore[arg-type]
            beside.replace(file)
        with np.load(file) as arrays:
            return dict(arrays)


def rotation(answered: Answered) -> list[tuple[Index, Index, Index]]:
    """For each fold: (answers that teach, answers that the stack is fit on, answers that are scored)."""
    dealt = split(answered.questions, {str(fold): 1 / FOLDS for fold in range(FOLDS)}, SEED + 1)
    parts = [np.array(dealt[str(fold)], np.int64) for fold in range(FOLDS)]
    found = []
    for fold in range(FOLDS):
        after = (fold + 1) % FOLDS
        learn = np.sort(np.concatenate([parts[i] for i in range(FOLDS) if i not in (fold, after)]))
        found.append((learn, parts[after], parts[fold]))
    return found


def screen(features: Features, wrong: Bools, count: int) -> Index:
    """The ``count`` neurons with the largest absolute correlation with ``wrong``: int64 [count], ascending."""
    total, squares, cross = (np.zeros(features.shape[1]) for _ in range(3))
    centred = wrong - wrong.mean()
    for part, block in features.blocks():
        total += block.sum(0, dtype=np.float64)
        cross += centred[part] @ block
        squares += np.square(block).sum(0, dtype=np.float64)
    variance = squares / len(wrong) - (total / len(wrong)) ** 2
    scale = np.sqrt(np.maximum(variance, 0))
    strength = np.divide(np.abs(cross), scale, out=np.zeros_like(cross), where=scale > 1e-9 * scale.max())
    return np.sort(np.argsort(-strength, kind="stable")[: min(count, len(strength))])


def spread(features: Features) -> Floats:
    """Standard deviation of every neuron."""
    total, squares = np.zeros(features.shape[1]), np.zeros(features.shape[1])
    for _, block in features.blocks():
        total += block.sum(0, dtype=np.float64)
        squares += np.square(block).sum(0, dtype=np.float64)
    mean = total / len(features)
    return np.asarray(np.sqrt(np.maximum(squares / len(features) - mean**2, 0)), np.float64)


def ridge(features: Floats, wrong: Bools, entities: Sequence[str], strength: float | None = None) -> Any:
    """L2 on standardised features [answers, k]; without ``strength``, the one of STRENGTHS that is best by folds."""
    if strength is None:
        strength = best_strength(features, wrong, entities)
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(features, wrong)


def best_strength(features: Floats, wrong: Bools, entities: Sequence[str]) -> float:
    """Of STRENGTHS, the one with the best AUROC over folds of entities."""
    parts = folds(wrong, entities, INNER)

    def held(strength: float) -> float:
        score = np.zeros(len(wrong))
        for learn, test in parts:
            score[test] = ridge(features[learn], wrong[learn], [], strength).decision_function(features[test])
        return float(roc_auc_score(wrong, score))

    return max(STRENGTHS, key=held)


def words(answered: Answered, learn: Index) -> Floats:
    """TF-IDF of the question's and the answer's words and pairs of words, with a logistic regression: no model."""
    both = np.array([[q.text, text] for q, text in zip(answered.questions, answered.texts, strict=True)], object)
    wrong = answered.wrong[learn]
    entities = [answered.entities[i] for i in learn]

    def model(strength: float) -> Any:
        columns = [
            (name, TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"), column)
            for column, name in enumerate(("question", "answer"))
        ]
        return make_pipeline(ColumnTransformer(columns), LogisticRegression(C=strength, max_iter=2000))

    def held(strength: float) -> float:
        score = np.zeros(len(learn))
        for fit, test in folds(wrong, entities, INNER):
            score[test] = model(strength).fit(both[learn[fit]], wrong[fit]).decision_function(both[learn[test]])
        return float(roc_auc_score(wrong, score))

    fitted = model(max(_WORDS, key=held)).fit(both[learn], wrong)
    return np.asarray(fitted.decision_function(both), np.float64)


@dataclass(frozen=True, slots=True)
class Stacked:
    """A logistic stack of a neuron score, highest entropy and mean surprise, with its Platt scaling."""

    stack: Stack
    platt: tuple[float, float]

    @classmethod
    def fit(cls, answered: Answered, neurons: Floats, learn: Index) -> Stacked:
        """Both on the answers ``learn``, which ``neurons`` has not seen."""
        features = stack_features(answered, neurons)
        stack = calibration.stack(features[learn], answered.wrong[learn])
        return cls(stack, calibration.platt(stack.logit(features[learn]).tolist(), answered.wrong[learn]))

    def risk(self, answered: Answered, neurons: Floats) -> Floats:
        """Calibrated probability that each answer is wrong."""
        slope, offset = self.platt
        logit = slope * self.stack.logit(stack_features(answered, neurons)) + offset
        return np.asarray(1 / (1 + np.exp(-np.clip(logit, -60, 60))), np.float64)


def stack_features(answered: Answered, neurons: Floats) -> NDArray[np.float32]:
    """float32 [answers, 3], in the order of STACKED."""
    return np.stack([neurons, answered.signals["entropy"], answered.signals["logprob"]], -1).astype(np.float32)
