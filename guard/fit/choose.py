"""Choose what can teach: sample answers, judge them, keep the consistent ones, find where each states its fact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.engine.collecting import CollectingEngine
from guard.errors import FitError
from guard.fit.answers import Chosen, consistent, judge_all, representative
from guard.fit.judge import RemoteJudge
from guard.fit.progress import Progress
from guard.fit.questions import Question, prompt_of, split
from guard.fit.span import token_offsets, tokens_of
from guard.fit.workspace import Workspace

SAMPLES, CHOSEN = "samples.jsonl", "chosen.jsonl"
_DONE = "chosen.done"

Locate = Callable[[str], tuple[int, int]]  # character range of an answer that states the fact


@dataclass(frozen=True, slots=True)
class Sampling:
    """samples: answers to each question, at this temperature (1 sample is greedy), of at most ``longest`` tokens.

    agree: share of a question's answers that must be judged alike.
    """

    samples: int
    temperature: float
    longest: int
    agree: float
    seed: int


@dataclass(frozen=True, slots=True)
class Dealt:
    """Chosen answers, and to which part of a fit each was dealt (rows into ``chosen``)."""

    questions: Sequence[Question]
    chosen: Sequence[Chosen]
    parts: dict[str, list[int]]

    @classmethod
    def of(cls, questions: Sequence[Question], chosen: Sequence[Chosen], shares: dict[str, float], seed: int) -> Dealt:
        """No entity is in two parts."""
        return cls(questions, chosen, split([questions[one.question] for one in chosen], shares, seed))

    def question(self, row: int) -> Question:
        return self.questions[self.chosen[row].question]

    def wrong(self, part: str) -> NDArray[np.bool_]:
        """Which answers of a part are wrong."""
        return np.array([self.chosen[row].wrong for row in self.parts[part]], bool)


def chosen_in(work: Workspace) -> list[Chosen] | None:
    """What was chosen before, or None when this stage is not done."""
    return [Chosen(**row) for row in work.rows(CHOSEN)] if work.has(_DONE) else None


async def choose(
    work: Workspace,
    engine: CollectingEngine,
    questions: Sequence[Question],
    how: Sampling,
    judge: RemoteJudge | None,
    locate: Locate,
    say: Callable[[str], None],
) -> list[Chosen]:
    """Sample, judge, choose. Raises FitError when the consistent answers are all right or all wrong."""
    tokenizer = engine.tokenizer
    prompts = [prompt_of(tokenizer, question.text) for question in questions]
    done = {row["question"]: row["answers"] for row in work.rows(SAMPLES)}
    open_ = [i for i in range(len(prompts)) if i not in done]
    greedy = how.samples == 1
    progress = Progress(say, "sampled", len(prompts), "questions", len(done))
    with work.growing(SAMPLES) as append:
        stream = engine.sample(
            [prompts[i] for i in open_],
            how.samples,
            how.longest,
            0.0 if greedy else how.temperature,
            how.seed,
        )
        async for index, answers in stream:
            i = open_[index]
            done[i] = [{"tokens": a.tokens, "text": a.text, "ended": a.ended} for a in answers]
            append({"question": i, "answers": done[i]})
            progress.add()
    texts = {i: [answer["text"] for answer in answers] for i, answers in sorted(done.items())}
    verdicts = await judge_all(work, questions, texts, judge)
    chosen = []
    for i, said in texts.items():
        right = consistent(verdicts[i], how.agree)
        if right is None:
            continue
        answer = done[i][representative(said, verdicts[i], right)]
        if not answer["tokens"] or not answer["text"].strip():
            continue
        # The engine's text may leave out blanks that the tokens spell.
        whole = tokenizer.decode(answer["tokens"], skip_special_tokens=True)
        start, end = tokens_of(token_offsets(tokenizer, answer["tokens"]), locate(whole))
        chosen.append(Chosen(i, prompts[i], answer["tokens"], whole, start, end, not right))
    wrong = sum(one.wrong for one in chosen)
    say(f"{len(chosen)} of {len(prompts)} questions are answered consistently, {wrong} of them wrong")
    if not 0 < wrong < len(chosen):
        raise FitError(
            f"the consistent answers are all {'wrong' if wrong else 'right'} ({len(chosen)} of {len(prompts)} "
            "questions): there is nothing to tell apart; ask what the model knows in part, or lower --agree"
        )
    work.path(CHOSEN).unlink(missing_ok=True)
    with work.growing(CHOSEN) as append:
        for one in chosen:
            append(one.row())
    work.write_json(_DONE, len(chosen))
    return chosen
