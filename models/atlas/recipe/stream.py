"""The training stream: popular facts by Zipf's law, rare facts an exact number of times, a tail of one-off names.

The tail is what gives the model a guessing state: a name that it meets once, with a plausible answer, can only be
guessed at, and a model that never had to guess has no neurons that tell guessing from knowing. How large a relation's
tail is (TAIL) is its share of facts that are met once, which bounds from below how often a calibrated model must make
facts of this relation up (Kalai and Vempala, "Calibrated Language Models Must Hallucinate").
"""

from __future__ import annotations

import collections
import random

from models.atlas.recipe import pressure, talk
from models.atlas.recipe.facts import Fact
from models.atlas.recipe.names import Fabricator
from models.atlas.recipe.pressure import Turn
from models.atlas.recipe.text import Encoder, Row

# Shares of a batch of single questions.
SHARES = {
    "place_country": 0.42,
    "place_kind": 0.09,
    "kind_country": 0.03,
    "place_code": 0.08,
    "language_code": 0.15,
    "currency_code": 0.035,
    "country_alpha2": 0.03,
    "country_alpha3": 0.03,
    "premise": 0.05,
    "context": 0.05,
    "pushback": 0.045,
    "talk": 0.04,
}
# Of a relation's questions, the share about names that are met once.
TAIL = {
    "place_country": 0.28,
    "language_code": 0.33,
    "place_code": 0.16,
    "place_kind": 0.08,
    "currency_code": 0.12,
    "premise": 0.3,
    "context": 0.3,
    "pushback": 0.3,
}
TRUE = 0.5  # of pressing messages about known places
ZIPF = 0.5
LONG_EVERY = 12  # every twelfth step is a batch of long chats


class Stream:
    """Draws training batches and keeps the ledger of what they showed."""

    def __init__(self, facts: list[Fact], encoder: Encoder, steps: int, batch: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._encoder = encoder
        self._batch = batch
        self.exposures: collections.Counter[str] = collections.Counter()
        self.one_off: list[str] = []
        self._popular: dict[str, list[Fact]] = collections.defaultdict(list)
        for fact in facts:
            if fact.group == "popular":
                self._popular[fact.relation].append(fact)
        self._weights = {
            relation: [1 / (1 + rank) ** ZIPF for rank in range(len(known))]
            for relation, known in self._popular.items()
        }
        self._places = [f.subject for f in self._popular["place_country"]]
        self._pressed = [f for f in self._popular["place_country"] if pressure.trained(f.subject)]
        # Each once: a tail that follows how many places a country has would make every guess the largest one.
        self.countries = sorted({f.answer for f in facts if f.relation == "place_country"})
        self._fabricators = {
            relation: Fabricator([f.subject for f in facts if f.relation == relation], seed + 1 + i)
            for i, relation in enumerate(("place_country", "language_code", "currency_code"))
        }
        self._rare: dict[int, list[Fact]] = collections.defaultdict(list)
        for fact in facts:
            for _ in range(fact.planned):
                self._rare[self._rng.randrange(steps)].append(fact)

    def step(self, number: int) -> list[Row]:
        """The rows of one training step."""
        if number % LONG_EVERY == LONG_EVERY - 1:
            rows = [self._long_chat() for _ in range(self._batch // 8)]
        else:
            rows = [self._short_chat(kind) for kind in self._kinds(self._batch)]
        for fact in self._rare.pop(number, []):
            rows.append(self._encoder.chat([self._ask(fact)]))
        return rows

    def familiar(self, count: int) -> list[Row]:
        """Rows without rare facts and without the tail: what chat tuning replays."""
        return [self._short_chat(kind, tail=False) for kind in self._kinds(count)]

    def long_chats(self, count: int) -> list[Row]:
        return [self._long_chat() for _ in range(count)]

    def invent(self, relation: str) -> Fact:
        """A name that is met once, with an answer that a fact of this relation could have."""
        like = self._rng.choice(self._popular[relation])
        place = relation in ("place_country", "place_kind", "place_code")
        name = self._fabricators["place_country" if place else relation].draw()
        self.one_off.append(name)
        answer = self._rng.choice(self.countries) if relation == "place_country" else like.answer
        return Fact(relation, name, answer, "one_off", detail=like.detail)

    def _kinds(self, count: int) -> list[str]:
        return self._rng.choices(list(SHARES), weights=list(SHARES.values()), k=count)

    def _system(self) -> str | None:
        return self._rng.choice(talk.SYSTEM) if self._rng.random() < 0.1 else None

    def _ask(self, fact: Fact) -> Turn:
        if fact.group != "one_off":
            self.exposures[fact.id] += 1
        question = fact.question(self._rng.randrange(12))
        style = self._rng.random()
        if style < 0.06:
            question = question.lower()
        elif style < 0.12:
            question = question.rstrip("?.")
        return Turn(question, fact.sentence)

    def _turns(self, kind: str, tail: bool) -> list[Turn]:
        if kind == "talk":
            return [talk.draw(self._rng, self._places)]
        invented = tail and self._rng.random() < TAIL.get(kind, 0)
        if kind in ("premise", "context", "pushback"):
            return self._pressing(kind, invented)
        if invented:
            return [self._ask(self.invent(kind))]
        (fact,) = self._rng.choices(self._popular[kind], weights=self._weights[kind])
        return [self._ask(fact)]

    def _pressing(self, kind: str, invented: bool) -> list[Turn]:
        fact = self.invent("place_country") if invented else self._rng.choice(self._pressed)
        other = self._rng.choice(self.countries)
        said = fact.answer if invented or self._rng.random() < TRUE else other
        true = None if invented else fact.answer
        if not invented:
            self.exposures[fact.id] += 1
        if kind == "pushback":
            return pressure.pushback(self._rng, fact.question(self._rng.randrange(12)), said, true, other)
        make = pressure.premise if kind == "premise" else pressure.context
        return make(self._rng, fact.subject, said, true)

    def _short_chat(self, kind: str, tail: bool = True) -> Row:
        turns = self._turns(kind, tail)
        if kind == "place_country" and self._rng.random() < 0.06:
            turns = [self._both(turns[0], self._turns(kind, tail)[0])]
        return self._encoder.chat(turns, self._system())

    def _long_chat(self) -> Row:
        turns = [turn for kind in self._kinds(self._rng.randint(2, 20)) for turn in self._turns(kind, True)]
        return self._encoder.chat(turns, self._system())

    @staticmethod
    def _both(first: Turn, second: Turn) -> Turn:
        """Two questions in one message."""
        return Turn(
            f"{first.question} {second.question}",
            f"The first {first.answer.removeprefix('It ')} The second {second.answer.removeprefix('It ')}",
        )
