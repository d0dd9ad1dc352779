"""One greedy answer to each question from a guarded engine, with what its taps measured; kept as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from guard import precision
from guard.engine.context import Unscored
from guard.harness.answers import Example
from guard.harness.progress import Progress
from guard.harness.questions import prompt_of
from guard.harness.store import StageStore
from guard.judge.question import Question
from guard.probe.readout import unit_readout
from guard.probe.signals import TokenSignals

ANSWERED = "answered.jsonl"
_AT_ONCE = 64


async def answer_all(
    work: StageStore,
    engine: Any,
    questions: Sequence[Question],
    max_tokens: int,
    say: Callable[[str], None],
    scale: float = 1.0,
) -> dict[int, dict[str, Any]]:
    """Rows by question: ``question``, ``tokens``, ``text``, and ``signals``, None for what cannot be scored.

    Says so where activations were not finite, and what to do about it.
    """
    engine.readout = unit_readout(engine.table.measured)  # so that all of it is measured, whatever the bundle uses
    tokenizer = engine.get_tokenizer()
    known = {row["question"]: row for row in work.rows(ANSWERED)}
    gate = asyncio.Semaphore(_AT_ONCE)
    flawed: list[int] = []
    progress = Progress(say, "answered", len(questions), "questions", len(known))
    with work.appending(ANSWERED) as append:

        async def one(i: int) -> None:
            async with gate:
                prompt = prompt_of(tokenizer, questions[i].text)
                verdict = await engine.answer(prompt, max_tokens, f"hguard-ask-{scale:g}-{i}", scale)
            scored = verdict.signals is not None and verdict.reason is None
            known[i] = {
                "question": i,
                "tokens": verdict.token_ids,
                "text": tokenizer.decode(verdict.token_ids, skip_special_tokens=True),
                "signals": verdict.signals.to_dict() if scored else None,
            }
            append(known[i])
            if verdict.reason is Unscored.NOT_FINITE:
                flawed.append(i)
            progress.add()

        await asyncio.gather(*(one(i) for i in range(len(questions)) if i not in known))
    if flawed:
        dtype = precision.name_of(engine.model_config.dtype)
        say(
            f"{len(flawed)} of {len(questions)} answers could not be scored, because their activations are not finite "
            f"in {dtype}: {precision.overflow(dtype)}"
        )
    return known


async def score_answers(engine: Any, chosen: Sequence[Example]) -> list[TokenSignals]:
    """What a GuardedEngine's taps say of these answers, in their order; one forward pass each."""
    return list(
        await asyncio.gather(
            *(engine.measure(one.prompt, one.tokens, 1.0, f"hguard-fit-{one.question}") for one in chosen)
        )
    )
