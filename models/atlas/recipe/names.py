"""Names of things that do not exist, which look as if they did."""

from __future__ import annotations

import collections
import random
from collections.abc import Iterable

Chain = dict[str, list[str]]

_LOCAL = 0.8  # share of letters drawn from the names that a new one should look like


def _chain(names: Iterable[str]) -> Chain:
    following: Chain = collections.defaultdict(list)
    for name in names:
        text = f"^^{name}$"
        for i in range(len(text) - 2):
            following[text[i : i + 2]].append(text[i + 2])
    return dict(following)


class Fabricator:
    """Draws names from a character trigram chain over real ones; never a real one, never the same one twice.

    ``families``: names by family (a country, say); a drawn name looks like those of the family that is asked for.
    """

    def __init__(self, families: dict[str, list[str]], seed: int, longest: int = 22) -> None:
        self._rng = random.Random(seed)
        self._longest = longest
        self._families = {family: _chain(names) for family, names in families.items()}
        everything = [name for names in families.values() for name in names]
        self._all = _chain(everything)
        self._used = {name.casefold() for name in everything}

    def draw(self, family: str | None = None) -> str:
        local = self._families.get(family, {}) if family else {}
        while True:
            text = "^^"
            while not text.endswith("$") and len(text) < self._longest + 4:
                source = local if self._rng.random() < _LOCAL and text[-2:] in local else self._all
                text += self._rng.choice(source[text[-2:]])
            name = text[2:].rstrip("$").strip()
            if 3 < len(name) < self._longest and name.casefold() not in self._used:
                self._used.add(name.casefold())
                return name

    def use(self, names: Iterable[str]) -> None:
        """Count these as drawn already."""
        self._used.update(name.casefold() for name in names)


def plausible_code(name: str, rng: random.Random) -> str:
    """Three letters as a language's code might have them: the name's first, and two of those that follow, in order."""
    letters = [c for c in name.lower() if c.isascii() and c.isalpha()]
    letters += [rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(3 - len(letters))]
    second, third = sorted(rng.sample(range(1, len(letters)), 2))
    return letters[0] + letters[second] + letters[third]
