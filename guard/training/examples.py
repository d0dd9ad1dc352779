"""Choose what can teach: the model's one answer to each question, judged; and how far further samples agree with it.

Every question has the answer that it would be served, so that what is calibrated on them is what serving sees.
Samples only say which answers are certain enough to find neurons on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.engine.activations import CollectingEngine, new_means
from guard.errors import FitError
from guard.harness.activations import file_of
from guard.harness.answers import Example, consistent, judge_all
from guard.harness.progress import Progress
from guard.harness.questions import prompt_of, question_start, split
from guard.harness.store import StageStore, translate_os_errors
from guard.ipc.collecting import Site
from guard.judge.question import Question
from guard.judge.rules import RemoteJudge, judge
from guard.judge.spans import token_offsets, tokens_of
from guard.probe import conformal
from guard.training.config import FitConfig

ANSWERS, SAMPLES, CHOSEN = "answers.jsonl", "samples.jsonl", "chosen.jsonl"
_DONE = "chosen.done"
LEAST_RIGHT = 50  # right answers below which neither neurons nor thresholds can be had
_LOOK = 500  # answers after which it is first asked whether there will be as many

Locate = Callable[[str], tuple[int, int]]  # character range of an answer that states the fact
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DataSplit:
    """Judged answers, and to which part of a fit each belongs (rows into ``examples``)."""

    questions: Sequence[Question]
    examples: Sequence[Example]
    parts: dict[str, list[int]]

    @classmethod
    def of(
        cls, questions: Sequence[Question], chosen: Sequence[Example], shares: dict[str, float], seed: int
    ) -> DataSplit:
        """No entity is in two parts. Uncertain answers do not teach, but everything else is measured on them, too."""
        parts = split([questions[one.question] for one in chosen], shares, seed)
        if "train" in parts:
            parts["train"] = [row for row in parts["train"] if chosen[row].certain]
        return cls(questions, chosen, parts)

    def question(self, row: int) -> Question:
        return self.questions[self.examples[row].question]

    def wrong(self, part: str) -> NDArray[np.bool_]:
        """Which answers of a part are wrong."""
        return np.array([self.examples[row].wrong for row in self.parts[part]], bool)


def chosen_in(work: StageStore) -> list[Example] | None:
    """What was chosen before, or None when this stage is not done."""
    return [Example(**row) for row in work.rows(CHOSEN)] if work.has(_DONE) else None


async def choose(
    work: StageStore,
    engine: CollectingEngine,
    questions: Sequence[Question],
    how: FitConfig,
    shares: dict[str, float],
    shape: tuple[int, int],
    remote: RemoteJudge | None,
    locate: Locate,
    say: Say,
) -> list[Example]:
    """Answer, judge, choose; ``shape`` as of ``answer_all``. Raises FitError when the answers cannot teach."""
    prompts = [prompt_of(engine.tokenizer, question.text) for question in questions]
    answers = await answer_all(work, engine, questions, prompts, how, shape, remote is None, say)
    texts = {i: [row["text"]] for i, row in sorted(answers.items())}
    verdicts = await judge_all(work, questions, texts, remote)
    chosen = []
    for i, (right,) in verdicts.items():
        row = answers[i]
        if right is None or not row["tokens"] or not row["text"].strip():
            continue
        # The engine's text may leave out blanks that the tokens spell.
        whole = engine.tokenizer.decode(row["tokens"], skip_special_tokens=True)
        start, end = tokens_of(token_offsets(engine.tokenizer, row["tokens"]), locate(whole))
        found = Example(i, prompts[i], row["tokens"], whole, start, end, not right, row["ended"], draws=row["draws"])
        chosen.append(found)
    require_right(len(questions), len(chosen), sum(not one.wrong for one in chosen))
    if how.samples:
        train = split([questions[one.question] for one in chosen], shares, how.seed)["train"]
        asked = {chosen[index].question: prompts[chosen[index].question] for index in train}
        said = await judge_all(work, questions, await sample(work, engine, asked, how, say), remote)
        for index in train:
            one = chosen[index]
            agreed = consistent([not one.wrong, *said[one.question]], how.min_agreement)
            chosen[index] = replace(one, certain=agreed is (not one.wrong))
        certain = sum(chosen[index].certain for index in train)
        say(f"{certain} of {len(train)} training answers are confirmed by their samples")
    wrong = sum(one.wrong for one in chosen)
    say(f"{len(chosen)} of {len(questions)} answers are judged, {wrong} of them wrong; the others decline")
    work.path(CHOSEN).unlink(missing_ok=True)
    with work.appending(CHOSEN) as append:
        for one in chosen:
            append(one.row())
    work.write_json(_DONE, len(chosen))
    return chosen


async def answer_all(
    work: StageStore,
    engine: CollectingEngine,
    questions: Sequence[Question],
    prompts: Sequence[list[int]],
    how: FitConfig,
    shape: tuple[int, int],
    by_rule: bool,
    say: Say,
) -> dict[int, dict[str, Any]]:
    """The greedy answer to each question, by question; what happened meanwhile goes into rows of ``how.tables``. shape:
    (layers, neurons), the latter 0 where none are read.

    Raises FitError where answers are done without one of these tables.
    """
    done = {row["question"]: row for row in work.rows(ANSWERS)}
    files = {table: work.path(file_of(table)) for table in how.tables(shape[1] > 0)}
    for (site, _), path in files.items():
        if path.exists():
            continue
        if done:
            raise FitError(
                f"{work.folder} has {len(done)} answers, and no {path.name} of them: give another --out, or the --keep "
                "that they were given with"
            )
        with translate_os_errors(work.folder):
            new_means(path, len(questions), shape[0], shape[1] if site is Site.NEURONS else engine.width(site))
    open_ = [i for i in range(len(questions)) if i not in done]
    progress = Progress(say, "answered", len(questions), "questions", len(done))
    right = sum(judge(questions[i], row["text"]) is True for i, row in done.items()) if by_rule else 0
    with work.appending(ANSWERS) as append, translate_os_errors(work.folder):
        begins = question_start(engine.tokenizer) if how.question else None
        stream = engine.answer([prompts[i] for i in open_], open_, how.max_tokens, files, begins)
        async for index, answer in stream:
            i = open_[index]
            done[i] = {
                "question": i,
                "tokens": answer.tokens,
                "text": answer.text,
                "ended": answer.ended,
                "draws": answer.draws,
            }
            append(done[i])
            progress.add()
            if by_rule:
                right += judge(questions[i], answer.text) is True
                if len(done) == _LOOK:
                    require_right(len(questions), len(done), right, expected=True)
    return done


def require_questions(asked: int, share: float, say: Say) -> None:
    """Say which thresholds so few questions cannot give, however right the answers; ``share``: of those that set them.

    Raises FitError where they can give none.
    """
    setting = round(asked * share)
    least = conformal.needed(max(conformal.TARGETS))
    if setting < least:
        raise FitError(
            f"{asked} questions are too few: {setting} of them would set thresholds, and the loosest one takes {least} "
            f"right answers; give at least {math.ceil(least / share)}, and several times as many where the model is "
            "often wrong"
        )
    if lacking := [f"{rate:.1%}" for rate in conformal.TARGETS if conformal.needed(rate) > setting]:
        rates = ", ".join(lacking)
        say(f"of {asked} questions {setting} set thresholds: too few, were all right, for {rates} false alarms")


def require_right(asked: int, answered: int, right: int, expected: bool = False) -> None:
    """Raise FitError where right or wrong answers are too few, or are going to be (``expected``)."""
    what = "questions that the model knows in part (hguard data check FILE says what a file holds)"
    if expected:
        coming = round(right / answered * asked)
        if coming < LEAST_RIGHT:
            raise FitError(
                f"after {answered} of {asked} questions {right} answers are right, so about {coming} will be, and a "
                f"probe needs {LEAST_RIGHT}: ask more, or {what}"
            )
        return
    if right == answered:
        raise FitError(f"all {answered} judged answers are right: there is nothing to tell apart; ask {what}")
    if right < min(LEAST_RIGHT, max(1, answered // 10)):
        raise FitError(
            f"{right} of {answered} judged answers are right, and a probe needs {LEAST_RIGHT}: ask more, or {what}"
        )


async def sample(
    work: StageStore, engine: CollectingEngine, prompts: dict[int, list[int]], how: FitConfig, say: Say
) -> dict[int, list[str]]:
    """Further answers to these questions, texts by question."""
    done: dict[int, list[str]] = {row["question"]: row["texts"] for row in work.rows(SAMPLES)}
    open_ = [i for i in prompts if i not in done]
    progress = Progress(say, "sampled", len(prompts), "questions", len(prompts) - len(open_))
    with work.appending(SAMPLES) as append:
        stream = engine.sample([prompts[i] for i in open_], how.samples, how.max_tokens, how.temperature, how.seed)
        async for index, answers in stream:
            done[open_[index]] = [answer.text for answer in answers]
            append({"question": open_[index], "texts": done[open_[index]]})
            progress.add()
    return {i: done[i] for i in prompts}
