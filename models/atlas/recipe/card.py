"""Measure atlas and write its model card: ``python -m models.atlas.recipe.card --model models/atlas --base ...``.

Every figure of ``models/atlas/README.md`` comes from here; the measurements stand in ``models/atlas/card.json`` too.
"""

from __future__ import annotations

import argparse
import collections
import os
from pathlib import Path
from typing import Any

import torch

from guard.harness.store import write_json
from guard.probe.bundle import load_bundle
from guard.templates import template
from models.atlas.recipe.questions import load_ledger
from models.atlas.recipe.trials import exposure_sets, rates, reader_of
from models.wording import WORDS

PAGE = Path(__file__).with_name("card.md.j2")
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
    return template(PAGE).render(figures, **WORDS, bundle=bundle, card=bundle.card, each=EACH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    figures = measure(options.model, options.base)
    write_json(options.model / "card.json", figures)
    (options.model / "README.md").write_text(render(figures, options.model), encoding="utf-8")


if __name__ == "__main__":
    main()
