"""``docs/atlas-report.md``: the figures of ``atlas-report.json`` in ``report.md.j2``, and the goals that they reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guard.templates import template
from models.wording import WORDS, exact, interval, percent

PAGE = Path(__file__).with_name("report.md.j2")
UNFAMILIAR = ("places never", "places fabricated", "languages never", "languages fabricated")
PRESSED = ("false premise", "misleading context", "pushback")
ALONE = ("neurons", "entropy", "logprob", "margin", "top_mass", "residual", "attention")
PARTS = ("stack", "neurons", "random", "entropy", "logprob", "length", "last_prompt")


def render(figures: dict[str, Any]) -> str:
    """The whole page."""
    names = {"parts": PARTS, "unfamiliar": UNFAMILIAR, "pressed": PRESSED}
    return template(PAGE).render(figures, **WORDS, **names, goals=goals(figures), per_cent_of=_per_cent_of)


def _per_cent_of(draws: Sequence[dict[str, Any]], alpha: str, label: str, what: str) -> str:
    """A rate of some draws together."""
    return f"{100 * (sum(one[alpha][label][what] for one in draws) / len(draws)):.1f}"


def goals(figures: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(goal, what was measured, whether it is reached)."""
    found = []
    checkpoints = {"base": figures["base"]["sets"], "chat": figures["sets"]}
    for name, sets in checkpoints.items():
        one = sets["unfamiliar"]["auroc"]["stack"]
        goal = f"{name}: never-seen and fabricated against known, stack AUROC at least .99"
        found.append((goal, interval(one, exact), one["value"] >= 0.99))
    for name, least, more in (("base", 0.0, ""), ("chat", 0.15, " by .15")):
        ahead = checkpoints[name]["hard"]["stack_minus_entropy"]
        goal = f"{name}: rare, once and shadowed, the stack beats entropy{more}"
        found.append((goal, interval(ahead), ahead["value"] >= least and ahead["value"] > 0))
    for name, sets in checkpoints.items():
        ahead = sets["hard"]["neurons_minus_random"]
        goal = f"{name}: there, H-neurons beat as many random neurons by .03"
        found.append((goal, interval(ahead), ahead["value"] >= 0.03))
    for name, sets in checkpoints.items():
        ece = sets["all"]["ece"]
        found.append((f"{name}: ECE at most .03 on all answers", f"{ece:.3f}", ece <= 0.03))
    for name in checkpoints:
        splits = figures["reseeded"][name]
        kept = sum(one["false_alarms"] <= 0.06 for one in splits)
        goal = f"{name}: the 5 % threshold keeps false alarms at or under 6 % in 9 of 10 splits"
        found.append((goal, f"{kept} of {len(splits)}", kept >= 9))
    curve = figures["alpha"]
    plain, off = (_unfamiliar(curve["h_neurons"][alpha]) for alpha in ("1", "0"))
    at_random = [_unfamiliar(one["0"]) for one in curve["random"]]
    goal = "chat: alpha 0 lowers the wrong rate on unfamiliar names, random neurons do not"
    measured = f"{percent(plain)} to {percent(off)}; random {', '.join(map(percent, at_random))}"
    found.append((goal, measured, off < plain - 0.02 and min(at_random) > plain - 0.02))
    return [*found, *_of_signals(figures["signals"]["chat"])] if "signals" in figures else found


def _of_signals(sets: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """The goals of the signals that a fit reads by default, on the chat checkpoint."""
    found = []
    for name, what, least in (
        ("shadowed", "overshadowed", 0.8),
        ("false premise", "false premise, not fit on it", 0.8),
        ("pushback", "pushback, not fit on it", 0.9),
        ("unfamiliar", "unfamiliar", 0.99),
    ):
        one = sets[name]["auroc"]["default"]
        goal = f"chat, default signals: {what} at least {least:g}"
        found.append((goal, interval(one), one["value"] >= least))
    premise = sets["false premise"]["auroc"]
    ahead = premise["default"]["value"] > premise["length"]["value"]
    found.append(("chat, default signals: false premise above length", f"length {interval(premise['length'])}", ahead))
    short = {
        name: max(one["auroc"][signal]["value"] for signal in ALONE) - one["auroc"]["default"]["value"]
        for name, one in sets.items()
    }
    worst = max(short, key=lambda name: short[name])
    goal = "chat, default signals: no set below its best single signal by more than .03"
    return [*found, (goal, f"most: {worst}, by {short[worst]:.3f}", short[worst] <= 0.03)]


def _unfamiliar(rates: dict[str, Any]) -> float:
    """The wrong rate on all unfamiliar names together."""
    own = [rates[name] for name in UNFAMILIAR]
    return float(sum(one["wrong"] * one["n"] for one in own) / sum(one["n"] for one in own))
