"""``hguard eval``: what a guarded model is worth on questions whose answers are known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.fit import metrics
from guard.fit.answers import judge_all
from guard.fit.evaluate import parts_of
from guard.fit.judge import RemoteJudge
from guard.fit.pipeline import TARGETS, prompt_of
from guard.fit.questions import Question
from guard.fit.workspace import Workspace
from guard.probe.bundle import Bundle
from guard.probe.readout import Readout, Signals

_AT_ONCE = 64
_POINTS = 101  # of the risk-coverage curve


@dataclass(frozen=True, slots=True)
class Answered:
    """One greedy answer: its text, what was measured (None: not scored), and the judge's word (None: declined)."""

    text: str
    signals: Signals | None
    right: bool | None


async def answer_all(
    engine: Any,
    questions: Sequence[Question],
    judge: RemoteJudge | None,
    work: Workspace,
    longest: int,
    damp: float = 1.0,
) -> list[Answered]:
    """Answers to all questions, judged."""
    tokenizer = engine.get_tokenizer()
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int, text: str) -> tuple[str, Signals | None]:
        async with gate:
            verdict = await engine.answer(prompt_of(tokenizer, text), longest, f"hguard-eval-{damp}-{number}", damp)
        spelled = tokenizer.decode(verdict.token_ids, skip_special_tokens=True)
        return spelled, None if verdict.reason else verdict.signals

    answers = await asyncio.gather(*(one(i, question.text) for i, question in enumerate(questions)))
    verdicts = await judge_all(work, questions, {i: [text] for i, (text, _) in enumerate(answers)}, judge)
    return [Answered(text, signals, verdicts[i][0]) for i, (text, signals) in enumerate(answers)]


def counts(answers: Sequence[Answered]) -> dict[str, Any]:
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
    answers: Sequence[Answered],
    seed: int = 0,
    draws: int = 1000,
) -> dict[str, Any]:
    """Everything that is measured on one set of answers, as JSON; intervals from ``draws`` bootstraps."""
    scored = [
        (question, answer, answer.signals)
        for question, answer in zip(questions, answers, strict=True)
        if answer.right is not None and answer.signals is not None
    ]
    wrong = np.array([not answer.right for _, answer, _ in scored], bool)
    signals = [measured for _, _, measured in scored]
    parts = parts_of(signals, readout)
    risk = parts["stack"]
    groups = ["all", *sorted({group for question, _, _ in scored for group in question.groups})]
    sets = {}
    for group in groups:
        member = np.array([group == "all" or group in question.groups for question, _, _ in scored], bool)
        if member.sum() >= 20 and wrong[member].any() and not wrong[member].all():
            own = {name: values[member] for name, values in parts.items()}
            sets[group] = _set(wrong[member], own, seed, draws)
    coverage, error = metrics.risk_coverage(wrong, risk)
    points = np.linspace(0, len(wrong) - 1, min(_POINTS, len(wrong))).astype(int)
    return {
        "probe": {"id": bundle.card.id, "revision": bundle.revision},
        "n": len(answers),
        "not_scored": sum(answer.signals is None for answer in answers),
        **counts(answers),
        "sets": sets,
        "thresholds": [_at(bundle, target, answers, readout) for target in TARGETS if _reachable(bundle, target)],
        "reliability": [{"risk": mean, "wrong": share, "n": n} for mean, share, n in metrics.reliability(wrong, risk)],
        "risk_coverage": [[float(coverage[i]), float(error[i])] for i in points],
    }


def _set(wrong: NDArray[np.bool_], parts: dict[str, NDArray[np.floating]], seed: int, draws: int) -> dict[str, Any]:
    table = {}
    for name, score in parts.items():
        table[name] = {
            "auroc": metrics.auroc(wrong, score, seed, draws).model_dump(),
            "auprc": metrics.auprc(wrong, score, seed, draws).model_dump(),
            **{
                f"recall_at_{target:.2f}": metrics.recall_at(wrong, score, target, seed, draws).model_dump()
                for target in TARGETS
            },
        }
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


def _at(bundle: Bundle, target: float, answers: Sequence[Answered], readout: Readout) -> dict[str, Any]:
    """What abstaining at one threshold does. What could not be scored is withheld, as the server does."""
    threshold = bundle.threshold(target)
    kept = [
        answer
        if answer.right is None or (answer.signals is not None and readout.risk(answer.signals)[0] < threshold)
        else Answered(answer.text, answer.signals, None)
        for answer in answers
    ]
    right, wrong = (sum(answer.right is value for answer in answers) for value in (True, False))
    after = counts(kept)
    return {
        "target_fpr": target,
        "threshold": threshold,
        "false_alarms": (right - after["right"]) / max(right, 1),
        "caught": (wrong - after["wrong"]) / max(wrong, 1),
        "coverage": (after["right"] + after["wrong"]) / max(right + wrong, 1),
        "truthfulness": after["truthfulness"],
    }


async def damp_sweep(
    engine: Any,
    questions: Sequence[Question],
    judge: RemoteJudge | None,
    work: Callable[[float], Workspace],
    longest: int,
    strengths: Sequence[float],
) -> list[dict[str, Any]]:
    """Right, wrong and declined answers against the strength of damping."""
    rows = []
    for alpha in strengths:
        answers = await answer_all(engine, questions, judge, work(alpha), longest, alpha)
        rows.append({"alpha": alpha, **counts(answers)})
    return rows
