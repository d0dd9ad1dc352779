"""Questions about places, out of GeoNames: cities by size, regions, what a country has, and cities that are made up."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator

from guard.judge.question import Question
from models.smollm2.recipe import sources
from models.smollm2.recipe.sources import City

SHARE = 0.1  # a namesake this large, beside the largest of the name, is as good an answer
_ALSO = {
    "US": ("USA", "U.S.", "U.S.A.", "United States of America", "America"),
    "GB": ("UK", "U.K.", "England", "Scotland", "Wales", "Northern Ireland", "Great Britain", "Britain"),
    "AE": ("UAE",),
    "CD": ("Democratic Republic of the Congo", "DRC", "DR Congo", "Congo-Kinshasa"),
    "CG": ("Republic of the Congo", "Congo-Brazzaville", "Congo"),
    "CI": ("Ivory Coast", "Cote d'Ivoire"),
    "CZ": ("Czech Republic", "Czechia"),
    "MM": ("Myanmar", "Burma"),
    "KR": ("South Korea", "Republic of Korea", "Korea"),
    "KP": ("North Korea", "Democratic People's Republic of Korea"),
    "NL": ("Netherlands", "The Netherlands", "Holland"),
    "RU": ("Russia", "Russian Federation"),
    "SZ": ("Eswatini", "Swaziland"),
    "MK": ("North Macedonia", "Macedonia"),
    "TR": ("Turkey", "Türkiye"),
    "PS": ("Palestine", "Palestinian Territory", "State of Palestine", "West Bank", "Gaza"),
    "CV": ("Cape Verde", "Cabo Verde"),
    "TL": ("East Timor", "Timor-Leste"),
    "VA": ("Vatican", "Vatican City"),
    "CN": ("China", "People's Republic of China"),
    "TW": ("Taiwan", "Republic of China"),
    "HK": ("Hong Kong", "China"),
    "MO": ("Macao", "Macau", "China"),
    "PR": ("Puerto Rico", "United States", "USA"),
    "BA": ("Bosnia and Herzegovina", "Bosnia"),
}
_CITY = ("Which country is {n} in?", "In which country is the city of {n}?", "{n} is a city in which country?")
_CONTINENTS = {
    "AF": ("Africa",),
    "AS": ("Asia",),
    "EU": ("Europe",),
    "NA": ("North America", "Central America", "Caribbean"),
    "SA": ("South America",),
    "OC": ("Oceania", "Australia", "Australasia"),
    "AN": ("Antarctica",),
}


def names_of(code: str) -> tuple[str, ...]:
    """Every name that counts as the country's."""
    return tuple(dict.fromkeys((sources.countries()[code]["name"], *_ALSO.get(code, ()))))


def owners(found: list[City]) -> dict[str, tuple[str, ...]]:
    """The countries that a city's name may mean, by name: those of its largest bearer, and of bearers near it."""
    bearers: dict[str, list[City]] = defaultdict(list)
    for city in found:
        bearers[city.name].append(city)
    near = {name: [c for c in group if c.population >= SHARE * group[0].population] for name, group in bearers.items()}
    return {name: tuple(dict.fromkeys(city.country for city in group)) for name, group in near.items()}


def asked(rng: random.Random, sizes: tuple[int, int, int]) -> list[City]:
    """The cities to ask about, the largest of each name, by falling population."""
    every = sources.cities()
    first = list({city.name: city for city in reversed(every)}.values())[::-1]
    first.sort(key=lambda city: (-city.population, city.name))
    parts = (first[:500], first[500:2500], first[2500:])
    taken = [city for part, size in zip(parts, sizes, strict=True) for city in rng.sample(part, min(size, len(part)))]
    return sorted(taken, key=lambda city: (-city.population, city.name))


def cities(rng: random.Random, sizes: tuple[int, int, int]) -> Iterator[Question]:
    """The country of a city. Groups: ``cities`` and ``cities-d1`` (the largest tenth) to ``cities-d10``."""
    meant = owners(sources.cities())
    taken = asked(rng, sizes)
    for i, city in enumerate(taken):
        accepted = tuple(name for code in meant[city.name] for name in names_of(code))
        decile = f"cities-d{10 * i // len(taken) + 1}"
        yield Question(rng.choice(_CITY).format(n=city.name), accepted, city.name, ("cities", decile))


def regions(rng: random.Random) -> Iterator[Question]:
    """The country of a province, and the state of an American city."""
    import pycountry

    taken = [part for part in pycountry.subdivisions if part.parent_code is None and part.name.isascii()]
    for part in rng.sample(sorted(taken, key=lambda part: part.code), 700):
        if part.country_code in sources.countries():
            text = f"In which country is the {part.type.lower()} of {part.name}?"
            yield Question(text, names_of(part.country_code), part.name, ("regions",))
    own = states_of()
    for name, states in rng.sample(sorted(own.items()), 450):
        yield Question(f"In which U.S. state is the city of {name}?", states, name, ("regions",))


def states_of() -> dict[str, tuple[str, ...]]:
    """The states in which there is an American city of each name."""
    found: dict[str, list[str]] = defaultdict(list)
    names = sources.states()
    for city in sources.cities():
        if city.country == "US" and city.region in names:
            found[city.name].append(names[city.region])
    return {name: tuple(dict.fromkeys(states)) for name, states in found.items()}


def capitals(rng: random.Random) -> Iterator[Question]:
    """Capital, continent, currency, domain and neighbour of each country; the country of each capital."""
    every = sources.countries()
    by_name = {row["iso"]: row for row in every.values()}
    for code, row in every.items():
        name = row["name"]
        if row["capital"]:
            yield Question(f"What is the capital of {name}?", (row["capital"],), name, ("capitals",))
            text = f"Which country has {row['capital']} as its capital?"
            yield Question(text, names_of(code), name, ("by-capital",))
        yield Question(f"Which continent is {name} on?", _CONTINENTS[row["continentcode"]], name, ("continents",))
        if row["currencyname"]:
            text = f"What is the currency of {name}?"
            yield Question(text, (row["currencyname"], row["currencycode"]), name, ("currencies",))
        if row["tld"]:  # Kosovo has none
            text = f"What is the internet country code top-level domain of {name}?"
            yield Question(text, (row["tld"],), name, ("codes",))
        near = [by_name[c] for c in row["neighbours"].split(",") if c in by_name]
        if near:
            accepted = tuple(n for one in near for n in names_of(one["iso"]))
            yield Question(f"Name one country that borders {name}.", accepted, name, ("borders",))


def made_up_cities(rng: random.Random, count: int) -> Iterator[Question]:
    """Cities whose names are put together from halves of real ones, and that GeoNames does not know."""
    real = {city.name for city in sources.cities()}
    plain = sorted(name for name in real if name.isascii() and name.isalpha() and 6 <= len(name) <= 11)
    made: set[str] = set()
    while len(made) < count:
        first, second = rng.choice(plain), rng.choice(plain)
        name = first[: len(first) // 2] + second[len(second) // 2 :].lower()
        if name in real or name in made or len(name) < 6:
            continue
        made.add(name)
        yield Question(rng.choice(_CITY).format(n=name), (), name, ("made-up",))
