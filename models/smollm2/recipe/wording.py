"""Figures as words: intervals, shares and tables of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

MISSING = "not measured"

Interval = dict[str, float]


def plain(value: float) -> str:
    return f"{value:.3f}"


def signed(value: float) -> str:
    return f"{value:+.3f}"


def interval(one: Interval | None, spelt: Callable[[float], str] = plain) -> str:
    """A value with its interval in brackets; MISSING for what is not there."""
    if not one or one["value"] is None:
        return MISSING
    if one["low"] is None:
        return spelt(one["value"])
    return f"{spelt(one['value'])} [{spelt(one['low'])}, {spelt(one['high'])}]"


def percent(share: Interval | float | None) -> str:
    """A share, or one with its interval, in per cent."""
    if isinstance(share, float):
        return f"{100 * share:.1f} %"
    return interval(share, lambda value: f"{100 * value:.1f} %")


def table(head: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    names = head.split(" | ")
    lines = [f"| {head} |", "| --- |" + " ---: |" * (len(names) - 1)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"
