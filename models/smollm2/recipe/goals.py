"""The numbers that were to be reached, beside what was measured on held-out entities."""

from __future__ import annotations

from typing import Any

from models.smollm2.recipe.domain import SERVED
from models.wording import MISSING, interval, percent, signed

SHIFTED = 0.25  # population stability index from which guard.probe.drift calls risks shifted
Figures = dict[str, Any]
Goal = tuple[str, str, bool | None]  # goal, what was measured, whether it is reached; None: not measured


def goals(figures: Figures) -> list[Goal]:
    """Every goal. Figures are those of the test part; where five folds over all answers say more, they stand behind."""
    held, crossed = figures["held_out"], figures.get("crossed") or {}

    def both(goal: str, least: float, *keys: str) -> Goal:
        return _least(goal, _at(held, *keys), least, _at(crossed, *keys))

    free = "entropy, log-probability and length"
    rows = [
        both("mean of sets: stack AUROC at least .88", 0.88, "mean", "stack"),
        both(f"there, stack at least .10 above the best of {free}", 0.10, "ahead", "stack - best"),
        both("there, stack at least .10 above words alone", 0.10, "ahead", "stack - words"),
        both("cities, answers of the same text: stack at least .92", 0.92, "sets", "cities", "same_text", "stack"),
    ]
    for share in (0.001, 0.005):
        found = [one for one in figures["sparse"]["rows"] if one["share"] == share]
        ahead = found[0].get("chosen - random") if found else None
        rows.append(_least(f"chosen neurons at least .03 above random ones at {100 * share:g} %", ahead, 0.03))
    rows += [
        both("TriviaQA: stack at least .80", 0.80, "sets", "triviaqa", "auroc", "stack"),
        both("TriviaQA: stack above entropy by .06", 0.06, "ahead_by_set", "triviaqa", "stack - entropy"),
    ]
    away = figures["shift"].get("from places", {})
    rows.append(
        _least("fit on places, tested on general questions: no worse than entropy", away.get("stack - entropy"), 0.0)
    )
    rows.append(_warned(_at(away, "alarms", "targets", "0.05", "false_alarms"), away.get("psi")))
    ece = figures["alarms"]["ece"]
    rows.append(("ECE at most .03 in domain", f"{ece:.3f}", ece <= 0.03))
    rows += [_band(length, one) for length, one in _lengths(figures).items()]
    made_up = _at(figures, "alarms", "targets", "0.1", "answered_by_set", "made-up")
    rows.append(
        _most("made-up cities: at most 10 % answered at the threshold that keeps 90 % of right answers", made_up, 0.1)
    )
    return rows + _beyond(figures.get("signals") or {}) + _warnings(figures.get("domain"))


def _beyond(signals: Figures) -> list[Goal]:
    """What all signals together were to reach."""
    after, before = (_at(signals, "held_out", "mean", name) for name in ("stack", "all before"))
    apart = None
    if after and before:
        apart = {"value": before["value"] - after["value"], "low": None, "high": None}
    return [
        _least("all signals: mean of sets at least .90", _at(signals, "held_out", "mean", "all"), 0.90),
        _least("all signals: TriviaQA at least .82", _at(signals, "held_out", "sets", "triviaqa", "all"), 0.82),
        _least(
            "all signals, fit on places, tested on general questions: above the best free one by .03",
            _at(signals, "from places", "above", "all", "free"),
            0.03,
        ),
        _least("before any text, no worse than the stack after it by more than .05", apart, -0.05),
    ]


def _warnings(domain: Figures | None) -> list[Goal]:
    """What a look at an answer's signals was to say of thresholds that do not hold."""
    if domain is None or None in ((one := domain["warned"][SERVED])["of_broken"], one["of_held"]):
        return []
    said = f"{100 * one['of_broken']:.0f} % and {100 * one['of_held']:.0f} %"
    goal = "a warning on at least 80 % of sets where the 5 % threshold does not hold, on at most 10 % of the others"
    return [(goal, said, one["of_broken"] >= 0.8 and one["of_held"] <= 0.1)]


def _at(figures: Figures, *keys: str) -> Any:
    """What stands there, or None."""
    found: Any = figures
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _least(goal: str, one: Figures | None, least: float, more: Figures | None = None) -> Goal:
    spelt = signed if " above " in goal or "no worse" in goal else (lambda value: f"{value:.3f}")
    told = interval(one, spelt) + (f"; five folds {interval(more, spelt)}" if more else "")
    # Over five folds a small set has several times the answers: a goal is reached where both say so.
    return goal, told, None if not one else all(part["value"] >= least for part in (one, more) if part)


def _most(goal: str, one: Figures | None, most: float) -> Goal:
    return goal, percent(one), None if not one else one["value"] <= most


def _warned(alarms: Figures | None, psi: float | None) -> Goal:
    goal = "there, false alarms at the 5 % threshold at most 8 %, or the drift of risks warns (index above .25)"
    told = percent(alarms) + ("" if psi is None else f"; index {psi:.2f}")
    few, warns = alarms is not None and alarms["value"] <= 0.08, psi is not None and psi > SHIFTED
    return goal, told, None if alarms is None and psi is None else few or warns


def _lengths(figures: Figures) -> dict[str, Figures | None]:
    found: dict[str, Figures | None] = dict.fromkeys(("1-8", "9-16", "17-32", "33-64", "65-256"))
    served: Figures = _at(figures, "lengths", "bins") or {}
    if served:
        return found | {length: one["false_alarms"]["with"] for length, one in served.items()}
    own: Figures = _at(figures, "alarms", "targets", "0.05", "lengths") or {}
    return found | {length: one.get("false_alarms") for length, one in own.items()}


def _band(length: str, one: Figures | None) -> Goal:
    goal = f"false alarms at a 5 % target within 3 to 7 %, answers of {length} tokens"
    return goal, percent(one) if one else MISSING, None if not one else 0.03 <= one["value"] <= 0.07
