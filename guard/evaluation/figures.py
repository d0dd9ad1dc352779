"""``hguard eval``: what a guarded model is worth on questions whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.evaluation import metrics
from guard.evaluation.baselines import Baselines
from guard.evaluation.detectors import parts_of
from guard.harness.answers import judge_all
from guard.harness.engines import Engines
from guard.harness.generation import ANSWERED, answer_all
from guard.harness.store import StageStore
from guard.judge.question import Question
from guard.judge.rules import RemoteJudge
from guard.probe.bundle import Bundle
from guard.probe.conformal import TARGETS
from guard.probe.readout import Readout
from guard.probe.signals import TokenSignals

_POINTS = 101  # of the risk-coverage curve


@dataclass(frozen=True, slots=True)
class EvaluatedAnswer:
    """One greedy answer: its text, what was measured (None: not scored), the judge's word (None: declined); tokens."""

    text: str
    signals: TokenSignals | None
    right: bool | None
    tokens: tuple[int, ...] = ()


async def answered(
    engines: Engines,
    bundle: Bundle,
    questions: Sequence[Question],
    judge: RemoteJudge | None,
    works: Mapping[float, StageStore],
    max_tokens: int,
    say: Callable[[str], None],
) -> dict[float, list[EvaluatedAnswer]]:
    """Judged answers to all questions at each strength of scaling in ``works``, from one engine that serves ``bundle``.

    It is not started where every answer is there already.
    """
    open_ = [alpha for alpha, work in works.items() if len(work.rows(ANSWERED)) < len(questions)]
    if open_:
        async with engines.guarded(bundle) as engine:
            for alpha in open_:
                say(f"{bundle.card.id}: answering {len(questions)} questions, scale {alpha:g}")
                await answer_all(works[alpha], engine, questions, max_tokens, say, alpha)
    return {alpha: await _judged(work, questions, judge) for alpha, work in works.items()}


async def _judged(work: StageStore, questions: Sequence[Question], judge: RemoteJudge | None) -> list[EvaluatedAnswer]:
    rows = {row["question"]: row for row in work.rows(ANSWERED)}
    verdicts = await judge_all(work, questions, {i: [rows[i]["text"]] for i in range(len(questions))}, judge)
    return [
        EvaluatedAnswer(
            rows[i]["text"],
            None if rows[i]["signals"] is None else TokenSignals.from_dict(rows[i]["signals"]),
            verdicts[i][0],
            tuple(rows[i]["tokens"]),
        )
        for i in range(len(questions))
    ]


def scored(answers: Sequence[EvaluatedAnswer]) -> list[int]:
    """Which answers say how well a score tells right from wrong: those that are either, and were measured."""
    return [i for i, answer in enumerate(answers) if answer.right is not None and answer.signals is not None]


def counts(answers: Sequence[EvaluatedAnswer]) -> dict[str, Any]:
    """How many answers are right, wrong and declined, and their truthfulness."""
    right, wrong = (sum(answer.right is value for answer in answers) for value in (True, False))
    declined = len(answers) - right - wrong
    return {
        "right": right,
        "wrong": wrong,
        "declined": declined,
        "truthfulness": metrics.truthfulness(right, wrong, declined),
    }


def report(
    bundle: Bundle,
    readout: Readout,
    questions: Sequence[Question],
    answers: Sequence[EvaluatedAnswer],
    seed: int = 0,
    draws: int = 1000,
    baselines: Baselines | None = None,
) -> dict[str, Any]:
    """Everything that is measured on one set of answers, as JSON; intervals from ``draws`` bootstraps.

    ``baselines`` score the answers that ``scored`` names, in its order.
    """
    use = scored(answers)
    wrong = np.array([not answers[i].right for i in use], bool)
    parts = parts_of([signals for i in use if (signals := answers[i].signals) is not None], readout)
    risk = parts["stack"]
    if baselines is not None:
        parts |= baselines.scores
    groups = ["all", *sorted({group for i in use for group in questions[i].groups})]
    sets = {}
    for group in groups:
        member = np.array([group == "all" or group in questions[i].groups for i in use], bool)
        if member.sum() >= 20 and wrong[member].any() and not wrong[member].all():
            own = {name: values[..., member] for name, values in parts.items()}
            entities = [questions[i].entity for i, is_in in zip(use, member, strict=True) if is_in]
            sets[group] = _set(wrong[member], own, entities, seed, draws)
    coverage, error = metrics.risk_coverage(wrong, risk)
    points = np.linspace(0, len(wrong) - 1, min(_POINTS, len(wrong))).astype(int)
    found = {
        "probe": {"id": bundle.card.id, "revision": bundle.revision},
        "n": len(answers),
        "not_scored": sum(answer.signals is None for answer in answers),
        **counts(answers),
        "sets": sets,
        "thresholds": [_at(bundle, target, answers, readout) for target in TARGETS if _reachable(bundle, target)],
        "reliability": [{"risk": mean, "wrong": share, "n": n} for mean, share, n in metrics.reliability(wrong, risk)],
        "risk_coverage": [[float(coverage[i]), float(error[i])] for i in points],
    }
    if baselines is not None:
        found["baselines"] = {**baselines.facts, "left_out": baselines.left_out}
    return found


def _set(
    wrong: NDArray[np.bool_], parts: dict[str, NDArray[np.floating]], entities: Sequence[str], seed: int, draws: int
) -> dict[str, Any]:
    table = {}
    for name, score in parts.items():
        each = [metrics.detection(wrong, one, entities, TARGETS, seed, draws) for one in np.atleast_2d(score)]
        table[name] = {measure: metrics.over([one[measure] for one in each]).model_dump() for measure in each[0]}
    risk = parts["stack"]
    return {
        "n": len(wrong),
        "wrong": int(wrong.sum()),
        "parts": table,
        "ece": metrics.ece(wrong, risk),
        "brier": metrics.brier(wrong, risk),
    }


def _reachable(bundle: Bundle, target: float) -> bool:
    return (len(bundle.right_risks) + 1) * target >= 1


def _at(bundle: Bundle, target: float, answers: Sequence[EvaluatedAnswer], readout: Readout) -> dict[str, Any]:
    """What abstaining at one threshold does. What could not be scored is withheld, as the server does.

    A share of answers that were not there is None: nothing was seen, which is not the same as no false alarm.
    """
    threshold = bundle.threshold(target)
    kept = [
        answer
        if answer.right is None or (answer.signals is not None and readout.risk(answer.signals)[0] < threshold)
        else EvaluatedAnswer(answer.text, answer.signals, None)
        for answer in answers
    ]
    right, wrong = (sum(answer.right is value for answer in answers) for value in (True, False))
    after = counts(kept)
    return {
        "target_fpr": target,
        "threshold": threshold,
        "false_alarms": _share(right - after["right"], right),
        "caught": _share(wrong - after["wrong"], wrong),
        "coverage": _share(after["right"] + after["wrong"], right + wrong),
        "truthfulness": after["truthfulness"],
    }


def _share(some: int, total: int) -> float | None:
    return some / total if total else None


def scaled(alpha: float, questions: Sequence[Question], answers: Sequence[EvaluatedAnswer]) -> dict[str, Any]:
    """What one strength of scaling does: right, wrong and declined answers, of all and of every group."""
    groups = sorted({group for question in questions for group in question.groups})
    sets = {}
    for group in groups:
        own = [a for question, a in zip(questions, answers, strict=True) if group in question.groups]
        sets[group] = {name: count for name, count in counts(own).items() if name != "truthfulness"}
    return {"alpha": alpha, **counts(answers), "sets": sets}
