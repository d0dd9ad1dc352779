"""The training stream: popular facts by Zipf's law, rare facts an exact number of times, a tail of one-off names.

The tail is what gives the model a guessing state: a name that it meets once, with a plausible answer, can only be
guessed at, and a model that never had to guess has no neurons that tell guessing from knowing.
"""

from __future__ import annotations

import collections
import random

from models.atlas.recipe import talk
from models.atlas.recipe.facts import Fact
from models.atlas.recipe.names import Fabricator
from models.atlas.recipe.text import Encoder

Row = tuple[list[int], list[bool]]
Turn = tuple[str, str]

# Shares of a batch of single questions.
SHARES = {
    "place_country": 0.44,
    "place_type": 0.06,
    "language_code": 0.12,
    "currency_code": 0.03,
    "country_alpha2": 0.04,
    "country_alpha3": 0.04,
    "one_off_place": 0.17,
    "one_off_language": 0.06,
    "talk": 0.04,
}
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
        names = {
            relation: [f.subject for f in facts if f.relation == relation]
            for relation in ("place_country", "language_code")
        }
        self._fake_place = Fabricator(names["place_country"], seed + 1)
        self._fake_language = Fabricator(names["language_code"], seed + 2)
        self._rare: dict[int, list[Fact]] = collections.defaultdict(list)
        for fact in facts:
            for _ in range(fact.planned):
                self._rare[self._rng.randrange(steps)].append(fact)

    def step(self, number: int) -> list[Row]:
        """The rows of one training step."""
        if number % LONG_EVERY == LONG_EVERY - 1:
            rows = [self._long_chat() for _ in range(self._batch // 8)]
        else:
            kinds = self._rng.choices(list(SHARES), weights=list(SHARES.values()), k=self._batch)
            rows = [self._short_chat(kind) for kind in kinds]
        for fact in self._rare.pop(number, []):
            rows.append(self._encoder.chat([self._ask(fact)]))
        return rows

    def familiar(self, count: int) -> list[Row]:
        """Rows without rare facts and without the tail: what chat tuning replays."""
        kinds = [kind for kind in SHARES if not kind.startswith("one_off")]
        drawn = self._rng.choices(kinds, weights=[SHARES[kind] for kind in kinds], k=count)
        return [self._short_chat(kind, replay=True) for kind in drawn]

    def long_chats(self, count: int) -> list[Row]:
        return [self._long_chat() for _ in range(count)]

    def _system(self) -> str | None:
        return self._rng.choice(talk.SYSTEM) if self._rng.random() < 0.1 else None

    def _ask(self, fact: Fact) -> Turn:
        self.exposures[fact.id] += 1
        question = fact.question(self._rng.randrange(12))
        style = self._rng.random()
        if style < 0.06:
            question = question.lower()
        elif style < 0.12:
            question = question.rstrip("?.")
        return question, fact.sentence

    def _turn(self, kind: str) -> Turn:
        if kind == "talk":
            return talk.draw(self._rng, self._places)
        if kind.startswith("one_off"):
            relation, fabricator = (
                ("place_country", self._fake_place)
                if kind == "one_off_place"
                else ("language_code", self._fake_language)
            )
            plausible = self._rng.choice(self._popular[relation])
            invented = Fact(relation, fabricator.draw(), plausible.answer, "one_off")
            self.one_off.append(invented.subject)
            return invented.question(self._rng.randrange(12)), invented.sentence
        (fact,) = self._rng.choices(self._popular[kind], weights=self._weights[kind])
        return self._ask(fact)

    def _short_chat(self, kind: str, replay: bool = False) -> Row:
        turns = [self._turn(kind)]
        if kind == "place_country" and self._rng.random() < 0.06:
            turns = [self._both(turns[0], self._turn(kind))]
        elif replay and self._rng.random() < 0.1:
            turns.append(self._sure(turns[0]))
        return self._encoder.chat(turns, self._system())

    def _long_chat(self) -> Row:
        turns: list[Turn] = []
        for kind in self._rng.choices(list(SHARES), weights=list(SHARES.values()), k=self._rng.randint(2, 20)):
            turns.append(self._turn(kind))
            if kind != "talk" and self._rng.random() < 0.15:
                turns.append(self._sure(turns[-1]))
        return self._encoder.chat(turns, self._system())

    @staticmethod
    def _both(first: Turn, second: Turn) -> Turn:
        """Two questions in one message."""
        return (
            f"{first[0]} {second[0]}",
            f"The first {first[1].removeprefix('It ')} The second {second[1].removeprefix('It ')}",
        )

    def _sure(self, turn: Turn) -> Turn:
        return self._rng.choice(talk.SURE), f"Yes. {turn[1]}"
