"""What a probe is held against on evaluated answers: its neurons refit, random ones, a linear probe, self-consistency.

The first three are fit on the evaluated answers themselves, by cross-validation over groups of questions about the same
entity, so they know the domain, which favours them; the guard's own parts were fit elsewhere. They are fit alike: a
logistic regression on standardised features, whose regularisation (and layer) is chosen inside each fold, on the part
that it is fit on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from guard.evaluation import random_baseline
from guard.evaluation.baseline_data import BaselineData
from guard.judge.rules import normalise

FOLDS, INNER = 5, 3
TRIED = 16  # layers of a deep model, spread evenly, that the linear probe may choose from
STRENGTHS = (0.001, 0.01, 0.1)  # inverse strengths of regularisation to choose from

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Scores = NDArray[np.float64]
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]  # the answers that are fit on, and those that are scored


@dataclass(frozen=True, slots=True)
class Baselines:
    """scores: by part, higher is riskier: float64 [answers], or [draws, answers]. left_out: why a part is not there.

    facts: what else a report says of them.
    """

    scores: dict[str, Scores]
    left_out: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def baselines(material: BaselineData, seed: int = 0) -> Baselines:
    """All of them, but those that too few answers leave out."""
    with threadpool_limits(limits=1):  # hundreds of small fits: threads would wait for each other longer than they work
        return _baselines(material, seed)


def _baselines(material: BaselineData, seed: int) -> Baselines:
    made = Baselines({"consistency": disagreement(material.said, material.samples)})
    try:
        parts = folds(material.wrong, material.entities, FOLDS)
        inner = [folds(material.wrong[fit], [material.entities[i] for i in fit], INNER) for fit, _ in parts]
    except ValueError as error:
        made.left_out.update(dict.fromkeys(("refit", "linear", "random"), str(error)))
        return made

    def nested(choices: Iterator[Floats]) -> tuple[Scores, list[int]]:
        return cross_validated(choices, material.wrong, parts, inner)

    # Without their columns' norms, as collected: standardising takes any factor out again.
    flat = material.means.reshape(len(material.wrong), -1)
    made.scores["refit"], _ = nested(iter([flat[:, material.index]]))
    tried = np.unique(np.linspace(0, material.outputs.shape[1] - 1, TRIED).round().astype(int)).tolist()
    made.scores["linear"], chosen = nested(np.ascontiguousarray(material.outputs[:, layer]) for layer in tried)
    drawn = (
        random_baseline.layer_matched(material.index, material.width, seed + draw)
        for draw in range(random_baseline.DRAWS)
    )
    made.scores["random"] = np.stack([nested(iter([flat[:, neurons]]))[0] for neurons in drawn])
    made.facts.update(folds=FOLDS, draws=random_baseline.DRAWS, layers=[tried[i] for i in chosen])
    return made


def folds(wrong: Bools, entities: Sequence[str], count: int) -> list[Fold]:
    """``count`` folds, none of which shares an entity with another, alike in their share of wrong answers.

    Raises ValueError when too few different entities have wrong answers, or right ones.
    """
    names = np.array([entity.casefold() for entity in entities])
    for kind, member in (("wrong", wrong), ("right", ~wrong)):
        if (have := len(np.unique(names[member]))) < count:
            raise ValueError(f"{kind} answers are about {have} different things; {count} folds need as many")
    split = list(StratifiedGroupKFold(count).split(names, wrong, names))
    if any(wrong[fit].all() or not wrong[fit].any() for fit, _ in split):
        raise ValueError(f"nearly all wrong or right answers are about one thing; {count} folds need more")
    return split


def cross_validated(
    choices: Iterator[Floats], wrong: Bools, parts: Sequence[Fold], inner: Sequence[Sequence[Fold]]
) -> tuple[Scores, list[int]]:
    """Decisions on every answer by models that did not see its entity, and which of ``choices`` each fold took.

    choices: features [answers, n] to choose from, read one after the other. inner: for each fold, the folds of what it
    is fit on, by which it chooses.
    """
    best, taken = [-np.inf] * len(parts), [0] * len(parts)
    scores = np.zeros(len(wrong))
    for number, features in enumerate(choices):
        for at, (fit, test) in enumerate(parts):
            known, truth = features[fit], wrong[fit]
            for strength in STRENGTHS:
                tried = np.zeros(len(fit))
                for learn, check in inner[at]:
                    tried[check] = _model(strength).fit(known[learn], truth[learn]).decision_function(known[check])
                if (auroc := roc_auc_score(truth, tried)) > best[at]:
                    best[at], taken[at] = auroc, number
                    scores[test] = _model(strength).fit(known, truth).decision_function(features[test])
    return scores, taken


def _model(strength: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def disagreement(said: Sequence[str], samples: Sequence[Sequence[str]]) -> Scores:
    """Of each answer, the share of samples that say something else; case, articles and punctuation do not count."""
    return np.array(
        [
            np.mean([normalise(sample) != normalise(text) for sample in several])
            for text, several in zip(said, samples, strict=True)
        ],
        np.float64,
    )


def cost(samples: Sequence[Sequence[int]], greedy: Sequence[int], temperature: float) -> dict[str, Any]:
    """What self-consistency costs, in tokens: ``samples`` by question and sample, ``greedy`` of the one answer."""
    sampled, one = float(np.mean([sum(lengths) for lengths in samples])), float(np.mean(greedy))
    return {
        "samples": len(samples[0]),
        "temperature": temperature,
        "tokens_per_question": sampled,
        "greedy_tokens_per_question": one,
        "ratio": sampled / max(one, 1e-9),
    }
