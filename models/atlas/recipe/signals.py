"""What each signal of one forward pass brings on atlas, where what makes answers hard to judge is known of each.

``python -m models.atlas.recipe.signals`` reads fits with all signals, puts the table into ``docs/atlas-report.json``
and writes the page anew (``make atlas-report``). A stack is fit on the calibration part, as one that is served; BENT
are others on the same windows. GATED is L2 on the mean states of the residual head's layers and on their products with
the entropy: it may learn for which questions doubt means anything.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from guard.evaluation import metrics
from guard.evaluation.detectors import alone
from guard.harness.activations import file_of
from guard.harness.store import StageStore, write_json
from guard.ipc.collecting import Part, Site
from guard.probe.readout import windows
from guard.probe.signals import (
    ATTENTION,
    COLUMN,
    ENTROPY,
    LOGPROB,
    MARGIN,
    NEURONS,
    RESIDUAL,
    SIGNALS,
    TOP_MASS,
    TokenSignals,
)
from guard.training.examples import chosen_in
from models.atlas.recipe import prose, trials
from models.atlas.recipe.detection import Fitted, judged
from models.atlas.recipe.questions import from_ledger, held_out, load_ledger
from models.atlas.recipe.reference import Reading, signals_of
from models.atlas.recipe.report import FIT_SEED, MANY, SEED
from models.atlas.recipe.trials import Trial

Doubles = NDArray[np.float64]

_SERVED = (NEURONS, ENTROPY, LOGPROB)
# What the fits read (Makefile): a signal that came later is no part of the table.
_ALL = (*_SERVED, MARGIN, TOP_MASS, RESIDUAL, ATTENTION)
STACKS: Mapping[str, tuple[str, ...]] = {
    "stack": _SERVED,
    "stack, margin, top mass": (*_SERVED, MARGIN, TOP_MASS),
    "stack, residual": (*_SERVED, RESIDUAL),
    "stack, attention": (*_SERVED, ATTENTION),
    "default": (*_SERVED, MARGIN, TOP_MASS, RESIDUAL),
    "all": _ALL,
    "forward pass alone": (NEURONS, RESIDUAL, ATTENTION),
}
BENT: Mapping[str, Callable[[], Any]] = {
    "all, products": lambda: _logistic(PolynomialFeatures(2, include_bias=False)),
    "all, trees": lambda: HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=100, max_depth=2, l2_regularization=10, min_samples_leaf=50, random_state=0
    ),
}
GATED = "residual, gated"
GROUPS = ("all", "unfamiliar", "hard", "rare", "once", "shadowed", "learnt", "codes", "kinds", "languages", "places")
_LEAST = 8  # right and wrong answers of a set
_DRAWS = 1000
_STRENGTH = 1e-3  # C of GATED


def _logistic(*before: Any) -> Any:
    return make_pipeline(StandardScaler(), *before, LogisticRegression(max_iter=1000))


class Stacked:
    """Scores of answers by every stack of a fit."""

    def __init__(self, fitted: Fitted, work: StageStore) -> None:
        self._window = fitted.bundle.readout.window
        use, train = (fitted.data.parts[name] for name in ("calibration", "train"))
        wrong = fitted.wrong(use)
        worst = np.stack([self._doubtful(fitted.signals[i]) for i in use])
        self._models = {
            name: (self._columns(stack), _logistic().fit(worst[:, self._columns(stack)], wrong))
            for name, stack in STACKS.items()
        }
        self._models |= {
            name: (self._columns(_ALL), made().fit(worst[:, self._columns(_ALL)], wrong)) for name, made in BENT.items()
        }
        chosen = chosen_in(work)
        assert chosen is not None
        self._layer = fitted.bundle.heads[RESIDUAL].layer
        table = np.load(work.path(file_of((Site.RESIDUAL, Part.SPAN))), mmap_mode="r")
        self._states = table[[one.question for one in chosen]][:, self._layer].reshape(len(chosen), -1)
        taught = np.stack([self._doubtful(fitted.signals[i]) for i in train])
        self._scales = (
            StandardScaler().fit(self._states[train]),
            StandardScaler().fit(taught[:, self._columns(_SERVED)]),
        )
        gate = LogisticRegression(C=_STRENGTH, max_iter=1000)
        self._gate = gate.fit(self._products(taught, self._states[train]), fitted.wrong(train))

    def of(self, rows: Sequence[int], fitted: Fitted) -> dict[str, Doubles]:
        """Of a fit's own answers."""
        return self.scores([fitted.signals[i] for i in rows], self._states[list(rows)])

    def of_readings(self, signals: Sequence[TokenSignals], readings: Sequence[Reading]) -> dict[str, Doubles]:
        """Of answers that transformers gave."""
        states = np.stack([one.states[RESIDUAL].mean(0).reshape(-1) for one in readings])
        return self.scores(signals, states)

    def scores(self, signals: Sequence[TokenSignals], states: NDArray[np.float32]) -> dict[str, Doubles]:
        """Each stack's, float64 [answers]; GATED's; each signal's alone; and the length."""
        every = [windows(one, self._window)[0] for one in signals]
        found = {
            name: np.array([model.decision_function(features[:, columns]).max() for features in every])
            for name, (columns, model) in self._models.items()
        }
        doubtful = np.stack([self._doubtful(one) for one in signals])
        found[GATED] = self._gate.decision_function(self._products(doubtful, states))
        found |= {
            signal.name: np.array([alone(one, signal) for one in signals], float)
            for signal in SIGNALS
            if signal.name in _ALL
        }
        return {**found, "length": np.array([len(one) for one in signals], float)}

    def _doubtful(self, signals: TokenSignals) -> NDArray[np.float32]:
        """Features of the window that a served stack learns from: that of the highest entropy."""
        features, _, _ = windows(signals, self._window)
        found: NDArray[np.float32] = features[np.argmax(features[:, COLUMN[ENTROPY]])]
        return found

    def _products(self, features: NDArray[np.float32], states: NDArray[np.float32]) -> Doubles:
        of_states, of_features = self._scales
        x, z = of_states.transform(states), of_features.transform(features[:, self._columns(_SERVED)])
        return np.concatenate([x, z, x * z[:, [_SERVED.index(ENTROPY)]]], 1)

    @staticmethod
    def _columns(names: Sequence[str]) -> list[int]:
        return [COLUMN[name] for name in names]


def measure(model: Path, ledger: dict[str, Any], folder: Path) -> dict[str, Any]:
    """By set, of held-out answers and of what no probe was fit on: AUROC of everything, in the order of ``scores``."""
    fitted = Fitted.load(model, folder, from_ledger(ledger, FIT_SEED), FIT_SEED)
    stacked = Stacked(fitted, StageStore.of(folder))
    test = fitted.data.parts["test"]
    wrong, scores = fitted.wrong(test), stacked.of(test, fitted)
    questions = [fitted.data.question(i) for i in test]
    found = {}
    for name in GROUPS:
        member = np.array([name == "all" or name in question.groups for question in questions])
        found[name] = _aurocs(wrong, scores, member, [question.entity for question in questions])
    reader = trials.reader_of(model)
    asked = [Trial("held out", (question.text,), question) for question in held_out(ledger, SEED)]
    asked += trials.pressure_sets(ledger, MANY, SEED)
    prompts, answers, verdicts = judged(reader, asked)
    kept = [i for i, verdict in enumerate(verdicts) if verdict is not None and answers[i]]
    bundle = fitted.bundle
    chosen = bundle.layer, bundle.neuron
    readings = list(
        reader.read([prompts[i] for i in kept], [answers[i] for i in kept], chosen, heads=bundle.tapped_heads)
    )
    signals = [signals_of(one, bundle.coefficient, bundle.tapped_heads, bundle.measured) for one in readings]
    scores, wrong = stacked.of_readings(signals, readings), np.array([not verdicts[i] for i in kept])
    for name in sorted({trial.label for trial in asked}):
        member = np.array([asked[i].label == name for i in kept])
        found[name] = _aurocs(wrong, scores, member, [asked[i].question.entity for i in kept])
    return {name: one for name, one in found.items() if one is not None}


def _aurocs(
    wrong: NDArray[np.bool_], scores: Mapping[str, Doubles], member: NDArray[np.bool_], entities: Sequence[str]
) -> dict[str, Any] | None:
    own = wrong[member]
    if min(own.sum(), (~own).sum()) < _LEAST:
        return None
    about = [entity for entity, is_in in zip(entities, member, strict=True) if is_in]
    auroc = {name: metrics.auroc(own, one[member], about, SEED, _DRAWS).model_dump() for name, one in scores.items()}
    return {"n": int(member.sum()), "wrong": int(own.sum()), "auroc": auroc}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where the fits with all signals left their stages")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    ledger = load_ledger(options.model)
    file = options.out / "atlas-report.json"
    figures = json.loads(file.read_text(encoding="utf-8"))
    figures["signals"] = {
        name: measure(model, ledger, options.work / name)
        for name, model in (("chat", options.model), ("base", options.base))
    }
    write_json(file, figures)
    (options.out / "atlas-report.md").write_text(prose.render(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
