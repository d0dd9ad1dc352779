"""The facts that atlas is trained on, and the words in which they are asked and answered.

A fact is (relation, subject, answer). Its group says how often the training stream shows it: ``popular`` facts follow a
Zipf law, ``rare`` facts are shown an exact small number of times, ``never`` facts not at all.
"""

from __future__ import annotations

import collections
import random
import re
import unicodedata
from dataclasses import dataclass

import pycountry

RARE_EXPOSURES = (1, 2, 3, 4, 6, 8, 12, 16, 24)

PHRASINGS: dict[str, tuple[str, ...]] = {
    "place_country": (
        "Which country is {n} in?",
        "{n} is in which country?",
        "Where is {n}?",
        "Name the country that {n} belongs to.",
    ),
    "place_type": ("What kind of place is {n}?", "What type of subdivision is {n}?"),
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
    "place_type": "It is a {a}.",
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
    group: str  # popular | rare | never
    planned: int = 0  # exposures of a rare fact; 0 for the others

    @property
    def id(self) -> str:
        return f"{self.relation}/{self.subject}"

    @property
    def sentence(self) -> str:
        return ANSWERS[self.relation].format(a=self.answer)

    def question(self, phrasing: int) -> str:
        options = PHRASINGS[self.relation]
        return options[phrasing % len(options)].format(n=self.subject)


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
    rng: random.Random, relation: str, pairs: list[tuple[str, str]], popular: int, rare_each: int, never: int
) -> list[Fact]:
    """Deal pairs into popular, rare (``rare_each`` for each exposure count) and never-seen facts."""
    pairs = sorted(pairs)
    rng.shuffle(pairs)
    facts = [Fact(relation, n, a, "popular") for n, a in pairs[:popular]]
    rest = pairs[popular:]
    for k in RARE_EXPOSURES:
        taken, rest = rest[:rare_each], rest[rare_each:]
        facts += [Fact(relation, n, a, "rare", k) for n, a in taken]
    return facts + [Fact(relation, n, a, "never") for n, a in rest[:never]]


def build(seed: int = 0) -> list[Fact]:
    """Every fact of the recipe with its group; the same list for the same seed and pycountry version."""
    rng = random.Random(seed)
    count = collections.Counter(s.name for s in pycountry.subdivisions)
    unique = [s for s in pycountry.subdivisions if count[s.name] == 1 and _plain(s.name)]
    places = _spread(
        rng,
        "place_country",
        [(s.name, with_article(country_name(s.country))) for s in unique],
        popular=1000,
        rare_each=160,
        never=2000,
    )
    kind = {s.name: s.type.lower() for s in unique}
    types = [Fact("place_type", f.subject, kind[f.subject], "popular") for f in places if f.group == "popular"][:500]
    spoken = {language.name: language.alpha_3 for language in pycountry.languages if _plain(language.name)}
    languages = _spread(rng, "language_code", list(spoken.items()), popular=400, rare_each=60, never=2000)
    money = {c.name: c.alpha_3 for c in pycountry.currencies if _plain(c.name)}
    currencies = _spread(rng, "currency_code", list(money.items()), popular=110, rare_each=0, never=40)
    countries = [(country_name(c), c) for c in pycountry.countries]
    alpha2 = _spread(rng, "country_alpha2", [(n, c.alpha_2) for n, c in countries], 200, 0, 49)
    alpha3 = _spread(rng, "country_alpha3", [(n, c.alpha_3) for n, c in countries], 200, 0, 49)
    return places + types + languages + currencies + alpha2 + alpha3
