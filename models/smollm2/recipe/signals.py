"""What each signal of one forward pass brings: alone, beside the neurons, and all of them together.

``python -m models.smollm2.recipe.signals --work FOLDER`` reads what ``hguard fit --keep residual,attention,question
--signals margin,top_mass`` left there, and leaves ``signals.json`` in the folder, which the report reads. Every probe
on states is L2 on their mean over a part of the sequence, the strength chosen by folds of entities among the answers
that teach. A stack is a logistic regression on standardised scores; BENT are others on the same: with the products of
each two, and gradient boosting of trees with two splits on top of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from guard.errors import FitError
from guard.harness.features import Features
from guard.ipc.collecting import Part, Site
from guard.training.heads import TOGETHER, find_head
from models.smollm2.recipe import detection, intervals
from models.smollm2.recipe.answered import FURTHER, GENERAL, PLACES, SIGNALS, Answered, Floats, Index
from models.smollm2.recipe.apart import Say, run
from models.smollm2.recipe.fits import SCREENED, Fits, screen

FILE = "signals.json"
_SHARES = {"train": 0.7, "calibration": 0.15, "thresholds": 0.15}  # of the sets that a shifted fit learns from

AFTER = ("neurons", "neurons L2", "residual", "attention")  # of the answer
BEFORE = ("neurons before", "residual before", "neurons question", "residual question")
FREE = (*SIGNALS, *FURTHER)
STACKS: Mapping[str, tuple[str, ...]] = {
    "stack": ("neurons", "entropy", "logprob"),  # what is served
    "L2, entropy, logprob": ("neurons L2", "entropy", "logprob"),
    "residual, entropy, logprob": ("residual", "entropy", "logprob"),
    "neurons, residual": ("neurons", "residual"),
    "neurons, attention": ("neurons", "attention"),
    "stack, residual": ("neurons", "entropy", "logprob", "residual"),
    "stack, attention": ("neurons", "entropy", "logprob", "attention"),
    "stack, margin, top mass": ("neurons", "entropy", "logprob", "margin", "top mass"),
    "stack, before": ("neurons", "entropy", "logprob", "neurons before", "residual before"),
    "all of the answer": (*AFTER, *FREE),
    "all": (*AFTER, *FREE, *BEFORE),
    "all before": BEFORE,
}
BENT: Mapping[str, tuple[str, Callable[[], Any]]] = {
    "stack, products": ("stack", lambda: _logistic(PolynomialFeatures(2, include_bias=False))),
    "stack, trees": ("stack", lambda: _trees()),
    "all of the answer, products": ("all of the answer", lambda: _logistic(PolynomialFeatures(2, include_bias=False))),
    "all of the answer, trees": ("all of the answer", lambda: _trees()),
}


def states(answered: Answered, site: Site, part: Part, layers: Sequence[int]) -> Floats:
    """Means of these layers, float32 [answers, layers, width]."""
    found = answered.table(site, part)
    return np.stack([found[answered.rows, layer] for layer in layers], 1)


class Probes:
    """Scores of every answer, float64 [answers] by signal, by probes that the answers ``learn`` teach."""

    def __init__(self, answered: Answered, fits: Fits, learn: Index, say: Say) -> None:
        self._answered, self._fits, self._learn, self._say = answered, fits, learn, say
        self._wrong, self._entities = answered.wrong[learn], [answered.entities[i] for i in learn]
        self.layers: dict[str, list[float]] = {}  # by site: AUROC of each layer that was tried, by folds
        self.chosen: dict[str, list[int]] = {}

    def scores(self) -> dict[str, Floats]:
        """Of all of AFTER, BEFORE and FREE."""
        fits, learn = self._fits, self._learn
        found: dict[str, Floats] = {
            "neurons": fits.chosen(learn).scores,
            "neurons L2": fits.screened(learn),
            "neurons before": fits.chosen(learn, leads=True).scores,
        }
        for site in (Site.RESIDUAL, Site.ATTENTION):
            found[site] = self._head(site)
        best = self.chosen[Site.RESIDUAL]
        found["residual before"] = self._states(Site.RESIDUAL, Part.LAST_PROMPT, best)
        found["residual question"] = self._states(Site.RESIDUAL, Part.QUESTION, best)
        found["neurons question"] = self._question()
        return {**found, **self._answered.signals}

    def _head(self, site: Site) -> Floats:
        """As a fit would have it, on means over the answer."""
        found = find_head(
            lambda layers: states(self._answered, site, Part.SPAN, layers)[self._learn],
            len(self._answered.norms),
            self._wrong,
            self._entities,
            lambda text: self._say(f"{site} of {text}"),
        )
        self.layers[site] = list(found.alone.values())
        self.chosen[site] = found.head.layer.tolist()
        return found.head.score(states(self._answered, site, Part.SPAN, self.chosen[site]))

    def _states(self, site: Site, part: Part, layers: Sequence[int]) -> Floats:
        return self._fits.linear(
            f"{site}-{part}",
            self._learn,
            lambda: states(self._answered, site, part, layers).reshape(len(self._answered), -1),
            layers,
        )

    def _question(self) -> Floats:
        """The neurons over the question's tokens, those that go most with being wrong."""
        table, own = self._answered.table(Site.NEURONS, Part.QUESTION), self._answered

        def features() -> Floats:
            of = Features(table, own.norms, own.rows[self._learn])
            return Features(table, own.norms, own.rows).take(screen(of, self._wrong, SCREENED))

        return self._fits.linear("neurons-question", self._learn, features)


def stacked(answered: Answered, scores: Mapping[str, Floats], use: Index) -> dict[str, Floats]:
    """The scores, and each of STACKS and of BENT, learnt from the answers ``use``."""
    found = dict(scores)
    models = {name: (name, _logistic) for name in STACKS} | dict(BENT)
    for name, (stack, made) in models.items():
        features = np.stack([scores[part] for part in STACKS[stack]], 1)
        model = made().fit(features[use], answered.wrong[use])
        found[name] = np.asarray(model.decision_function(features), np.float64)
    return found


def _logistic(*before: Any) -> Any:
    return make_pipeline(StandardScaler(), *before, LogisticRegression(max_iter=1000))


def _trees() -> Any:
    """Few and flat, so that a few thousand answers do not teach it their noise."""
    return HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=100, max_depth=2, l2_regularization=10, min_samples_leaf=50, random_state=0
    )


def measure(answered: Answered, fits: Fits, say: Say, draws: int = intervals.DRAWS) -> dict[str, Any]:
    """On the test part, by fits on the training part; and on general questions, by fits on places alone."""
    if missing := [name for name in FURTHER if name not in answered.signals]:
        raise FitError(
            f"{answered.folder} has no {' and no '.join(missing)}: make the fit with --signals margin,top_mass"
        )
    parts = answered.parts()
    at_home = answered.of(PLACES)
    home = {name: part[at_home[part]] for name, part in answered.parts(_SHARES).items()}
    tried = {
        "held_out": (parts["train"], parts["calibration"], parts["test"]),
        "from places": (home["train"], home["calibration"], np.flatnonzero(answered.of(GENERAL))),
    }
    found: dict[str, Any] = {"answers": len(answered), "together": TOGETHER}
    for name, (learn, use, test) in tried.items():
        probes = Probes(answered, fits, learn, say)
        scores = stacked(answered, probes.scores(), use)
        say(f"measuring {name}")
        report = detection.by_set(answered, scores, test, draws)
        found[name] = {
            "learn": len(learn),
            "test": len(test),
            "layers": probes.chosen,
            "auroc_of_layers": probes.layers,
            "mean": report["mean"],
            "sets": {label: {k: one["auroc"][k] for k in scores} for label, one in report["sets"].items()},
            "same_text": {label: one["same_text"] for label, one in report["sets"].items() if one["same_text"]},
            "above": _above(answered, scores, test, draws),
        }
    return found


def _above(answered: Answered, scores: Mapping[str, Floats], test: Index, draws: int) -> dict[str, Any]:
    """Each stack less what is served, and less the best free signal, on the mean of sets, in pairs of draws."""
    weights = intervals.draws([answered.entities[i] for i in test], count=draws)
    members = [np.flatnonzero(answered.sets[test] == name) for name in detection.sets_of(answered, test)]

    def mean(name: str) -> intervals.Doubles:
        return intervals.mean(
            intervals.auroc(answered.wrong[test[one]], scores[name][test[one]], weights[:, one]) for one in members
        )

    means = {name: mean(name) for name in (*STACKS, *BENT, *FREE)}
    best = max(FREE, key=lambda name: float(means[name][0]))
    return {
        "best free": best,
        **{
            name: {
                "served": intervals.interval(means[name] - means["stack"]),
                "free": intervals.interval(means[name] - means[best]),
            }
            for name in (*STACKS, *BENT)
        },
    }


if __name__ == "__main__":
    run(__doc__, FILE, measure)
