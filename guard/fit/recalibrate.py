"""Calibrate a bundle for a domain without looking for neurons again: same taps, new stack and thresholds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import FitError
from guard.fit import calibrate, evaluate
from guard.fit.answers import judge_all
from guard.fit.judge import RemoteJudge
from guard.fit.pipeline import TARGETS, parameters_of, prompt_of, unit_readout
from guard.fit.questions import Question, split
from guard.fit.span import find_span, token_offsets, tokens_of
from guard.fit.workspace import Workspace, explained
from guard.probe import conformal
from guard.probe.bundle import Bundle, save_bundle
from guard.probe.card import ReadoutParameters

SHARES = {"calibration": 0.6, "test": 0.4}
ANSWERED = "answered.jsonl"
_AT_ONCE = 64


async def answer_all(
    work: Workspace, engine: Any, questions: Sequence[Question], longest: int, say: Callable[[str], None]
) -> dict[int, dict[str, Any]]:
    """One greedy answer to each question, with what the taps measured while it was produced; by question."""
    engine.readout = unit_readout()  # so that everything is measured, whatever the bundle uses
    tokenizer = engine.get_tokenizer()
    known = {row["question"]: row for row in work.rows(ANSWERED)}
    gate = asyncio.Semaphore(_AT_ONCE)
    with work.growing(ANSWERED) as append:

        async def one(i: int) -> None:
            async with gate:
                row = await _answer(engine, tokenizer, questions[i].text, i, longest)
            known[i] = row
            append(row)
            if len(known) % max(1, len(questions) // 10) == 0:
                say(f"answered {len(known)} of {len(questions)} questions")

        await asyncio.gather(*(one(i) for i in range(len(questions)) if i not in known))
    return known


async def _answer(engine: Any, tokenizer: Any, text: str, number: int, longest: int) -> dict[str, Any]:
    verdict = await engine.answer(prompt_of(tokenizer, text), longest, f"hguard-calibrate-{number}")
    row: dict[str, Any] = {"question": number, "tokens": verdict.token_ids, "signals": None}
    if verdict.signals is not None and verdict.reason is None:
        row["signals"] = evaluate.signals_to(verdict.signals)
    return row


async def recalibrate(
    work: Workspace,
    engine: Any,
    bundle: Bundle,
    questions: Sequence[Question],
    judge: RemoteJudge | None,
    out: Path,
    bundle_id: str,
    longest: int,
    seed: int,
    say: Callable[[str], None] = print,
) -> Bundle:
    """Answer, judge, calibrate, save under ``bundle_id``. Raises FitError when answers are all right or all wrong."""
    tokenizer = engine.get_tokenizer()
    answered = await answer_all(work, engine, questions, longest, say)
    texts = {i: tokenizer.decode(row["tokens"], skip_special_tokens=True) for i, row in sorted(answered.items())}
    verdicts = await judge_all(work, questions, {i: [text] for i, text in texts.items()}, judge)
    kept = [i for i in texts if verdicts[i][0] is not None and answered[i]["signals"] is not None]
    wrong = np.array([not verdicts[i][0] for i in kept], bool)
    say(f"{len(kept)} of {len(questions)} answers judged, {int(wrong.sum())} of them wrong")
    parts = split([questions[i] for i in kept], SHARES, seed)
    for name, index in parts.items():
        if wrong[index].all() or not wrong[index].any():
            raise FitError(f"the answers for {name} are all right or all wrong: ask more questions")
    signals = [evaluate.signals_from(answered[i]["signals"]) for i in kept]
    spans = [tokens_of(token_offsets(tokenizer, answered[i]["tokens"]), find_span(texts[i])) for i in kept]
    use, test = parts["calibration"], parts["test"]
    window = max(1, int(np.ceil(np.quantile([len(signals[i]) for i in use], 0.9))))
    readout = calibrate.fit_readout([signals[i] for i in use], wrong[use], [spans[i] for i in use], window)
    right = [readout.risk(signals[i])[0] for i in use if not wrong[i]]
    right_risks = np.sort(np.array(right, np.float32))
    measured = evaluate.reports(
        [questions[kept[i]] for i in test], wrong[test], [signals[i] for i in test], readout, None, seed=seed
    )
    card = bundle.card.model_copy(
        update={
            "id": bundle_id,
            "readout": ReadoutParameters(
                window=readout.window,
                answer=parameters_of(readout.answer),
                platt=readout.platt,
                token=parameters_of(readout.token),
            ),
            "thresholds": conformal.thresholds(right_risks, TARGETS),
            "metrics": measured,
        }
    )
    tensors: dict[str, NDArray[np.generic]] = {
        "layer": bundle.layer,
        "neuron": bundle.neuron,
        "coefficient": bundle.coefficient,
        "folded": bundle.folded,
        "right_risks": right_risks,
    }
    with explained(out):
        return save_bundle(out, card, tensors)
