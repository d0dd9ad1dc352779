"""How often atlas is right, wrong, or declines, by relation and by how often it saw the fact."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from guard.fit.judge import judge
from guard.fit.questions import Question
from guard.fit.reader import Reader

Rates = dict[str, dict[str, float]]


def rates(reader: Reader, questions: Sequence[Question], labels: Sequence[str]) -> Rates:
    """Shares of right, wrong and declined greedy answers for each label, with the count ``n``."""
    prompts = [reader.prompt(question.text) for question in questions]
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for question, label, answer in zip(questions, labels, reader.answer(prompts), strict=True):
        verdict = judge(question, reader.tokenizer.decode(answer))
        counts[label]["declined" if verdict is None else "right" if verdict else "wrong"] += 1
    return {
        label: {"n": sum(c.values()), **{k: c[k] / sum(c.values()) for k in ("right", "wrong", "declined")}}
        for label, c in sorted(counts.items())
    }
