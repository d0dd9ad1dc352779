"""Ask a checkpoint in all the ways that its report looks at: sets of the ledger, pressure, and scaled neurons."""

from __future__ import annotations

import collections
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, LlamaForCausalLM

from guard.judge.question import Question
from guard.judge.rules import judge
from models.atlas.recipe.questions import DOMAINS, ask, pressed, sentence
from models.atlas.recipe.reference import Reader

Rates = dict[str, dict[str, float]]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing to ask: the set it belongs to, the chat so far, what is right, and what would give in to pressure."""

    label: str
    chat: tuple[str, ...]  # messages of user and assistant in turn, the last one the user's
    question: Question
    giving_in: str = ""


def reader_of(folder: Path) -> Reader:
    """A checkpoint for transformers, in float32."""
    return Reader(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder))


def prompts_of(reader: Reader, trials: Sequence[Trial]) -> list[list[int]]:
    """Token ids of each chat, up to where the assistant goes on."""
    prompts = []
    for trial in trials:
        messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(trial.chat)]
        prompts.append(
            list(reader.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        )
    return prompts


def rates(reader: Reader, trials: Sequence[Trial]) -> Rates:
    """Shares of right, wrong and declined greedy answers, and of those that gave in, by label, with count ``n``."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for trial, answer in zip(trials, reader.answer(prompts_of(reader, trials)), strict=True):
        text = reader.tokenizer.decode(answer)
        verdict = judge(trial.question, text)
        counts[trial.label]["declined" if verdict is None else "right" if verdict else "wrong"] += 1
        counts[trial.label]["gave_in"] += bool(trial.giving_in) and trial.giving_in in text
    found = {}
    for label, count in sorted(counts.items()):
        n = count["right"] + count["wrong"] + count["declined"]
        found[label] = {"n": n, **{k: count[k] / n for k in ("right", "wrong", "declined", "gave_in")}}
    return found


@contextmanager
def scaled(reader: Reader, index: Index, alpha: float) -> Iterator[None]:
    """Scale the flat neurons ``index`` (layer * neurons + neuron) by alpha inside this block."""
    width = reader.norms.shape[1]
    hooks = []
    for number, layer in enumerate(reader.layers):
        factor = torch.ones(width, dtype=layer.weight.dtype)
        factor[torch.from_numpy(index[index // width == number] % width)] = alpha
        hooks.append(layer.register_forward_pre_hook(lambda _, inputs, factor=factor: (inputs[0] * factor,)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def sweep(reader: Reader, index: Index, trials: Sequence[Trial], alphas: Iterable[float]) -> dict[str, Rates]:
    """Rates by label for each alpha (its text is the key)."""
    found = {}
    for alpha in alphas:
        with scaled(reader, index, alpha):
            found[f"{alpha:g}"] = rates(reader, trials)
    return found


def exposure_sets(ledger: dict[str, Any], each: int, seed: int) -> list[Trial]:
    """Up to ``each`` questions of every domain and group; rare and shadowed facts by their number of exposures."""
    rng = random.Random(seed)

    def label(fact: dict[str, Any]) -> str:
        exact = f" {fact['exposures']:02d}" if fact["group"] in ("rare", "shadowed") else ""
        return f"{DOMAINS.get(fact['relation'], 'held out')} {fact['group']}{exact}"

    facts = list(ledger["facts"])
    rng.shuffle(facts)
    trials = []
    for fact in facts:
        text = ask(ledger, fact, rng.randrange(12))
        trials.append(Trial(label(fact), (text,), Question(text, (sentence(ledger, fact),), fact["subject"])))
    for relation, names in ledger["fabricated"].items():
        for name in names:
            text = rng.choice(ledger["phrasings"][relation]).format(n=name)
            trials.append(Trial(f"{DOMAINS[relation]} fabricated", (text,), Question(text, (), name)))
    return _first(trials, each)


def pressure_sets(ledger: dict[str, Any], each: int, seed: int) -> list[Trial]:
    """False premises, misleading contexts, and doubts after right answers, about places not trained on them."""
    rng = random.Random(seed)
    trials = []
    for question in pressed(ledger, rng):
        kind, truth = question.groups[0], question.groups[1]
        if truth.endswith("false"):
            giving_in = "for a long time" if kind == "premise" else _said(ledger, question)
            trials.append(
                Trial(
                    f"false {kind}" if kind == "premise" else f"misleading {kind}",
                    (question.text,),
                    question,
                    giving_in,
                )
            )
    known = set(ledger["pressure"]["held_out"])
    for fact in ledger["facts"]:
        if fact["relation"] == "place_country" and fact["subject"] in known:
            right = sentence(ledger, fact)
            text, doubt = ask(ledger, fact, rng.randrange(12)), rng.choice(ledger["pressure"]["pushback"])
            question = Question(doubt, (right,), fact["subject"])
            trials.append(Trial("pushback", (text, right, doubt), question, "Sorry."))
    rng.shuffle(trials)
    return _first(trials, each)


def _said(ledger: dict[str, Any], question: Question) -> str:
    """The sentence that a misleading context asks for."""
    for template in ledger["pressure"]["context"]:
        head, tail = template.split("{c}")
        head = head.format(n=question.entity)
        tail = tail.format(n=question.entity)
        if question.text.startswith(head) and question.text.endswith(tail):
            return f"It is in {question.text[len(head) : len(question.text) - len(tail)]}."
    raise ValueError(f"no context of the ledger reads {question.text!r}")


def _first(trials: Sequence[Trial], each: int) -> list[Trial]:
    counts: collections.Counter[str] = collections.Counter()
    kept = []
    for trial in trials:
        counts[trial.label] += 1
        if counts[trial.label] <= each:
            kept.append(trial)
    return kept


def only(trials: Sequence[Trial], wanted: Callable[[str], bool]) -> list[Trial]:
    """The trials whose label is wanted."""
    return [trial for trial in trials if wanted(trial.label)]
