"""Greedy answers of a checkpoint through transformers, judged: for checkpoints that no engine serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.fit.judge import judge
from guard.fit.questions import Question
from guard.fit.reader import Reader


@dataclass(slots=True)
class Answers:
    """The model's own answers that are right or wrong (declined ones are left out), aligned with ``questions``."""

    questions: list[Question]
    prompts: list[list[int]]
    tokens: list[list[int]]
    texts: list[str]
    wrong: NDArray[np.bool_]

    def take(self, index: Sequence[int]) -> Answers:
        return Answers(
            [self.questions[i] for i in index],
            [self.prompts[i] for i in index],
            [self.tokens[i] for i in index],
            [self.texts[i] for i in index],
            self.wrong[list(index)],
        )


def ask(reader: Reader, questions: Sequence[Question]) -> Answers:
    """Greedy answers to all questions, judged."""
    prompts = [reader.prompt(question.text) for question in questions]
    answers = reader.answer(prompts)
    texts = [reader.tokenizer.decode(answer) for answer in answers]
    verdicts = [judge(question, text) for question, text in zip(questions, texts, strict=True)]
    kept = [i for i, verdict in enumerate(verdicts) if verdict is not None and answers[i]]
    return Answers(
        [questions[i] for i in kept],
        [prompts[i] for i in kept],
        [answers[i] for i in kept],
        [texts[i] for i in kept],
        np.array([not verdicts[i] for i in kept], bool),
    )
