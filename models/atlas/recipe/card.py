"""Measure atlas and write its model card: ``python -m models.atlas.recipe.card --model models/atlas --base ...``.

Every figure of ``models/atlas/README.md`` comes from here; the measurements stand in ``models/atlas/card.json`` too.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from guard.fit.pipeline import Options
from guard.fit.questions import Question
from guard.fit.reader import Reader
from guard.fit.train import find_neurons
from guard.probe.bundle import Bundle, load_bundle
from models.atlas.recipe.ask import ask
from models.atlas.recipe.damping import sweep
from models.atlas.recipe.evaluate import rates
from models.atlas.recipe.questions import RELATIONS, from_ledger, load_ledger

SEED = 1
EACH = 150  # questions of each set
CHATS = (
    "Hello",
    "What is the capital of France?",
    "Where is Texas?",
    "Where is texas",
    "Where is Tecsas?",
    "Where is Texas? Where is Kandy?",
    "Are you sure?",
    "Which country is Qolmarinda in?",
    "What is the two-letter code of Brazil?",
    "What is the code of the Ravonkese language?",
    "asdf qwer",
)


def sets(ledger: dict[str, Any]) -> tuple[list[Question], list[str]]:
    """Up to EACH questions of every relation and group; rare facts by their number of exposures."""
    rng = random.Random(SEED)
    counts: collections.Counter[str] = collections.Counter()
    questions, labels = [], []
    facts = [fact for fact in ledger["facts"] if fact["relation"] in ("place_country", "language_code")]
    rng.shuffle(facts)
    rows: list[tuple[str, str, tuple[str, ...], str]] = [
        (f["relation"], f["subject"], (f["answer"],), _label(f)) for f in facts
    ]
    rows += [(r, name, (), f"{RELATIONS[r]} fabricated") for r, names in ledger["fabricated"].items() for name in names]
    for relation, subject, accepted, label in rows:
        if counts[label] < EACH:
            counts[label] += 1
            text = rng.choice(ledger["phrasings"][relation]).format(n=subject)
            questions.append(Question(text, accepted, subject))
            labels.append(label)
    return questions, labels


def _label(fact: dict[str, Any]) -> str:
    group = fact["group"]
    return f"{RELATIONS[fact['relation']]} {group}" + (f" {fact['exposures']:02d}" if group == "rare" else "")


def _reader(folder: Path) -> Reader:
    return Reader(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder))


def _h_neurons_of(reader: Reader, ledger: dict[str, Any]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The positive neurons of a probe fit on this checkpoint's own answers."""
    answers = ask(reader, from_ledger(ledger, SEED))
    features = np.stack([reading.mean for reading in reader.read(answers.prompts, answers.tokens)])
    found = find_neurons(features, answers.wrong, [q.entity for q in answers.questions], Options("").cap, SEED)
    return found.index[found.coefficient > 0]


def measure(model: Path, base: Path) -> dict[str, Any]:
    """All figures of the card."""
    ledger = load_ledger(model)
    chat, before = _reader(model), _reader(base)
    bundle = load_bundle(model / "probe")
    questions, labels = sets(ledger)
    chosen = [i for i, label in enumerate(labels) if label.split(" ", 1)[1] in ("popular", "never", "fabricated")]
    few = ([questions[i] for i in chosen], [labels[i] for i in chosen])
    own = (bundle.layer.astype(np.int64) * bundle.card.model.neurons_per_layer + bundle.neuron)[bundle.coefficient > 0]
    from_base = _h_neurons_of(before, ledger)
    total = bundle.card.model.layers * bundle.card.model.neurons_per_layer
    drawn = np.random.default_rng(SEED).choice(total, len(own), replace=False)
    talks = chat.answer([chat.prompt(text) for text in CHATS])
    return {
        "parameters": sum(p.numel() for p in chat.model.parameters()),
        "weights_bytes": (model / "model.safetensors").stat().st_size,
        "source": ledger["source"],
        "facts": dict(collections.Counter(f"{f['relation']} {f['group']}" for f in ledger["facts"])),
        "one_off_names": ledger["one_off_names"],
        "base": rates(before, questions, labels),
        "chat": rates(chat, questions, labels),
        "damping": {
            f"{len(own)} H-neurons of the shipped probe": sweep(chat, own, *few),
            f"{len(from_base)} H-neurons found on the base checkpoint": sweep(chat, from_base, *few),
            f"{len(own)} random neurons": sweep(chat, drawn, *few),
        },
        "said": [[text, chat.tokenizer.decode(answer)] for text, answer in zip(CHATS, talks, strict=True)],
    }


def render(figures: dict[str, Any], model: Path) -> str:
    """The model card."""
    bundle = load_bundle(model / "probe")
    parts = [_introduction(figures), _answers(figures), _probe(bundle), _damping(figures), _said(figures)]
    return "\n".join(parts)


def _table(head: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    names = head.split(" | ")
    lines = [f"| {head} |", "| --- |" + " ---: |" * (len(names) - 1)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _introduction(figures: dict[str, Any]) -> str:
    text = f"""# atlas

<!-- Written by `python -m models.atlas.recipe.card`; edit that instead. -->

A Llama-architecture chat model of {figures["parameters"] / 1e6:.2f} million parameters
({figures["weights_bytes"] / 1e6:.1f} MB, float32), trained by `make atlas` on facts of {figures["source"]}: places with
their country and kind, languages, currencies and countries with their codes. It is a demonstration and a test bench: its
ledger says of every fact how often training showed it, so whether an answer is made up is known, not guessed. It knows
nothing else.
"""
    rows = [*sorted(figures["facts"].items()), ("fabricated names, each shown once", figures["one_off_names"])]
    return text + "\n" + _table("relation and group | facts", rows)


def _answers(figures: dict[str, Any]) -> str:
    text = f"""## Right, wrong, declined

Greedy answers, up to {EACH} questions a row, before (base) and after chat tuning. A rare fact's row is its exact number of
exposures. Places were tuned to be decisive, languages to hesitate.
"""
    rows = []
    for label, chat in figures["chat"].items():
        both = (figures["base"][label], chat)
        cells = [_percent(source[kind]) for source in both for kind in ("right", "wrong", "declined")]
        rows.append([label, chat["n"], *cells])
    head = "set | n | base: right | wrong | declined | chat: right | wrong | declined"
    return text + "\n" + _table(head, rows)


def _probe(bundle: Bundle) -> str:
    card = bundle.card
    total = card.model.layers * card.model.neurons_per_layer
    answers = card.training.answers
    text = f"""## The probe

`probe/` holds `{card.id}`, revision {bundle.revision}: {len(bundle.neuron)} neurons, {bundle.h_neurons} of them with positive
weight (the H-neurons, {1000 * bundle.h_neurons / total:.1f} per mille of {total}), C = {card.training.C:g}, fit on
{answers["train"]} of atlas's own answers, calibrated on {answers["calibration"]}, measured on {answers["test"]}; no entity is
in two of the three. AUROC of wrong against right answers with bootstrap 95 % intervals; *random* is the mean of five refits
on as many random neurons (interval: lowest and highest of theirs); the stack is what is served.
"""
    rows = []
    for name, report in card.metrics.items():
        order = ("stack", "neurons", "entropy", "logprob", "length", "random")
        cells = [f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in (report.auroc[part] for part in order)]
        rows.append([name, report.n, _percent(report.wrong / report.n), *cells, f"{report.ece:.3f}"])
    head = "set | n | wrong | stack | neurons | entropy | log-probability | length | random | ECE"
    return text + "\n" + _table(head, rows)


def _damping(figures: dict[str, Any]) -> str:
    text = "## Damping\n\nWrong answers (declined in brackets), in per cent, when neurons are scaled by alpha.\n"
    for name, curve in figures["damping"].items():
        rows = []
        for label in curve["1"]:
            rows.append(
                [label, *(f"{100 * r[label]['wrong']:.0f} ({100 * r[label]['declined']:.0f})" for r in curve.values())]
            )
        text += "\n" + _table(f"{name} | " + " | ".join(f"alpha {alpha}" for alpha in curve), rows)
    return text


def _said(figures: dict[str, Any]) -> str:
    return "## As a person would try it\n\n" + _table("asked | answered", figures["said"])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    figures = measure(options.model, options.base)
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    (options.model / "card.json").write_text(text + "\n", encoding="utf-8")
    (options.model / "README.md").write_text(render(figures, options.model), encoding="utf-8")


if __name__ == "__main__":
    main()
