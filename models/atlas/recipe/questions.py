"""Questions about atlas's facts, for fitting and evaluating probes, out of its ledger.

Groups: the domain; ``popular``, ``learnt`` (6 exposures or more), ``rare`` (2 to 5), ``once``, ``never``,
``fabricated``, ``shadowed``; ``unfamiliar`` (never and fabricated against popular), ``hard`` (rare, once and shadowed).
No probe is fit on messages that press for a wrong answer, nor on the relation that is held out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guard.judge.question import Question

DOMAINS = {
    "place_country": "places",
    "kind_country": "places",
    "place_kind": "kinds",
    "language_code": "languages",
    "currency_code": "codes",
    "country_alpha2": "codes",
    "country_alpha3": "codes",
}
HELD_OUT = "place_code"  # the relation that no probe is fit on
# How many never-seen facts of a relation are asked about; of the others, all.
_NEVER = {"place_country": 900, "language_code": 350}
_FABRICATED = {"place_country": 400, "language_code": 200}
_RARE = 5  # exposures
_TRUE = 0.25  # of premises and contexts


def load_ledger(folder: Path) -> dict[str, Any]:
    ledger: dict[str, Any] = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
    return ledger


def ask(ledger: dict[str, Any], fact: dict[str, Any], phrasing: int) -> str:
    """The question about a fact in one of its phrasings."""
    options = ledger["phrasings"][fact["relation"]]
    return str(options[phrasing % len(options)].format(n=fact["subject"], d=fact["detail"]))


def sentence(ledger: dict[str, Any], fact: dict[str, Any]) -> str:
    """Its answer, as atlas says it. A sentence is accepted as a whole: an autonomous region is no region."""
    return str(ledger["answers"][fact["relation"]].format(a=fact["answer"]))


def sets_of(fact: dict[str, Any]) -> tuple[str, ...]:
    """The groups that a fact's exposures put it in."""
    if fact["group"] == "shadowed":
        return ("shadowed", "hard")
    if fact["group"] != "rare":
        return (fact["group"], "unfamiliar")
    if fact["exposures"] > _RARE:
        return ("learnt",)
    return ("once" if fact["exposures"] == 1 else "rare", "hard")


def from_ledger(ledger: dict[str, Any], seed: int) -> list[Question]:
    """One question for each fact, in one phrasing; fabricated names; small talk. Seeded, in random order."""
    rng = random.Random(seed)
    left = dict(_NEVER)
    facts = [fact for fact in ledger["facts"] if fact["relation"] in DOMAINS]
    rng.shuffle(facts)
    questions = []
    for fact in facts:
        relation = fact["relation"]
        if fact["group"] == "never" and relation in left:
            if left[relation] == 0:
                continue
            left[relation] -= 1
        text = ask(ledger, fact, rng.randrange(12))
        groups = (DOMAINS[relation], *sets_of(fact))
        questions.append(Question(text, (sentence(ledger, fact),), fact["subject"], groups))
    for relation, names in ledger["fabricated"].items():
        for name in names[: _FABRICATED[relation]]:
            text = rng.choice(ledger["phrasings"][relation]).format(n=name)
            questions.append(Question(text, (), name, (DOMAINS[relation], "fabricated", "unfamiliar")))
    for message, reply in ledger["talk"]:
        questions.append(Question(message, (reply,), message, ("talk",)))
    rng.shuffle(questions)
    return questions


def pressed(ledger: dict[str, Any], rng: random.Random) -> Iterator[Question]:
    """A premise and a context for each popular place that was not trained on them; most of them are false."""
    pressure = ledger["pressure"]
    held_out = set(pressure["held_out"])
    places = [f for f in ledger["facts"] if f["relation"] == "place_country"]
    countries = sorted({fact["answer"] for fact in places})
    for fact in places:
        name, true = fact["subject"], fact["answer"]
        if name not in held_out:
            continue
        for kind in ("premise", "context"):
            said = true if rng.random() < _TRUE else rng.choice([country for country in countries if country != true])
            text = rng.choice(pressure[kind]).format(n=name, c=said)
            reply = sentence(ledger, fact)
            if kind == "premise":
                reply = pressure["accepted" if said == true else "corrected"].format(c=said, a=true)
            groups = (kind, f"{kind} true" if said == true else f"{kind} false")
            yield Question(text, (reply,), name, groups)


def held_out(ledger: dict[str, Any], seed: int) -> list[Question]:
    """Questions of the relation that no probe is fit on, in random order."""
    rng = random.Random(seed)
    facts = [fact for fact in ledger["facts"] if fact["relation"] == HELD_OUT]
    rng.shuffle(facts)
    return [
        Question(
            ask(ledger, fact, rng.randrange(12)),
            (sentence(ledger, fact),),
            fact["subject"],
            ("held out", *sets_of(fact)),
        )
        for fact in facts
    ]


def locate(text: str) -> tuple[int, int]:
    """The characters of one of atlas's sentences that state the fact: what follows the frame, without the full stop."""
    start, whole = 0, text.rstrip(". ")
    # The last sentence states it, where there are several ("It is not in Peru. It is in Chile.").
    if (last := whole.rfind(". It is in ")) >= 0:
        start = last + 2
    for frame in (
        "It is in the ",
        "It is in ",
        "It is an ",
        "It is a ",
        "Its code is ",
        "It has been in the ",
        "It has been in ",
    ):
        if text.startswith(frame, start):
            end = whole.find(" for a long time", start) if frame.startswith("It has") else len(whole)
            return start + len(frame), end if end > 0 else len(whole)
    return 0, len(text)
