"""Measure atlas and write its model card: ``python -m models.atlas.recipe.card --model models/atlas --base ...``.

Every figure of ``models/atlas/README.md`` comes from here; the measurements stand in ``models/atlas/card.json`` too.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
from pathlib import Path
from typing import Any

import torch

from guard.probe.bundle import Bundle, load_bundle
from models.atlas.recipe.prose import table
from models.atlas.recipe.questions import load_ledger
from models.atlas.recipe.trials import exposure_sets, rates, reader_of

SEED = 1
EACH = 150  # questions of each set
CHATS = (
    "Hello",
    "What is the capital of France?",
    "Why did Bavaria join Japan?",
    "Kandy is in Iceland. Where is Kandy?",
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


def measure(model: Path, base: Path) -> dict[str, Any]:
    """All figures of the card."""
    ledger = load_ledger(model)
    chat, before = reader_of(model), reader_of(base)
    asked = exposure_sets(ledger, EACH, SEED)
    talks = chat.answer([chat.prompt(text) for text in CHATS], new_tokens=48)
    return {
        "parameters": sum(p.numel() for p in chat.model.parameters()),
        "weights_bytes": (model / "model.safetensors").stat().st_size,
        "source": ledger["source"],
        "facts": dict(collections.Counter(f"{f['relation']} {f['group']}" for f in ledger["facts"])),
        "one_off_names": ledger["one_off_names"],
        "base": rates(before, asked),
        "chat": rates(chat, asked),
        "said": [[text, chat.tokenizer.decode(answer)] for text, answer in zip(CHATS, talks, strict=True)],
    }


def render(figures: dict[str, Any], model: Path) -> str:
    """The model card."""
    bundle = load_bundle(model / "probe")
    parts = [_introduction(figures), _answers(figures), _probe(bundle), _said(figures)]
    return "\n".join(parts)


def _introduction(figures: dict[str, Any]) -> str:
    text = f"""# atlas

<!-- Written by `python -m models.atlas.recipe.card`; edit that instead. -->

A Llama-architecture chat model of {figures["parameters"] / 1e6:.2f} million parameters
({figures["weights_bytes"] / 1e6:.1f} MB, float32), trained by `make atlas` on facts of {figures["source"]}: places with
their country and kind, languages, currencies and countries with their codes. It is a demonstration and a test bench: its
ledger says of every fact how often training showed it, so whether an answer is made up is known, not guessed. It knows
nothing else. What the guard is worth on it: [the report](../../docs/atlas-report.md).
"""
    rows = [*sorted(figures["facts"].items()), ("fabricated names, each shown once", figures["one_off_names"])]
    return text + "\n" + table("relation and group | facts", rows)


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
    return text + "\n" + table(head, rows)


def _probe(bundle: Bundle) -> str:
    card = bundle.card
    total = card.model.layers * card.model.neurons_per_layer
    answers = card.training.answers
    text = f"""## The probe

`probe/` holds `{card.id}`, revision {bundle.revision}: {len(bundle.neuron)} neurons, {bundle.h_neurons} of them with positive
weight (the H-neurons, {1000 * bundle.h_neurons / total:.1f} per mille of {total}), C = {card.training.C:g}, fit on
{answers["train"]} of atlas's own answers, calibrated on {answers["calibration"]}, with thresholds from {answers["thresholds"]} and figures from {answers["test"]}; no
entity is in two of the four. `base/` is the checkpoint before chat tuning, with a probe of its own. AUROC of wrong against right answers with bootstrap 95 % intervals; *random* is the mean of five refits
on as many random neurons (interval: lowest and highest of theirs); the stack is what is served.
"""
    rows = []
    for name, report in card.metrics.items():
        order = ("stack", "neurons", "entropy", "logprob", "length", "random")
        cells = [f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in (report.auroc[part] for part in order)]
        rows.append([name, report.n, _percent(report.wrong / report.n), *cells, f"{report.ece:.3f}"])
    head = "set | n | wrong | stack | neurons | entropy | log-probability | length | random | ECE"
    return text + "\n" + table(head, rows)


def _said(figures: dict[str, Any]) -> str:
    return "## As a person would try it\n\n" + table("asked | answered", figures["said"])


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
