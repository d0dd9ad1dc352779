"""From sampled answers to those that can teach: judged, consistent, their span found."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from guard.harness.store import StageStore
from guard.judge.question import Question
from guard.judge.rules import RemoteJudge, judge

JUDGED = "judged.jsonl"
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Example:
    """One answer of the model that was judged right or wrong.

    question: its index. prompt, tokens: ids. start, end: the tokens that state the fact. wrong: the judge's word.
    ended: whether it came to an end by itself; the last token of one that was cut was never fed back. certain: whether
    further samples agree with it. draws: by name, the signals of each token's draw,
    where they were measured.
    """

    question: int
    prompt: list[int]
    tokens: list[int]
    text: str
    start: int
    end: int
    wrong: bool
    ended: bool = True
    certain: bool = True
    draws: dict[str, list[float]] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        return asdict(self)


async def judge_all(
    work: StageStore, questions: Sequence[Question], samples: dict[int, list[str]], remote: RemoteJudge | None
) -> dict[int, list[bool | None]]:
    """Verdicts on every sampled text, by question. A remote judge is asked once for each different text."""
    if remote is None:
        return {i: [judge(questions[i], text) for text in texts] for i, texts in samples.items()}
    known = {(row["question"], row["text"]): row["verdict"] for row in work.rows(JUDGED)}
    open_ = [(i, text) for i, texts in samples.items() for text in dict.fromkeys(texts) if (i, text) not in known]
    gate = asyncio.Semaphore(_AT_ONCE)
    async with httpx.AsyncClient(timeout=60) as client:
        with work.appending(JUDGED) as append:

            async def one(i: int, text: str) -> None:
                async with gate:
                    known[i, text] = await remote.ask(client, questions[i], text)
                append({"question": i, "text": text, "verdict": known[i, text]})

            try:
                async with asyncio.TaskGroup() as group:
                    for i, text in open_:
                        group.create_task(one(i, text))
            except ExceptionGroup as several:
                raise several.exceptions[0] from None
    return {i: [known[i, text] for text in texts] for i, texts in samples.items()}


def consistent(verdicts: Sequence[bool | None], agree: float) -> bool | None:
    """Whether the model is right (True) or wrong (False) in at least ``agree`` of its answers; None when in neither."""
    counts = collections.Counter(verdicts)
    for verdict in (True, False):
        if verdicts and counts[verdict] >= agree * len(verdicts):
            return verdict
    return None
