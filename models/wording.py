"""Figures as words: intervals, shares and tables of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

MISSING = "not measured"

Interval = dict[str, float]


def plain(value: float) -> str:
    return f"{value:.3f}"


def exact(value: float) -> str:
    return f"{value:.4f}"


def signed(value: float) -> str:
    return f"{value:+.3f}"


def interval(one: Interval | None, spelt: Callable[[float], str] = plain) -> str:
    """A value with its interval in brackets; MISSING for what is not there."""
    if not one or one["value"] is None:
        return MISSING
    if one["low"] is None:
        return spelt(one["value"])
    return f"{spelt(one['value'])} [{spelt(one['low'])}, {spelt(one['high'])}]"


def percent(share: Interval | float | None, digits: int = 1) -> str:
    """A share, or one with its interval, in per cent."""
    if isinstance(share, float):
        return f"{100 * share:.{digits}f} %"
    return interval(share, lambda value: f"{100 * value:.{digits}f} %")


def heading(head: str) -> str:
    """The two lines that begin a table of Markdown: the first column to the left, the others to the right."""
    return f"| {head} |\n| --- |" + " ---: |" * head.count(" | ")


def table(head: str, rows: Iterable[Sequence[object]]) -> str:
    """A table of Markdown."""
    return "\n".join([heading(head), *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"


# What a template may call.
WORDS = {one.__name__: one for one in (heading, interval, percent, plain, signed)} | {"missing": MISSING}
