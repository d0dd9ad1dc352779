"""What each signal of one forward pass brings: alone, beside the neurons, and all of them together.

``python -m models.smollm2.recipe.signals --work FOLDER`` reads what ``hguard fit --keep residual,attention,question``
left there, and leaves ``signals.json`` in the folder, which the report reads. Every probe on states is L2 on their mean
over a part of the sequence, the strength chosen by folds of entities among the answers that teach.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from guard.evaluation.baselines import INNER, folds
from guard.harness.features import Features
from guard.harness.store import write_json
from guard.ipc.collecting import Part, Site
from guard.probe.cett import norms_of
from models.smollm2.checkpoint import checkpoint
from models.smollm2.recipe import detection, intervals
from models.smollm2.recipe.answered import GENERAL, PLACES, SIGNALS, Answered, Floats, Index, load
from models.smollm2.recipe.fits import SCREENED, Fits, ridge, screen

FILE = "signals.json"
EVERY = 4  # layers from one that is tried to the next
TOGETHER = 3  # layers, the best ones, that are read together
_TRIED = 0.01  # strength at which layers are compared
_SHARES = {"train": 0.7, "calibration": 0.15, "thresholds": 0.15}  # of the sets that a shifted fit learns from

AFTER = ("neurons", "neurons L2", "residual", "attention")  # of the answer
BEFORE = ("neurons before", "residual before", "neurons question", "residual question")
FREE = tuple(SIGNALS)
STACKS: Mapping[str, tuple[str, ...]] = {
    "stack": ("neurons", "entropy", "logprob"),  # what is served
    "L2, entropy, logprob": ("neurons L2", "entropy", "logprob"),
    "residual, entropy, logprob": ("residual", "entropy", "logprob"),
    "neurons, residual": ("neurons", "residual"),
    "neurons, attention": ("neurons", "attention"),
    "stack, residual": ("neurons", "entropy", "logprob", "residual"),
    "stack, attention": ("neurons", "entropy", "logprob", "attention"),
    "stack, before": ("neurons", "entropy", "logprob", "neurons before", "residual before"),
    "all of the answer": (*AFTER, *FREE),
    "all": (*AFTER, *FREE, *BEFORE),
    "all before": BEFORE,
}

Say = Callable[[str], None]


def states(answered: Answered, site: Site, part: Part, layers: Sequence[int]) -> Floats:
    """Means of these layers side by side, float32 [answers, layers * width]."""
    found = answered.table(site, part)
    return np.concatenate([found[answered.rows, layer] for layer in layers], 1)


class Probes:
    """Scores of every answer, float64 [answers] by signal, by probes that the answers ``learn`` teach."""

    def __init__(self, answered: Answered, fits: Fits, learn: Index, say: Say) -> None:
        self._answered, self._fits, self._learn, self._say = answered, fits, learn, say
        self._wrong, self._entities = answered.wrong[learn], [answered.entities[i] for i in learn]
        self._folds = folds(self._wrong, self._entities, INNER)
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
            found[site] = self._states(site, Part.SPAN, self._best(site))
        best = self.chosen[Site.RESIDUAL]
        found["residual before"] = self._states(Site.RESIDUAL, Part.LAST_PROMPT, best)
        found["residual question"] = self._states(Site.RESIDUAL, Part.QUESTION, best)
        found["neurons question"] = self._question()
        return {**found, **self._answered.signals}

    def _best(self, site: Site) -> list[int]:
        """The layers whose mean states over the answer tell most, alone, by folds."""
        tried = list(range(EVERY // 2, len(self._answered.norms), EVERY))

        def of(layer: int) -> float:
            known, score = states(self._answered, site, Part.SPAN, [layer])[self._learn], np.zeros(len(self._learn))
            for fit, check in self._folds:
                model = ridge(known[fit], self._wrong[fit], [], _TRIED)
                score[check] = model.decision_function(known[check])
            self._say(f"{site} of layer {layer}")
            return float(roc_auc_score(self._wrong, score))

        self.layers[site] = [of(layer) for layer in tried]
        order = np.argsort(-np.array(self.layers[site]), kind="stable")[:TOGETHER]
        self.chosen[site] = sorted(tried[i] for i in order)
        return self.chosen[site]

    def _states(self, site: Site, part: Part, layers: Sequence[int]) -> Floats:
        return self._fits.linear(
            f"{site}-{part}", self._learn, lambda: states(self._answered, site, part, layers), layers
        )

    def _question(self) -> Floats:
        """The neurons over the question's tokens, those that go most with being wrong."""
        table, own = self._answered.table(Site.NEURONS, Part.QUESTION), self._answered

        def features() -> Floats:
            of = Features(table, own.norms, own.rows[self._learn])
            return Features(table, own.norms, own.rows).take(screen(of, self._wrong, SCREENED))

        return self._fits.linear("neurons-question", self._learn, features)


def stacked(answered: Answered, scores: Mapping[str, Floats], use: Index) -> dict[str, Floats]:
    """The scores, and each of STACKS: a logistic regression on standardised scores of the answers ``use``."""
    found = dict(scores)
    for name, parts in STACKS.items():
        features = np.stack([scores[part] for part in parts], 1)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(features[use], answered.wrong[use])
        found[name] = np.asarray(model.decision_function(features), np.float64)
    return found


def measure(answered: Answered, fits: Fits, say: Say, draws: int = intervals.DRAWS) -> dict[str, Any]:
    """On the test part, by fits on the training part; and on general questions, by fits on places alone."""
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

    means = {name: mean(name) for name in (*STACKS, *FREE)}
    best = max(FREE, key=lambda name: float(means[name][0]))
    return {
        "best free": best,
        **{
            name: {
                "served": intervals.interval(means[name] - means["stack"]),
                "free": intervals.interval(means[name] - means[best]),
            }
            for name in STACKS
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="answers and activations of a fit")
    parser.add_argument("--questions", type=Path, help="where they are not in the same folder")
    parser.add_argument("--model", type=Path, help="the checkpoint, where it is not the pinned one")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    with threadpool_limits(limits=given.threads):
        norms = norms_of(given.model or checkpoint(say), 30, 1536)
        answered = load(given.work, norms, questions=given.questions)
        write_json(given.work / FILE, measure(answered, Fits(answered, given.work / "report", say), say))


if __name__ == "__main__":
    main()
