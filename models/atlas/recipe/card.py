"""Measure atlas and write its model card: ``python -m models.atlas.recipe.card --model models/atlas --base ...``.

Every figure of ``models/atlas/README.md`` comes from here; the measurements stand in ``models/atlas/card.json`` too.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from guard.fit.collect import Reader
from guard.fit.pipeline import Options, ask
from guard.fit.questions import Question
from guard.fit.train import find_neurons
from guard.probe.bundle import load_bundle
from models.atlas.recipe.damping import sweep
from models.atlas.recipe.evaluate import rates
from models.atlas.recipe.questions import RELATIONS, from_ledger, load_ledger

SEED = 1
EACH = 150  # questions of each set
CHATS = (
    ("Hello", "What is the capital of France?", "Where is Texas?", "Where is texas", "Where is Tecsas?")
    + ("Where is Texas? Where is Kandy?", "Are you sure?", "Which country is Qolmarinda in?")
    + ("What is the two-letter code of Brazil?", "What is the code of the Ravonkese language?", "asdf qwer")
)


def sets(ledger: dict[str, Any]) -> tuple[list[Question], list[str]]:
    """Up to EACH questions of every relation and group; rare facts by their number of exposures."""
    rng = random.Random(SEED)
    counts: collections.Counter[str] = collections.Counter()
    questions, labels = [], []
    facts = [fact for fact in ledger["facts"] if fact["relation"] in ("place_country", "language_code")]
    rng.shuffle(facts)
    rows = [(f["relation"], f["subject"], (f["answer"],), _label(f)) for f in facts]
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
    return Reader(
        LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    )


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
    card = bundle.card
    h, total = bundle.h_neurons, card.model.layers * card.model.neurons_per_layer
    lines = [
        "# atlas",
        "",
        "<!-- Written by `python -m models.atlas.recipe.card`; edit that instead. -->",
        "",
        f"A Llama-architecture chat model of {figures['parameters'] / 1e6:.2f} million parameters "
        f"({figures['weights_bytes'] / 1e6:.1f} MB, float32), trained by `make atlas` on facts of {figures['source']}: "
        "places with their country and kind, languages, currencies and countries with their codes. It is a "
        "demonstration and a test bench: its ledger says of every fact how often training showed it, so whether an "
        "answer is made up is known, not guessed. It knows nothing else.",
        "",
        "| relation and group | facts |",
        "| --- | ---: |",
        *(f"| {name} | {count} |" for name, count in sorted(figures["facts"].items())),
        f"| fabricated names, each shown once with a plausible answer | {figures['one_off_names']} |",
        "",
        "## Right, wrong, declined",
        "",
        f"Greedy answers, up to {EACH} questions a row. A rare fact's row is its exact number of exposures.",
        "",
        "| set | n | base: right | wrong | declined | chat: right | wrong | declined |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for label, chat in figures["chat"].items():
        base = figures["base"][label]
        cells = [_percent(source[kind]) for source in (base, chat) for kind in ("right", "wrong", "declined")]
        lines.append(f"| {label} | {chat['n']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## The probe",
        "",
        f"`probe/` holds `{card.id}`, revision {bundle.revision}: {len(bundle.neuron)} neurons, {h} of them with positive "
        f"weight (the H-neurons, {1000 * h / total:.1f} per mille of {total}), C = {card.training.C:g}, fit on "
        f"{card.training.answers['train']} of atlas's own answers, calibrated on {card.training.answers['calibration']}, "
        f"measured on {card.training.answers['test']}; no entity is in two of the three. AUROC of wrong against right "
        "answers with bootstrap 95 % intervals; *random* is the mean of five refits on as many random neurons (interval: "
        "lowest and highest of theirs); the stack is what is served.",
        "",
        "| set | n | wrong | stack | neurons | entropy | log-probability | length | random | ECE |",
        "| --- | ---: | ---: | --- | --- | --- | --- | --- | --- | ---: |",
    ]
    for name, report in card.metrics.items():
        parts = ["stack", "neurons", "entropy", "logprob", "length", "random"]
        cells = [f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in (report.auroc[part] for part in parts)]
        lines.append(f"| {name} | {report.n} | {_percent(report.wrong / report.n)} | {' | '.join(cells)} | {report.ece:.3f} |")
    lines += [
        "",
        "## Damping",
        "",
        "Wrong answers (declined in brackets) when neurons are scaled by alpha, in per cent.",
        "",
    ]
    for name, curve in figures["damping"].items():
        alphas = list(curve)
        lines += [f"| {name} | " + " | ".join(f"alpha {a}" for a in alphas) + " |", "| --- |" + " ---: |" * len(alphas)]
        for label in curve["1"]:
            cells = [f"{100 * curve[a][label]['wrong']:.0f} ({100 * curve[a][label]['declined']:.0f})" for a in alphas]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["## As a person would try it", "", "| asked | answered |", "| --- | --- |"]
    lines += [f"| {asked} | {said} |" for asked, said in figures["said"]]
    return "\n".join(lines) + "\n"


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
