"""What the probe of a checkpoint is worth: from the stages that its fit left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from guard.errors import FitError
from guard.evaluation import detectors, metrics
from guard.evaluation.random_baseline import flat
from guard.harness.activations import MEANS
from guard.harness.features import Features
from guard.harness.questions import split
from guard.harness.store import StageStore
from guard.judge.question import Question
from guard.judge.rules import judge
from guard.probe import conformal
from guard.probe.bundle import Bundle, load_bundle
from guard.probe.cett import norms_of
from guard.probe.signals import TokenSignals
from guard.training import calibration
from guard.training.config import Method
from guard.training.examples import DataSplit, chosen_in
from guard.training.pipeline import SHARES
from guard.training.selection import MEASURED
from models.atlas.recipe.reference import Reader, signals_of
from models.atlas.recipe.trials import Trial, prompts_of
from models.kept import signals_of as signals_kept

SPLITS = 10
TARGET = 0.05
_DRAWS = 1000
_PAIRED = 300
_LEAST = 8
_RESPLIT = {"calibration": 0.3, "thresholds": 0.35, "test": 0.35}


@dataclass(frozen=True, slots=True)
class Fitted:
    """A finished fit: bundle, answers, what was measured or collected of each, mean CETT [answers, all neurons]."""

    bundle: Bundle
    data: DataSplit
    signals: dict[int, TokenSignals]
    features: NDArray[np.float32]

    @classmethod
    def load(cls, model: Path, folder: Path, questions: list[Question], seed: int) -> Fitted:
        """From the workspace of a fit of these questions, with the bundle that came out."""
        bundle = load_bundle(folder / "probe")
        work = StageStore.of(folder)
        chosen = chosen_in(work)
        if chosen is None:
            raise FitError(f"{folder} does not hold a finished fit; run `make atlas-report` again")
        identity = bundle.card.model
        norms = norms_of(model, identity.layers, identity.neurons_per_layer)
        features = (np.load(work.path(MEANS))[[one.question for one in chosen]] * norms).reshape(len(chosen), -1)
        signals = dict(enumerate(signals_kept(work, chosen, bundle, norms)))
        measured = work.rows(MEASURED.format(C=bundle.card.training.C))
        signals |= {row["row"]: TokenSignals.from_dict(row) for row in measured}
        return cls(bundle, DataSplit.of(questions, chosen, SHARES, seed), signals, features)

    def wrong(self, rows: list[int]) -> NDArray[np.bool_]:
        return np.array([self.data.examples[row].wrong for row in rows], bool)

    @property
    def h_neurons(self) -> NDArray[np.int64]:
        """Flat indices of the neurons with positive weight."""
        return flat(self.bundle)[self.bundle.coefficient > 0]


def sets(fitted: Fitted, seed: int) -> dict[str, dict[str, Any]]:
    """Every set's report on held-out answers; how far the stack is ahead of entropy, and neurons of random ones."""
    test, train = fitted.data.parts["test"], fitted.data.parts["train"]
    bundle = fitted.bundle
    baseline = detectors.Baseline(
        Features(fitted.features, rows=test),
        Features(fitted.features, rows=train),
        fitted.wrong(train),
        flat(bundle),
        bundle.card.model.neurons_per_layer,
    )
    questions = [_with_luck(fitted.data.question(i), fitted.data.examples[i].wrong) for i in test]
    signals = [fitted.signals[i] for i in test]
    reports = detectors.reports(questions, fitted.wrong(test), signals, bundle.readout, baseline, seed)
    parts = detectors.parts_of(signals, bundle.readout)
    random = np.stack(baseline.scores(range(seed, seed + 5)))
    wrong = fitted.wrong(test)
    found = {}
    for name, report in reports.items():
        member = np.array([name == "all" or name in question.groups for question in questions])
        own = {part: score[member] for part, score in parts.items()}
        entities = [question.entity for question, is_in in zip(questions, member, strict=True) if is_in]
        found[name] = {
            **report.model_dump(mode="json"),
            "stack_minus_entropy": _difference(wrong[member], own["stack"], own["entropy"][None], entities, seed),
            "neurons_minus_random": _difference(wrong[member], own["neurons"], random[:, member], entities, seed),
        }
    return found


def _with_luck(question: Question, wrong: bool) -> Question:
    """In a further set, what is right about a never-seen fact is left out: a guess that hits knows no more."""
    if "unfamiliar" not in question.groups or ("never" in question.groups and not wrong):
        return question
    return replace(question, groups=(*question.groups, "unfamiliar, no luck"))


def _difference(
    wrong: NDArray[np.bool_],
    one: NDArray[np.floating],
    others: NDArray[np.floating],
    entities: Sequence[str],
    seed: int,
) -> dict[str, float]:
    """AUROC of ``one`` less the mean of ``others`` [draws, answers], with a paired bootstrap 95 % interval over
    entities."""
    both = np.concatenate([one[None], others])

    def ahead(rows: NDArray[np.int64]) -> float:
        first, *rest = (float(roc_auc_score(wrong[rows], score[rows])) for score in both)
        return first - sum(rest) / len(rest)

    values: list[float] = []
    for drawn in metrics.resamples(entities, seed):
        rows = np.arange(len(wrong)).repeat(drawn)
        if wrong[rows].any() and not wrong[rows].all():
            values.append(ahead(rows))
        if len(values) == _PAIRED:
            break
    low, high = np.percentile(values, [2.5, 97.5])
    return {"value": ahead(np.arange(len(wrong))), "low": float(low), "high": float(high)}


def reseeded(fitted: Fitted) -> list[dict[str, float]]:
    """False alarms of the 5 % threshold on fresh entities, for ten ways to deal the answers that found no neuron."""
    rows = [i for name in ("calibration", "thresholds", "test") for i in fitted.data.parts[name]]
    found = []
    for seed in range(SPLITS):
        data = split([fitted.data.question(i) for i in rows], _RESPLIT, 1000 + seed)
        use, held, test = ([rows[i] for i in data[name]] for name in _RESPLIT)
        spans = [(fitted.data.examples[i].start, fitted.data.examples[i].end) for i in use]
        served = fitted.bundle.readout
        method: Method = "platt" if served.isotonic is None else "isotonic"
        signals = [fitted.signals[i] for i in use]
        readout = calibration.fit_readout(signals, fitted.wrong(use), spans, served.window, method)
        risk = {i: readout.risk(fitted.signals[i])[0] for i in [*held, *test]}
        right = np.sort(np.array([risk[i] for i in held if not fitted.data.examples[i].wrong], np.float32))
        threshold = conformal.threshold(right, TARGET)
        at = calibration.at_thresholds({"0.05": threshold}, np.array([risk[i] for i in test]), fitted.wrong(test))[
            "0.05"
        ]
        ece = metrics.ece(fitted.wrong(test), np.array([risk[i] for i in test]))
        found.append({"right": len(right), "threshold": threshold, **at.model_dump(), "ece": ece})
    return found


def transfer(base: Fitted, chat: Fitted, seed: int) -> dict[str, Any]:
    """What the neurons found on the base checkpoint, with their weights, say of the chat checkpoint's answers."""
    test = chat.data.parts["test"]
    wrong = chat.wrong(test)
    scores = {
        name: chat.features[test][:, flat(one.bundle)] @ one.bundle.coefficient
        for name, one in (("chat's own neurons", chat), ("base's neurons", base))
    }
    shared = np.intersect1d(base.h_neurons, chat.h_neurons)
    groups = ("all", "unfamiliar", "hard")
    members = {
        group: np.array([group == "all" or group in chat.data.question(i).groups for i in test]) for group in groups
    }
    entities = {
        group: [chat.data.question(i).entity for i, is_in in zip(test, member, strict=True) if is_in]
        for group, member in members.items()
    }
    return {
        "auroc": {
            name: {
                group: metrics.auroc(wrong[member], score[member], entities[group], seed, _DRAWS).model_dump()
                for group, member in members.items()
            }
            for name, score in scores.items()
        },
        "h_neurons": {"base": len(base.h_neurons), "chat": len(chat.h_neurons), "shared": len(shared)},
        "shared_by_chance": len(base.h_neurons) * len(chat.h_neurons) / chat.features.shape[1],
    }


def judged(reader: Reader, asked: Sequence[Trial]) -> tuple[list[list[int]], list[list[int]], list[bool | None]]:
    """(prompts, greedy answers through transformers, what the judge says of each)."""
    prompts = prompts_of(reader, asked)
    answers = reader.answer(prompts)
    verdicts = [judge(t.question, reader.tokenizer.decode(a)) for t, a in zip(asked, answers, strict=True)]
    return prompts, answers, verdicts


def elsewhere(fitted: Fitted, reader: Reader, asked: Sequence[Trial], seed: int) -> dict[str, dict[str, Any]]:
    """The probe on what it was not fit on, by set: as it is, and with all behind its neurons calibrated anew.

    Greedy answers through transformers, half of the entities for calibration. Declined answers are left out.
    """
    prompts, answers, verdicts = judged(reader, asked)
    kept = [i for i, verdict in enumerate(verdicts) if verdict is not None and answers[i]]
    bundle = fitted.bundle
    chosen, heads = (bundle.layer, bundle.neuron), bundle.tapped_heads
    readings = reader.read([prompts[i] for i in kept], [answers[i] for i in kept], chosen, heads=heads)
    measured = (signals_of(reading, bundle.coefficient, heads, bundle.measured) for reading in readings)
    signals = dict(zip(kept, measured, strict=True))
    found = {}
    for label in sorted({trial.label for trial in asked}):
        rows = [i for i in kept if asked[i].label == label]
        data = split([asked[i].question for i in rows], {"calibration": 0.5, "test": 0.5}, seed)
        use, test = ([rows[i] for i in data[name]] for name in ("calibration", "test"))
        truth = {name: np.array([not verdicts[i] for i in part], bool) for name, part in (("use", use), ("test", test))}
        one: dict[str, Any] = {"n": len(test), "wrong": int(truth["test"].sum())}
        if any(min(wrong.sum(), (~wrong).sum()) < _LEAST for wrong in truth.values()):
            found[label] = {**one, "too_few": f"fewer than {_LEAST} right or wrong answers in a half"}
            continue
        spans = [(0, len(signals[i])) for i in use]
        anew = calibration.fit_readout([signals[i] for i in use], truth["use"], spans, bundle.card.readout.window)
        for name, readout in (("as it is", bundle.readout), ("calibrated anew", anew)):
            parts = detectors.parts_of([signals[i] for i in test], readout)
            entities = [asked[i].question.entity for i in test]
            one[name] = {
                "auroc": {
                    part: metrics.auroc(truth["test"], score, entities, seed, _DRAWS).model_dump()
                    for part, score in parts.items()
                },
                "ece": metrics.ece(truth["test"], parts["stack"]),
            }
        found[label] = one
    return found
