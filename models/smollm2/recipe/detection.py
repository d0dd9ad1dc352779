"""How well each detector tells wrong answers from right ones: by set, on the mean of sets, among the same text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from guard.errors import RequestError
from guard.evaluation import metrics
from guard.probe import conformal, drift
from models.smollm2.recipe import intervals
from models.smollm2.recipe.answered import Answered, Bools, Floats, Index
from models.smollm2.recipe.fits import Chosen, Fits, Stacked, rotation

FREE = ("entropy", "logprob", "length")  # what the stack has to beat
LEAST = 10  # right answers, and wrong ones, of a set that has figures
LEAST_PAIRS = 10  # of a wrong and a right answer of the same text
TARGETS = (0.001, 0.005, 0.01, 0.05, 0.1)
LENGTHS = ((1, 8), (9, 16), (17, 32), (33, 64), (65, 256))

Scores = Mapping[str, Floats]


def held_out(answered: Answered, fits: Fits) -> tuple[dict[str, Floats], Chosen]:
    """Every detector's scores, fit on the split's training part, the stack on its calibration part."""
    parts = answered.parts()
    chosen = fits.chosen(parts["train"])
    stacked = Stacked.fit(answered, chosen.scores, parts["calibration"])
    scores = {
        "stack": stacked.risk(answered, chosen.scores),
        "neurons": chosen.scores,
        "linear": fits.screened(parts["train"]),
        "last prompt token": fits.chosen(parts["train"], leads=True).scores,
        **answered.signals,
        "words": fits.words(parts["train"]),
    }
    return scores, chosen


def crossed(answered: Answered, fits: Fits, C: float, C_leads: float) -> dict[str, Floats]:
    """The same of every answer, by fits that have not seen its entity."""
    neurons, leads = fits.crossed(C), fits.crossed(C_leads, leads=True)
    names = ("stack", "neurons", "linear", "last prompt token", "words")
    scores = {name: np.zeros(len(answered)) for name in names} | answered.signals
    for number, (learn, use, test) in enumerate(rotation(answered)):
        scores["stack"][test] = Stacked.fit(answered, neurons[number], use).risk(answered, neurons[number])[test]
        scores["neurons"][test] = neurons[number][test]
        scores["last prompt token"][test] = leads[number][test]
        scores["linear"][test] = fits.screened(learn)[test]
        scores["words"][test] = fits.words(learn)[test]
    return scores


def sets_of(answered: Answered, index: Index, least: int = LEAST) -> list[str]:
    """The sets that have enough right and wrong answers among ``index``."""
    found = []
    for name in np.unique(answered.sets[index]).tolist():
        wrong = answered.wrong[index][answered.sets[index] == name]
        if min(wrong.sum(), (~wrong).sum()) >= least:
            found.append(name)
    return found


def by_set(answered: Answered, scores: Scores, index: Index, draws: int = intervals.DRAWS) -> dict[str, Any]:
    """Figures on the answers ``index``: ``sets``, their ``mean``, and how far the stack is ``ahead``."""
    weights = intervals.draws([answered.entities[i] for i in index], count=draws)
    names = sets_of(answered, index)
    aurocs: dict[str, dict[str, intervals.Doubles]] = {name: {} for name in scores}
    within: dict[str, dict[str, intervals.Doubles]] = {name: {} for name in scores}
    sets: dict[str, Any] = {}
    for label in names:
        member = np.flatnonzero(answered.sets[index] == label)
        rows, own = index[member], weights[:, member]
        wrong, texts = answered.wrong[rows], answered.bare[rows]
        for name, score in scores.items():
            aurocs[name][label] = intervals.auroc(wrong, score[rows], own)
        pairs = intervals.pairs(wrong, texts)
        if pairs >= LEAST_PAIRS:
            for name, score in scores.items():
                within[name][label] = intervals.same_text(wrong, score[rows], texts, own)
        sets[label] = {
            "n": len(rows),
            "wrong": int(wrong.sum()),
            "auroc": {name: intervals.interval(aurocs[name][label]) for name in scores},
            "pairs": pairs,
            "same_text": {name: intervals.interval(one[label]) for name, one in within.items() if label in one},
        }
    whole = answered.wrong[index]
    means = {name: intervals.mean(one.values()) for name, one in aurocs.items() if one}
    same = {name: intervals.mean(one.values()) for name, one in within.items() if one}
    return {
        "n": len(index),
        "wrong": int(whole.sum()),
        "sets": sets,
        "mean": {name: intervals.interval(one) for name, one in means.items()},
        "mean_same_text": {name: intervals.interval(one) for name, one in same.items()},
        "pooled": {name: intervals.interval(intervals.auroc(whole, s[index], weights)) for name, s in scores.items()},
        "ahead": ahead(means),
        "ahead_by_set": {label: ahead({name: one[label] for name, one in aurocs.items()}) for label in names},
    }


def psi(home: Floats, away: Floats) -> float | None:
    """Population stability index of the risks ``away`` against those at ``home``, in bands as a server watches them."""
    bands = drift.bands(home.astype(np.float32))
    if bands is None:
        return None
    counts = np.bincount([bands.of(risk) for risk in away.tolist()], minlength=len(bands.shares))
    return drift.psi(tuple(counts / len(away)), bands.shares)


def ahead(figures: Mapping[str, intervals.Doubles]) -> dict[str, Any]:
    """The stack less the best of what is free, and others, in pairs of draws. ``best``: the free one."""
    if "stack" not in figures:
        return {}
    best = max(FREE, key=lambda name: float(figures[name][0]))
    found: dict[str, Any] = {"best": best, "stack - best": intervals.interval(figures["stack"] - figures[best])}
    for other in ("entropy", "words"):
        if other in figures:
            found[f"stack - {other}"] = intervals.interval(figures["stack"] - figures[other])
    return found


def alarms(answered: Answered, risk: Floats, right: Index, test: Index, draws: int = intervals.DRAWS) -> dict[str, Any]:
    """What thresholds for each of TARGETS do on the answers ``test``: right ones among ``right`` set them.

    ECE, and false alarms and recall over all, by set and by length; what too few right answers cannot give is refused.
    """
    calm = np.sort(risk[right[~answered.wrong[right]]].astype(np.float32))
    wrong, own = answered.wrong[test], risk[test].astype(np.float32)
    weights = intervals.draws([answered.entities[i] for i in test], count=draws)
    length = answered.signals["length"][test]
    found: dict[str, Any] = {"right": len(calm), "ece": metrics.ece(wrong, risk[test]), "targets": {}}
    found["ece_by_set"] = {
        name: metrics.ece(wrong[member], risk[test][member])
        for name in sets_of(answered, test)
        if (member := answered.sets[test] == name) is not None
    }
    for target in TARGETS:
        key, needed = f"{target:g}", round(1 / target) - 1
        try:
            threshold = conformal.threshold(calm, target)
        except RequestError:
            found["targets"][key] = {"refused": f"{len(calm)} right answers, {needed} are needed"}
            continue
        flagged = own >= threshold
        found["targets"][key] = {
            "threshold": threshold,
            "needed": needed,
            **_at(flagged, wrong, np.ones(len(test), bool), weights),
            "sets": {
                name: _at(flagged, wrong, answered.sets[test] == name, weights) for name in sets_of(answered, test)
            },
            "lengths": {
                f"{low}-{high}": _at(flagged, wrong, (length >= low) & (length <= high), weights)
                for low, high in LENGTHS
            },
            "answered_by_set": _answered(flagged, answered.sets[test], wrong, weights),
        }
    return found


def _at(flagged: Bools, wrong: Bools, member: Bools, weights: intervals.Weights) -> dict[str, Any]:
    found: dict[str, Any] = {"right": int((member & ~wrong).sum()), "wrong": int((member & wrong).sum())}
    for name, among in (("false_alarms", member & ~wrong), ("recall", member & wrong)):
        if among.sum() >= LEAST:
            found[name] = intervals.interval(intervals.share(flagged, among, weights))
    return found


def _answered(flagged: Bools, sets: Any, wrong: Bools, weights: intervals.Weights) -> dict[str, Any]:
    """Of the wrong answers of sets that have no right one, the share that is not withheld."""
    found = {}
    for name in np.unique(sets).tolist():
        member = sets == name
        if member.sum() >= LEAST and wrong[member].all():
            found[name] = {"n": int(member.sum()), **intervals.interval(intervals.share(~flagged, member, weights))}
    return found


def curve(answered: Answered, fits: Fits, sizes: Iterable[int], draws: int = intervals.DRAWS) -> list[dict[str, Any]]:
    """Neurons and stack after so many training answers, each size within the next; the last one has them all."""
    parts = answered.parts()
    train, test = parts["train"], parts["test"]
    wanted = [size for size in sizes if size < len(train)] + [len(train)]
    found = []
    for size in wanted:
        chosen = fits.chosen(train[:size])
        stacked = Stacked.fit(answered, chosen.scores, parts["calibration"])
        scores = {"stack": stacked.risk(answered, chosen.scores), "neurons": chosen.scores}
        report = by_set(answered, {**scores, **{name: answered.signals[name] for name in FREE}}, test, draws)
        kept = {label: {name: one["auroc"][name] for name in scores} for label, one in report["sets"].items()}
        mean = {name: report["mean"][name] for name in scores if name in report["mean"]}
        found.append({"answers": size, "neurons": len(chosen.index), "C": chosen.C, "mean": mean, "sets": kept})
    return found


def shift(
    answered: Answered, fits: Fits, home: Sequence[str], away: Sequence[str], draws: int = intervals.DRAWS
) -> dict[str, Any]:
    """Fit and calibrated on the sets ``home`` alone, tested on all answers of the sets ``away``."""
    shares = {"train": 0.7, "calibration": 0.15, "thresholds": 0.15}
    at_home, test = answered.of(home), np.flatnonzero(answered.of(away))
    parts = {name: part[at_home[part]] for name, part in answered.parts(shares).items()}
    facts: dict[str, Any] = {"home": list(home), "away": list(away)}
    for name, part in (*parts.items(), ("test", test)):
        facts[name] = {"n": len(part), "right": int((~answered.wrong[part]).sum())}
    if any(min(one["right"], one["n"] - one["right"]) < LEAST for one in facts.values() if isinstance(one, dict)):
        return {**facts, "too_few": f"fewer than {LEAST} right or wrong answers in a part"}
    chosen = fits.chosen(parts["train"])
    risk = Stacked.fit(answered, chosen.scores, parts["calibration"]).risk(answered, chosen.scores)
    scores = {"stack": risk, "neurons": chosen.scores, **answered.signals}
    report = by_set(answered, scores, test, draws)
    alarm = alarms(answered, risk, parts["thresholds"], test, draws)
    return {
        **facts,
        "neurons": len(chosen.index),
        "psi": psi(risk[parts["thresholds"]], risk[test]),
        "report": report,
        "stack - entropy": report["ahead"].get("stack - entropy"),
        "alarms": alarm,
    }
