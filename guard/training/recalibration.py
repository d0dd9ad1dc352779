"""Calibrate a bundle for a domain without looking for neurons again: same taps, new stack and thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guard.errors import FitError
from guard.evaluation import detectors
from guard.harness.answers import judge_all
from guard.harness.generation import answer_all
from guard.harness.progress import tell
from guard.harness.questions import SHARES as ALL_SHARES
from guard.harness.questions import split
from guard.harness.store import StageStore, translate_os_errors
from guard.judge.question import Question
from guard.judge.rules import RemoteJudge
from guard.judge.spans import find_span, token_offsets, tokens_of
from guard.launch.engines import self_test_prompt
from guard.launch.self_test import make_reference
from guard.probe.bundle import Bundle, save_bundle
from guard.probe.signals import TokenSignals
from guard.training import calibration
from guard.training.config import CalibrationConfig
from guard.training.distance import OUTSIDE
from guard.versions import engine_version

SHARES = ALL_SHARES["calibrate"]


async def recalibrate(
    work: StageStore,
    engine: Any,
    bundle: Bundle,
    questions: Sequence[Question],
    judge: RemoteJudge | None,
    out: Path,
    bundle_id: str,
    config: CalibrationConfig,
    say: Callable[[str], None] = tell,
) -> Bundle:
    """Answer, judge, calibrate, save under ``bundle_id``. Raises FitError when answers are all right or all wrong."""
    tokenizer = engine.get_tokenizer()
    questions = unseen(bundle, questions, say)
    answered = await answer_all(work, engine, questions, config.max_tokens, say)
    texts = {i: row["text"] for i, row in sorted(answered.items())}
    verdicts = await judge_all(work, questions, {i: [text] for i, text in texts.items()}, judge)
    kept = [i for i in texts if verdicts[i][0] is not None and answered[i]["signals"] is not None]
    wrong = np.array([not verdicts[i][0] for i in kept], bool)
    say(f"{len(kept)} of {len(questions)} answers judged, {int(wrong.sum())} of them wrong")
    parts = split([questions[i] for i in kept], SHARES, config.seed)
    signals = [TokenSignals.from_dict(answered[i]["signals"]) for i in kept]
    spans = [tokens_of(token_offsets(tokenizer, answered[i]["tokens"]), find_span(texts[i])) for i in kept]
    use, test = parts["calibration"], parts["test"]
    window = max(1, int(np.ceil(np.quantile([len(signals[i]) for i in use], 0.9))))
    made = calibration.calibration(
        {name: [signals[i] for i in index] for name, index in parts.items()},
        {name: wrong[index] for name, index in parts.items()},
        [spans[i] for i in use],
        window,
        config.calibration,
    )
    measured = detectors.reports(
        [questions[kept[i]] for i in test],
        wrong[test],
        [signals[i] for i in test],
        made.readout,
        None,
        seed=config.seed,
    )
    readout = made.parameters
    if bundle.readout.distance_limit is not None and elsewhere(bundle, [signals[i] for i in parts["thresholds"]]):
        say(
            "these questions are unlike those that the probe's distance was fit on, and one limit would hold both: the "
            "new probe tells no domain; `hguard fit` makes one that does"
        )
        readout = readout.model_copy(update={"distance_limit": None})
    card = bundle.card.model_copy(
        update={
            "id": bundle_id,
            "model": bundle.card.model.model_copy(update={"engine": " ".join(engine_version())}),
            "readout": readout,
            "thresholds": made.thresholds,
            "at_thresholds": made.at_thresholds,
            "metrics": measured,
        }
    )
    reference = await make_reference(engine, self_test_prompt(engine))
    # A risk before generation that the old bundle gave may say nothing of these questions.
    kept_tensors = {name: tensor for name, tensor in bundle.tensors.items() if name != "right_prompt_risks"}
    with translate_os_errors(out):
        return save_bundle(out, card, {**kept_tensors, **made.risks}, reference)


def elsewhere(bundle: Bundle, signals: Sequence[TokenSignals]) -> bool:
    """Whether more than twice as many of these questions lie outside the bundle's domain as would at home."""
    outside = [bundle.readout.in_domain(one) is not True for one in signals]
    return float(np.mean(outside)) > 2 * OUTSIDE


def unseen(bundle: Bundle, questions: Sequence[Question], say: Callable[[str], None]) -> list[Question]:
    """The questions that the probe's neurons were not found on: on the others it looks better than it is.

    Raises FitError when none is left.
    """
    if bundle.train_questions is None:
        return list(questions)
    seen = set(bundle.train_questions.tolist())
    kept = [question for question in questions if question.digest not in seen]
    if not kept:
        raise FitError(
            f"the neurons were found on all {len(questions)} questions, so they cannot calibrate it: give others"
        )
    if len(kept) < len(questions):
        say(
            f"{len(questions) - len(kept)} of {len(questions)} questions are left out: the probe's neurons were found "
            "on them"
        )
    return kept
