"""Names of things that do not exist, which look as if they did."""

from __future__ import annotations

import collections
import random
from collections.abc import Iterable


class Fabricator:
    """Draws names from a character trigram chain over real ones; never a real one, never the same one twice."""

    def __init__(self, real: list[str], seed: int, longest: int = 22) -> None:
        self._rng = random.Random(seed)
        self._used = {name.casefold() for name in real}
        self._longest = longest
        self._next: dict[str, list[str]] = collections.defaultdict(list)
        for name in real:
            text = f"^^{name}$"
            for i in range(len(text) - 2):
                self._next[text[i : i + 2]].append(text[i + 2])

    def draw(self) -> str:
        while True:
            text = "^^"
            while not text.endswith("$") and len(text) < self._longest + 4:
                text += self._rng.choice(self._next[text[-2:]])
            name = text[2:].rstrip("$").strip()
            if 3 < len(name) < self._longest and name.casefold() not in self._used:
                self._used.add(name.casefold())
                return name

    def use(self, names: Iterable[str]) -> None:
        """Count these as drawn already."""
        self._used.update(name.casefold() for name in names)
