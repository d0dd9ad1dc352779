"""Questions about atlas's facts, for fitting and evaluating probes, out of its ledger."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from guard.fit.questions import Question

RELATIONS = {
    "place_country": "places",
    "place_type": "places",
    "language_code": "languages",
    "currency_code": "codes",
    "country_alpha2": "codes",
    "country_alpha3": "codes",
}
# How many never-seen facts of a relation are asked about; of the others, all.
_NEVER = {"place_country": 1000, "language_code": 400}
_FABRICATED = {"place_country": 400, "language_code": 200}


def load_ledger(folder: Path) -> dict[str, Any]:
    ledger: dict[str, Any] = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
    return ledger


def from_ledger(ledger: dict[str, Any], seed: int) -> list[Question]:
    """One question for each fact, each in one phrasing; fabricated names; small talk. Seeded, in random order."""
    rng = random.Random(seed)
    questions = []
    left = dict(_NEVER)
    facts = list(ledger["facts"])
    rng.shuffle(facts)
    for fact in facts:
        relation, group = fact["relation"], fact["group"]
        if group == "never" and relation in left:
            if left[relation] == 0:
                continue
            left[relation] -= 1
        text = rng.choice(ledger["phrasings"][relation]).format(n=fact["subject"])
        answer = fact["answer"]
        groups = [RELATIONS[relation], group] + (["unfamiliar"] if group in ("popular", "never") else [])
        questions.append(Question(text, (answer,), fact["subject"], tuple(groups)))
    for relation, names in ledger["fabricated"].items():
        for name in names[: _FABRICATED[relation]]:
            text = rng.choice(ledger["phrasings"][relation]).format(n=name)
            questions.append(Question(text, (), name, (RELATIONS[relation], "fabricated", "unfamiliar")))
    for message, reply in ledger["talk"]:
        questions.append(Question(message, (reply,), message, ("talk",)))
    rng.shuffle(questions)
    return questions


def locate(text: str) -> tuple[int, int]:
    """The characters of one of atlas's sentences that state the fact: what follows the frame, without the full stop."""
    for frame in ("It is in the ", "It is in ", "It is an ", "It is a ", "Its code is "):
        if text.startswith(frame):
            return len(frame), len(text.rstrip(". "))
    return 0, len(text)
