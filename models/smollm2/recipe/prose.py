"""``docs/smollm2-report.md``: the figures of ``smollm2-report.json`` in ``report.md.j2``, with goals and claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guard.templates import template
from models.smollm2.recipe.claims import claims
from models.smollm2.recipe.goals import goals
from models.wording import MISSING, WORDS

PAGE = Path(__file__).with_name("report.md.j2")
SHOWN = ("stack", "neurons", "linear", "last prompt token", "entropy", "mean entropy", "logprob", "length", "words")
HEADLINE = ("capitals", "continents", "cities", "elements", "currencies", "triviaqa")
_LATER = (
    "crossed",
    "lengths",
    "popularity",
    "scaling",
    "signals",
    "domain",
    "quantised",
)  # what a workspace may not have
Figures = dict[str, Any]


def render(figures: Figures) -> str:
    """The whole page."""
    words = {one.__name__.strip("_"): one for one in (_aimed, _averaged, _number, _ordered, _whole, _whole_percent)}
    made = {"goals": goals(figures), "claims": claims(figures), "shown": SHOWN}
    return template(PAGE).render({**dict.fromkeys(_LATER), **figures}, **WORDS, **words, **made)


def _aimed(share: str | float) -> str:
    return f"{100 * float(share):g} %"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _whole(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.0f} %"


def _whole_percent(one: Figures, name: str) -> str:
    return _whole(one[name]["value"] if name in one else None)


def _ordered(sets: Figures, key: str | None = None) -> list[tuple[str, Figures]]:
    """The headline's sets first; with ``key``, those that have something there."""
    kept = [one for one in sets.items() if key is None or one[1][key]]
    return sorted(kept, key=lambda one: (HEADLINE.index(one[0]) if one[0] in HEADLINE else 99, one[0]))


def _averaged(curves: Sequence[Figures]) -> Figures:
    """The mean of several curves; its intervals reach from the lowest end to the highest."""
    found: Figures = {}
    for alpha in curves[0] if curves else ():
        sets = {}
        for label in curves[0][alpha]["sets"]:
            own = [curve[alpha]["sets"][label]["gave_in"] for curve in curves]
            middle = sum(one["value"] for one in own) / len(own)
            sets[label] = {
                "gave_in": {"value": middle, "low": min(o["low"] for o in own), "high": max(o["high"] for o in own)}
            }
        every = [curve[alpha].get("perplexity") for curve in curves]
        known = [one for one in every if one is not None]
        found[alpha] = {"sets": sets, "perplexity": sum(known) / len(known) if known else None}
    return found
