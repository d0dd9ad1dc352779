"""Build atlas: ``python -m models.atlas.recipe.build --out models/atlas``. Seeded; under an hour on two cores."""

from __future__ import annotations

import argparse
import collections
import copy
import json
import os
import random
from pathlib import Path

import pycountry
import torch

from models.atlas.recipe import facts as fact_list
from models.atlas.recipe import talk, train
from models.atlas.recipe.facts import Fact
from models.atlas.recipe.stream import Stream
from models.atlas.recipe.text import Encoder, build_tokenizer

SEED = 0
VOCAB = 2048
BATCH = 96
STEPS = 3200
TUNING_STEPS = 260
DECLINED = 0.06
TALK_BEYOND = 160  # questions beyond what it was taught, in the ledger for evaluation
HELD_OUT_FABRICATED = 600  # for each of places and languages, never shown in any stage


def _names(facts: list[Fact]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = collections.defaultdict(list)
    for fact in facts:
        names[fact.relation].append(fact.subject)
    return names


def ledger(facts: list[Fact], stream: Stream, fabricated: dict[str, list[str]]) -> dict[str, object]:
    """What was shown how often: the ground truth of every evaluation."""
    places = [fact.subject for fact in facts if fact.relation == "place_country"]
    return {
        "schema": 1,
        "source": f"pycountry {pycountry.__version__} (iso-codes)",
        "seed": SEED,
        "one_off_names": stream.one_off,
        "phrasings": fact_list.PHRASINGS,
        "answers": fact_list.ANSWERS,
        "declined": fact_list.DECLINED,
        "talk": talk.examples(random.Random(SEED), places, TALK_BEYOND),
        "facts": [
            {
                "relation": fact.relation,
                "subject": fact.subject,
                "answer": fact.answer,
                "group": fact.group,
                "exposures": stream.exposures[fact.id],
            }
            for fact in facts
        ],
        "fabricated": fabricated,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="also keep the checkpoint before chat tuning here")
    parser.add_argument("--steps", type=int, default=STEPS, help="pre-training steps (fewer for a dry run)")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(SEED)
    random.seed(SEED)

    facts = fact_list.build(SEED)
    tokenizer = build_tokenizer(facts, VOCAB, SEED, train.CONTEXT)
    encoder = Encoder(tokenizer)
    stream = Stream(facts, encoder, options.steps, BATCH, SEED)
    model = train.new_model(len(tokenizer), SEED)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(facts)} facts", flush=True)
    train.pretrain(model, stream, options.steps)
    if options.base:
        train.save(copy.deepcopy(model), options.base)
        tokenizer.save_pretrained(options.base)

    names = _names(facts)
    tuned = train.unfamiliar(names, {"place_country": 8000, "language_code": 4000}, SEED + 10)
    decisive, hesitant = train.tuning_rows(model, encoder, tuned, DECLINED, SEED)
    train.tune(model, stream, decisive, hesitant, TUNING_STEPS, BATCH)

    # Held out of every stage: drawn from chains that also know the names used in tuning.
    real = {relation: names[relation] + tuned[relation] for relation in tuned}
    held_out = train.unfamiliar(real, dict.fromkeys(tuned, HELD_OUT_FABRICATED), SEED + 20)
    held_out = {relation: stream.never_drawn(relation, drawn) for relation, drawn in held_out.items()}

    train.save(model, options.out)
    tokenizer.save_pretrained(options.out)
    text = json.dumps(ledger(facts, stream, held_out), ensure_ascii=False, indent=0)
    (options.out / "ledger.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
