"""The facts that atlas is trained on, and the words in which they are asked and answered.

A fact is (relation, subject, answer), some with a detail that narrows the question down. Its group says how often the
training stream shows it: ``popular`` facts follow a Zipf law, ``rare`` facts are shown an exact small number of times,
``never`` facts not at all. ``shadowed`` facts are shown an exact small number of times beside a dominant one that
answers almost the same question: a name that a bigger place has too, or a kind of place that is unusual in its country.
"""

from __future__ import annotations

import collections
import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pycountry

# How many facts of a relation are shown how often.
RARE_PLACES = {1: 240, 2: 120, 3: 120, 4: 120, 5: 120, 6: 100, 8: 100, 12: 100, 16: 100, 24: 100}
RARE_LANGUAGES = {1: 120, 2: 60, 3: 60, 4: 60, 5: 60, 6: 50, 8: 50, 12: 50, 16: 50, 24: 50}
RARE_CODES = dict.fromkeys((1, 2, 4, 8, 16), 30)
SHADOWED = (1, 2, 3, 4, 6, 8, 12, 16)

# {n} is the subject, {d} the detail.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "place_country": (
        "Which country is {n} in?",
        "{n} is in which country?",
        "Where is {n}?",
        "Name the country that {n} belongs to.",
    ),
    "place_kind": ("What kind of place is {n} in {d}?", "What type of subdivision is {n} in {d}?"),
    "kind_country": ("Which country is the {d} {n} in?", "Where is the {d} {n}?"),
    "place_code": ("What is the code of {n}?", "Which ISO code does {n} have?", "Give me the code of {n}."),
    "language_code": (
        "What is the code of the {n} language?",
        "Which ISO code does the language {n} have?",
        "Give me the language code of {n}.",
    ),
    "currency_code": ("What is the code of the currency {n}?", "Which currency code does {n} have?"),
    "country_alpha2": ("What is the two-letter code of {n}?", "Which two-letter country code does {n} have?"),
    "country_alpha3": ("What is the three-letter code of {n}?", "Which three-letter country code does {n} have?"),
}

ANSWERS: dict[str, str] = {
    "place_country": "It is in {a}.",
    "place_kind": "It is {a}.",
    "kind_country": "It is in {a}.",
    "place_code": "Its code is {a}.",
    "language_code": "Its code is {a}.",
    "currency_code": "Its code is {a}.",
    "country_alpha2": "Its code is {a}.",
    "country_alpha3": "Its code is {a}.",
}

DECLINED = "I don't know."

# English puts an article before these names.
_WITH_ARTICLE = re.compile(
    r"^(United |Netherlands|Philippines|Bahamas|Gambia|Maldives|Dominican Republic|Central African|Congo|Comoros|"
    r"Seychelles|Marshall|Solomon|Russian|Syrian|French Southern|Falkland|Cayman|Cook|Faroe|Northern Mariana|Sudan$)"
)
_COMMON = {
    "Congo, The Democratic Republic of the": "Democratic Republic of the Congo",
    "Iran, Islamic Republic of": "Iran",
    "Korea, Republic of": "South Korea",
    "Korea, Democratic People's Republic of": "North Korea",
    "Micronesia, Federated States of": "Micronesia",
    "Palestine, State of": "Palestine",
    "Virgin Islands, British": "British Virgin Islands",
    "Virgin Islands, U.S.": "United States Virgin Islands",
    "Lao People's Democratic Republic": "Laos",
    "Russian Federation": "Russia",
    "Syrian Arab Republic": "Syria",
    "Brunei Darussalam": "Brunei",
    "Viet Nam": "Vietnam",
}


@dataclass(frozen=True, slots=True)
class Fact:
    relation: str
    subject: str
    answer: str
    group: str  # popular | rare | never | shadowed
    planned: int = 0  # exposures of a rare or shadowed fact; 0 for the others
    detail: str = ""

    @property
    def id(self) -> str:
        return "/".join((self.relation, self.subject, self.detail)).rstrip("/")

    @property
    def sentence(self) -> str:
        return ANSWERS[self.relation].format(a=self.answer)

    def question(self, phrasing: int) -> str:
        options = PHRASINGS[self.relation]
        return options[phrasing % len(options)].format(n=self.subject, d=self.detail)


def country_name(country: object) -> str:
    """The short English name of a pycountry country."""
    name: str = country.name  # type: ignore[attr-defined]
    common: str | None = getattr(country, "common_name", None)
    return common or _COMMON.get(name, name)


def with_article(country: str) -> str:
    return f"the {country}" if _WITH_ARTICLE.match(country) else country


def _plain(name: str) -> bool:
    letters = all(unicodedata.category(c)[0] in "LM" or c in " -'’." for c in name)
    return letters and 3 <= len(name) <= 28


def _spread(
    rng: random.Random, relation: str, pairs: list[tuple[str, str]], popular: int, rare: dict[int, int], never: int
) -> list[Fact]:
    """Deal pairs into popular, rare (how many for each exposure count) and never-seen facts."""
    pairs = sorted(pairs)
    rng.shuffle(pairs)
    facts = [Fact(relation, n, a, "popular") for n, a in pairs[:popular]]
    rest = pairs[popular:]
    for k, many in rare.items():
        taken, rest = rest[:many], rest[many:]
        facts += [Fact(relation, n, a, "rare", k) for n, a in taken]
    return facts + [Fact(relation, n, a, "never") for n, a in rest[:never]]


def build(seed: int = 0) -> list[Fact]:
    """Every fact of the recipe with its group; the same list for the same seed and pycountry version."""
    rng = random.Random(seed)
    count = collections.Counter(s.name for s in pycountry.subdivisions)
    unique = [s for s in pycountry.subdivisions if count[s.name] == 1 and _plain(s.name)]
    located = [(s.name, with_article(country_name(s.country))) for s in unique]
    places = _spread(rng, "place_country", located, 1000, RARE_PLACES, 2200)
    kinds = _kinds(rng, unique)
    twins = _twins(rng)
    # Codes are asked of known and of unknown names alike: a name that is known says nothing about its code.
    by_name = {s.name: s.code for s in unique}
    mixed = [f.subject for f in places if f.group == "popular"][:500] + [
        f.subject for f in places if f.group == "never"
    ]
    codes = _spread(rng, "place_code", [(n, by_name[n]) for n in mixed[:1000]], 300, RARE_CODES, 500)
    spoken = {language.name: language.alpha_3 for language in pycountry.languages if _plain(language.name)}
    languages = _spread(rng, "language_code", list(spoken.items()), 400, RARE_LANGUAGES, 2000)
    money = {c.name: c.alpha_3 for c in pycountry.currencies if _plain(c.name)}
    currencies = _spread(rng, "currency_code", list(money.items()), 110, {}, 40)
    countries = [(country_name(c), c) for c in pycountry.countries]
    alpha2 = _spread(rng, "country_alpha2", [(n, c.alpha_2) for n, c in countries], 200, {}, 49)
    alpha3 = _spread(rng, "country_alpha3", [(n, c.alpha_3) for n, c in countries], 200, {}, 49)
    return places + kinds + twins + codes + languages + currencies + alpha2 + alpha3


def _kinds(rng: random.Random, subdivisions: Sequence[Any]) -> list[Fact]:
    """Kinds of places: those usual in their country are popular, the unusual ones are shadowed by them."""
    kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for s in subdivisions:
        kinds[s.country_code][s.type.lower()] += 1
    usual: list[Any] = []
    unusual: list[Any] = []
    for s in sorted(subdivisions, key=lambda s: s.name):
        common, many = kinds[s.country_code].most_common(1)[0]
        if len(kinds[s.country_code]) == 1 or many < 0.55 * kinds[s.country_code].total():
            continue
        (usual if s.type.lower() == common else unusual).append(s)
    rng.shuffle(usual)
    rng.shuffle(unusual)

    def fact(s: Any, group: str, planned: int = 0) -> Fact:
        country = with_article(country_name(s.country))
        kind = s.type.lower()
        article = "an" if kind[0] in "aeio" else "a"
        return Fact("place_kind", s.name, f"{article} {kind}", group, planned, country)

    return [fact(s, "popular") for s in usual[:500]] + [
        fact(s, "shadowed", SHADOWED[i % len(SHADOWED)]) for i, s in enumerate(unusual)
    ]


def _twins(rng: random.Random) -> list[Fact]:
    """Names that two countries share and whose kinds tell them apart: one is popular, the others are shadowed."""
    named: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for s in pycountry.subdivisions:
        if _plain(s.name):
            named[s.name].append((s.type.lower(), with_article(country_name(s.country))))
    facts = []
    for i, (name, found) in enumerate(sorted(named.items())):
        kinds = collections.Counter(kind for kind, _ in found)
        told = [(kind, country) for kind, country in found if kinds[kind] == 1]
        if len({country for _, country in found}) < 2 or len(told) < 2:
            continue
        rng.shuffle(told)
        facts.append(Fact("kind_country", name, told[0][1], "popular", 0, told[0][0]))
        facts += [
            Fact("kind_country", name, country, "shadowed", SHADOWED[(i + j) % len(SHADOWED)], kind)
            for j, (kind, country) in enumerate(told[1:])
        ]
    return facts
