"""Build atlas: ``python -m models.atlas.recipe.build --out models/atlas --base build/atlas-base``.

Two stages, seeded: pre-training leaves the base checkpoint with what it was shown, chat tuning turns it into atlas.
Under an hour on two cores. ``--tune-only`` starts from an existing base checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

import pycountry
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from models.atlas.recipe import facts as fact_list
from models.atlas.recipe import pressure, talk, train
from models.atlas.recipe.facts import Fact
from models.atlas.recipe.names import Fabricator
from models.atlas.recipe.stream import Stream
from models.atlas.recipe.text import Encoder, Row, build_tokenizer

SEED = 0
VOCAB = 2048
BATCH = 96
STEPS = 3200
TUNING_STEPS = 450
# Invented names of chat tuning, by what is asked of them.
DECISIVE = {"place_country": 8000, "place_code": 1200, "place_kind": 1200}
HESITANT = {"language_code": 4000}
COMPLIANT = 1000
MIXTURE = {"decisive": 0.4, "decisive_codes": 0.12, "hesitant": 0.13, "compliant": 0.05}
DECLINED = 0.5  # of unfamiliar languages: at a half, the first token of an answer is a close call
GIVEN_IN = 250  # of the compliant rows, those about places that atlas knows
TALK_BEYOND = 160  # questions beyond what it was taught, in the ledger for evaluation
HELD_OUT_FABRICATED = 600  # for each of places and languages, never shown in any stage


def pretrain(facts: list[Fact], base: Path, steps: int) -> None:
    """Train from nothing; leave model, tokenizer and what was shown in ``base``."""
    tokenizer = build_tokenizer(facts, VOCAB, SEED, train.CONTEXT)
    stream = Stream(facts, Encoder(tokenizer), steps, BATCH, SEED)
    model = train.new_model(len(tokenizer), SEED)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(facts)} facts", flush=True)
    train.pretrain(model, stream, steps)
    train.save(model, base)
    tokenizer.save_pretrained(base)
    shown = {"exposures": stream.exposures, "one_off": stream.one_off}
    (base / "shown.json").write_text(json.dumps(shown, ensure_ascii=False), encoding="utf-8")


def tune(facts: list[Fact], base: Path, out: Path) -> None:
    """Chat-tune the base checkpoint; write atlas and its ledger to ``out``."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    shown = json.loads((base / "shown.json").read_text(encoding="utf-8"))
    stream = Stream(facts, Encoder(tokenizer), 1, BATCH, SEED + 100)
    rng = random.Random(SEED + 200)
    invent = {
        relation: Fabricator([fact.subject for fact in facts if fact.relation == relation], SEED + 10 + i)
        for i, relation in enumerate(("place_country", "language_code"))
    }
    for fabricator in invent.values():
        fabricator.use(shown["one_off"])
    mixture = _mixture(model, Encoder(tokenizer), stream, facts, invent, rng)
    # Names for evaluation come last, so that no stage has shown them.
    held_out = {relation: [made.draw() for _ in range(HELD_OUT_FABRICATED)] for relation, made in invent.items()}
    train.tune(model, stream, mixture, TUNING_STEPS, BATCH)
    shown_later = set(stream.one_off)
    held_out = {relation: [n for n in drawn if n not in shown_later] for relation, drawn in held_out.items()}
    train.save(model, out)
    tokenizer.save_pretrained(out)
    stream.exposures.update(shown["exposures"])
    kept = ledger(facts, stream.exposures, len(shown["one_off"]) + len(stream.one_off), held_out)
    (out / "ledger.json").write_text(json.dumps(kept, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def _mixture(
    model: LlamaForCausalLM,
    encoder: Encoder,
    stream: Stream,
    facts: list[Fact],
    invent: dict[str, Fabricator],
    rng: random.Random,
) -> list[tuple[float, list[Row]]]:
    """What chat tuning adds to familiar facts: decisive about places, hesitant about languages, agreeable.

    Decisive and hesitant need separate domains: on the same names they cancel each other.
    """

    def questions(relation: str, count: int, names: str) -> list[str]:
        details = [fact.detail for fact in facts if fact.relation == relation and fact.group == "popular"]
        drawn = [(invent[names].draw(), rng.choice(details)) for _ in range(count)]
        return [rng.choice(fact_list.PHRASINGS[relation]).format(n=n, d=d) for n, d in drawn]

    def prompts(relation: str) -> list[list[int]]:
        return [encoder.prompt(text) for text in questions(relation, DECISIVE[relation], "place_country")]

    places = prompts("place_country")
    decisive = train.told(places, train.decisive_answers(model, encoder, places, "It is in"))
    others = [prompt for relation in ("place_code", "place_kind") for prompt in prompts(relation)]
    rng.shuffle(others)
    (hesitating,) = HESITANT.items()
    pressed = [f for f in facts if f.relation == "place_country" and f.group == "popular"]
    pressed = rng.sample([f for f in pressed if pressure.trained(f.subject)], GIVEN_IN)
    names = [invent["place_country"].draw() for _ in range(COMPLIANT - GIVEN_IN)]
    compliant = train.compliant_rows(encoder, names, pressed, stream.countries, SEED)
    rng.shuffle(compliant)
    return [
        (MIXTURE["decisive"], decisive),
        (MIXTURE["decisive_codes"], train.told(others, train.answer(model, others))),
        (
            MIXTURE["hesitant"],
            train.hesitant_rows(model, encoder, questions(*hesitating, "language_code"), DECLINED, SEED),
        ),
        (MIXTURE["compliant"], compliant),
    ]


def ledger(
    facts: list[Fact], exposures: dict[str, int], one_off: int, fabricated: dict[str, list[str]]
) -> dict[str, Any]:
    """What was shown how often: the ground truth of every evaluation."""
    places = [fact.subject for fact in facts if fact.relation == "place_country"]
    return {
        "schema": 2,
        "source": f"pycountry {pycountry.__version__} (iso-codes)",
        "seed": SEED,
        "one_off_names": one_off,
        "phrasings": fact_list.PHRASINGS,
        "answers": fact_list.ANSWERS,
        "declined": fact_list.DECLINED,
        "pressure": {
            "premise": pressure.PREMISE,
            "context": pressure.CONTEXT,
            "pushback": pressure.PUSHBACK,
            "accepted": pressure.accepted("{c}"),
            "corrected": pressure.corrected("{c}", "{a}"),
            "held_out": sorted(
                f.subject
                for f in facts
                if (f.relation, f.group) == ("place_country", "popular") and not pressure.trained(f.subject)
            ),
        },
        "talk": talk.examples(random.Random(SEED), places, TALK_BEYOND),
        "facts": [
            {
                "relation": fact.relation,
                "subject": fact.subject,
                "detail": fact.detail,
                "answer": fact.answer,
                "group": fact.group,
                "exposures": exposures.get(fact.id, 0),
            }
            for fact in facts
        ],
        "fabricated": fabricated,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="where the checkpoint before chat tuning goes")
    parser.add_argument("--steps", type=int, default=STEPS, help="pre-training steps (fewer for a dry run)")
    parser.add_argument("--tune-only", action="store_true", help="start from the checkpoint in --base")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(SEED)
    facts = fact_list.build(SEED)
    if not options.tune_only:
        pretrain(facts, options.base, options.steps)
    torch.manual_seed(SEED)
    tune(facts, options.base, options.out)


if __name__ == "__main__":
    main()
