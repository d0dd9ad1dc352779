"""The guard beside others: what each reads, how answers are compared, and the page's tables. The engines are real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from app.settings import ATLAS
from bench import report
from bench.beside import __main__ as beside
from bench.beside.contenders import Answer, HookedTransformers, SelfConsistent
from bench.beside.rouge import rouge_l
from guard.judge.question import Question
from guard.probe.bundle import Bundle, load_bundle
from models.atlas.recipe.reference import Reader


@pytest.mark.parametrize(
    ("one", "other", "score"),
    [
        ("It is in France.", "it is in FRANCE", 1.0),
        ("It is in France.", "It is in Spain.", 0.75),
        ("France", "Spain", 0.0),
        ("a b c d", "b d", 2 * 2 / 6),
        ("", "", 1.0),
        ("...", "France", 0.0),
    ],
)
def test_rouge_l(one: str, other: str, score: float) -> None:
    assert rouge_l(one, other) == rouge_l(other, one) == pytest.approx(score)


def test_hooks_around_transformers_read_the_neurons() -> None:
    """The mean over the last prompt token and the answer, of rows that are padded and of unlike lengths."""
    tokenizer, bundle = AutoTokenizer.from_pretrained(ATLAS), load_bundle(ATLAS / "probe")
    torch.manual_seed(0)
    reader = Reader(LlamaForCausalLM.from_pretrained(ATLAS, dtype=torch.float32), tokenizer)
    prompts = [reader.prompt("Where is Paris?"), reader.prompt("Which country is the province of Bern in, and why?")]
    contender = HookedTransformers(reader.model, tokenizer, bundle, 12)
    answers = asyncio.run(contender.answer(prompts, 2))
    told = reader.answer(prompts, 12)
    readings = reader.read(prompts, told, (bundle.layer, bundle.neuron))
    for answer, tokens, reading in zip(answers, told, readings, strict=True):
        assert answer.text == tokenizer.decode(tokens, skip_special_tokens=True)
        scores = reading.tokens @ bundle.coefficient
        fed = len(tokens) + (len(tokens) < 12)  # an answer that was cut never feeds its last token back
        assert answer.risk == pytest.approx(float(scores[:fed].mean()), rel=1e-3)


async def test_samples_that_differ_are_risky(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {0.0: ["It is in France."], 1.0: ["It is in France.", "It is in Spain."]}

    async def generated(self: Any, prompt: list[int], temperature: float = 0.0, **options: Any) -> list[Any]:
        return [SimpleNamespace(text=text, token_ids=[1]) for text in said[temperature]]

    monkeypatch.setattr(SelfConsistent, "_generated", generated)
    assert (await SelfConsistent(None, 8).one([1])).risk == pytest.approx(1 - (1 + 0.75) / 2)


def question(number: int, group: str, entity: str | None = None) -> Question:
    return Question(f"Where is {number}?", ("France",), entity or f"e{number}", (group,))


def test_questions_are_of_all_sets_alike_and_of_entities_that_taught_nothing(bundle: Bundle) -> None:
    asked = [question(i, "large") for i in range(40)] + [question(100 + i, "small") for i in range(5)]
    taught = [asked[0].digest, asked[40].digest]
    asked.append(question(200, "large", asked[0].entity.upper()))
    object.__setattr__(bundle, "train_questions", np.array(sorted(taught), np.uint64))
    chosen = beside.held_out(asked, bundle, 10)
    assert len({one.text for one in chosen}) == 10
    assert sum(one.groups[0] == "small" for one in chosen) == 4
    assert not {one.entity.casefold() for one in chosen} & {"e0", "e100"}


def test_worth_is_within_a_set() -> None:
    """Two sets in which risk tells all, and a difference between them that would take from it if they were pooled."""
    questions, answers = [], []
    for group, base in (("one", 0.0), ("two", 10.0)):
        for number in range(20):
            right = number % 2 == 0
            questions.append(question(number, group))
            answers.append(Answer("It is in France." if right else "It is in Spain.", 3, base + (not right), 0.1))
    found = beside.worth(questions, answers)
    assert found == {"sets": {"one": 1.0, "two": 1.0}, "answers": 40, "auroc": 1.0}
    assert beside.worth(questions[:4], answers[:4])["auroc"] is None


class Paced:
    """Takes so many seconds, by a clock of its own."""

    now = 0.0

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self._seconds = name, seconds

    async def answer(self, prompts: Sequence[list[int]], clients: int) -> list[Answer]:
        Paced.now += self._seconds
        return [Answer("", 10, 0.5, self._seconds)] * len(prompts)


async def test_the_page_shows_each_against_the_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(beside, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(beside, "time", SimpleNamespace(perf_counter=lambda: Paced.now))
    said: list[str] = []
    load = beside.Load((1, 2), 2, 3)
    rows = await beside.speed([Paced("plain", 0.02), Paced("half", 0.04)], [[1]] * 8, load, said.append)
    assert [(row["contender"], row["clients"]) for row in rows] == [
        ("plain", 1),
        ("half", 1),
        ("plain", 2),
        ("half", 2),
    ]
    assert [row["ratio"] for row in rows] == pytest.approx([1, 0.5] * 2)
    assert [row["added_seconds"] for row in rows] == pytest.approx([0, 0.02] * 2)
    figures = {"engine": "vllm", "machine": "CPU, 2 cores", "model": "m", "dtype": "float32", "max_tokens": 32}
    figures |= {"samples": 5, "rounds": 3, "prompts": 2, "questions": 8, "beside": rows}
    figures |= {"worth": {"half": {"sets": {"one": 0.75}, "answers": 20, "auroc": 0.75}}}
    (tmp_path / "beside.json").write_text(json.dumps(figures))
    page = report.rendered(f"{report.BEGIN}\n{report.END}", tmp_path)
    assert "| half | 0.750 | 1 | 20 |" in page
    assert len([line for line in page.splitlines() if line.startswith("| plain | ")]) == 2
