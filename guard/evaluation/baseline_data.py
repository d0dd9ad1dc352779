"""What baselines are made of: further samples of every answer, and what all neurons and layers did over each.

From an engine that collects, started when the one that serves the probe is gone. Kept as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.evaluation import random_baseline
from guard.harness.activations import MEANS, OUTPUTS, collect, collected, facts_of
from guard.harness.answers import Example
from guard.harness.engines import Engines
from guard.harness.progress import Progress
from guard.harness.questions import prompt_of
from guard.harness.store import StageStore
from guard.judge.question import Question
from guard.judge.spans import find_span, token_offsets, tokens_of
from guard.probe.bundle import Bundle

RESAMPLED = "resampled.jsonl"
SAMPLES, TEMPERATURE = 5, 1.0
SLOTS = 32  # answers that are read at once
_SEED = 0


@dataclass(frozen=True, slots=True)
class BaselineData:
    """What was gathered on m answers that are certainly right or wrong.

    wrong: bool [m]. entities: what each is about. index: int64 [k], the probe's neurons among all, ``width`` a layer.
    means: float32 [m, layers, neurons], |z| / ||h|| over each answer's span. outputs: float32 [m, layers, hidden], h.
    said: each answer's text. samples: texts of further answers to the same questions.
    """

    wrong: NDArray[np.bool_]
    entities: Sequence[str]
    index: NDArray[np.int64]
    width: int
    means: NDArray[np.float32]
    outputs: NDArray[np.float32]
    said: Sequence[str]
    samples: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Greedy:
    """One answer whose neurons are read: the index of its question, its tokens and text, and the judge's word."""

    question: int
    tokens: list[int]
    text: str
    wrong: bool


async def gather(
    engines: Engines,
    work: StageStore,
    bundle: Bundle,
    questions: Sequence[Question],
    answers: Sequence[Greedy],
    max_tokens: int,
    say: Callable[[str], None],
) -> tuple[BaselineData, list[list[int]]]:
    """The material of ``answers``, and how many tokens each sample of each question took."""
    if len(work.rows(RESAMPLED)) < len(questions) or collected(work) < len(answers):
        async with engines.collecting() as engine:
            await _sample(work, engine, questions, max_tokens, say)
            chosen = [_chosen(engine.tokenizer, questions, answer) for answer in answers]
            identity = bundle.card.model
            shape = identity.layers, identity.neurons_per_layer
            await collect(work, engine, facts_of(chosen), shape, SLOTS, say, outputs=True)
    samples = {row["question"]: row for row in work.rows(RESAMPLED)}
    material = BaselineData(
        np.array([answer.wrong for answer in answers], bool),
        [questions[answer.question].entity for answer in answers],
        random_baseline.flat(bundle),
        bundle.card.model.neurons_per_layer,
        np.load(work.path(MEANS), mmap_mode="r"),
        np.load(work.path(OUTPUTS), mmap_mode="r"),
        [answer.text for answer in answers],
        [samples[answer.question]["texts"] for answer in answers],
    )
    return material, [samples[i]["lengths"] for i in range(len(questions))]


async def _sample(
    work: StageStore, engine: Any, questions: Sequence[Question], max_tokens: int, say: Callable[[str], None]
) -> None:
    done = {row["question"] for row in work.rows(RESAMPLED)}
    open_ = [i for i in range(len(questions)) if i not in done]
    prompts = [prompt_of(engine.tokenizer, questions[i].text) for i in open_]
    progress = Progress(say, "sampled", len(questions), "questions", len(done))
    with work.appending(RESAMPLED) as append:
        async for index, several in engine.sample(prompts, SAMPLES, max_tokens, TEMPERATURE, _SEED):
            texts, lengths = [one.text for one in several], [len(one.tokens) for one in several]
            append({"question": open_[index], "texts": texts, "lengths": lengths})
            progress.add()


def _chosen(tokenizer: Any, questions: Sequence[Question], answer: Greedy) -> Example:
    prompt = prompt_of(tokenizer, questions[answer.question].text)
    start, end = tokens_of(token_offsets(tokenizer, answer.tokens), find_span(answer.text))
    return Example(answer.question, prompt, answer.tokens, answer.text, start, end, answer.wrong)
