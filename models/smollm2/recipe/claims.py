"""The claims of arXiv 2512.01797, each beside what this model's answers say of it."""

from __future__ import annotations

from typing import Any

from models.wording import MISSING, interval, percent, signed

Figures = dict[str, Any]
Claim = tuple[str, str, list[str], str]  # claim, what would hold, what was measured, whether it holds


def claims(figures: Figures) -> list[Claim]:
    """Every claim. "in part" where some of its figures hold."""
    return [
        _sparse(figures),
        _better(figures),
        _reliable(figures),
        *_general(figures),
        _popular(figures),
        *_scaled(figures),
    ]


def _verdict(holds: list[bool]) -> str:
    if not holds:
        return MISSING
    return "yes" if all(holds) else "in part" if any(holds) else "**no**"


def _sparse(figures: Figures) -> Claim:
    rows = [one for one in figures["sparse"]["rows"] if "chosen" in one]
    few = [one for one in rows if one["share"] <= 0.001]
    best = max(rows, key=lambda one: one["chosen"]["value"]) if rows else None
    told = [f"{one['neurons']} neurons {interval(one['chosen'])}" for one in few[-1:]]
    if best:
        told.append(f"best: {best['neurons']} with {interval(best['chosen'])}")
    near = [few[-1]["chosen"]["value"] >= best["chosen"]["value"] - 0.02] if few and best else []
    return "sparse", "one neuron in a thousand is within .02 of the best number", told, _verdict(near)


def _better(figures: Figures) -> Claim:
    rows = [one for one in figures["sparse"]["rows"] if "chosen" in one]
    told = [f"{100 * one['share']:g} %: {interval(one['chosen - random'], signed)}" for one in rows]
    ends = figures["sparse"]["better_to"]
    told.append("better at no number" if ends is None else f"better than every draw up to {ends} neurons")
    better = [one["chosen - random"]["low"] > 0 and one["chosen"]["value"] > one["random"]["most"] for one in rows]
    return (
        "these neurons and no others (2607.00158: random ones do as well)",
        "chosen above random at each number",
        told,
        _verdict(better),
    )


def _reliable(figures: Figures) -> Claim:
    report = figures.get("crossed") or figures["held_out"]
    sets = report["ahead_by_set"]
    ahead = [name for name, one in sets.items() if one["stack - best"]["low"] > 0]
    least = min(report["sets"], key=lambda name: report["sets"][name]["auroc"]["neurons"]["low"], default=None)
    told = [
        f"stack ahead of the best free signal in {len(ahead)} of {len(sets)} sets ({', '.join(sorted(ahead)) or 'none'})"
    ]
    if least is not None:
        told.append(f"neurons are lowest on {least}: {interval(report['sets'][least]['auroc']['neurons'])}")
    above = [one["auroc"]["neurons"]["low"] > 0.5 for one in report["sets"].values()]
    return "reliable", "neurons above chance in every set", told, _verdict(above)


def _general(figures: Figures) -> list[Claim]:
    found: list[Claim] = []
    for name, one in figures["shift"].items():
        said = "away from home, no worse than entropy (2604.13068: a probe learns its domain)"
        if "too_few" in one:
            found.append((f"general: fit {name}", said, [one["too_few"]], MISSING))
            continue
        told = [
            f"{label}: neurons {interval(own['auroc']['neurons'])}, entropy {interval(own['auroc']['entropy'])}"
            for label, own in one["report"]["sets"].items()
        ]
        holds = [
            own["auroc"]["neurons"]["value"] >= own["auroc"]["entropy"]["value"]
            for own in one["report"]["sets"].values()
        ]
        found.append((f"general: fit {name}", said, told, _verdict(holds)))
    return found


def _popular(figures: Figures) -> Claim:
    one = figures.get("popularity")
    said = "risk falls with the population of the city"
    if not one or "too_few" in one:
        return "risk follows what is known", said, [MISSING], MISSING
    told = [
        f"per factor of ten: risk {interval(one['risk_per_decade'], signed)}, right {interval(one['right_per_decade'], signed)}"
    ]
    return "risk follows what is known", said, told, _verdict([one["risk_per_decade"]["high"] < 0])


def _scaled(figures: Figures) -> list[Claim]:
    said = "alpha 3 makes it give in more than alpha 0, told apart by its interval, and random neurons do so less"
    one = figures.get("scaling")
    if not one:
        return [("causal for over-compliance", said, [MISSING], MISSING)]
    found: list[Claim] = []
    for label in one["h_neurons"]["1"]["sets"]:
        rise = _rise(one["h_neurons"], label)
        others = [_rise(draw, label) for draw in one["random"]]
        low, high = (one["h_neurons"][alpha]["sets"][label]["gave_in"] for alpha in ("0", "3"))
        told = [f"alpha 0 {percent(low)}, alpha 3 {percent(high)}"]
        told.append(_drawn(rise, others))
        holds = high["low"] > low["value"] and all(rise > other for other in others)
        found.append((f"causal for over-compliance: {label}", said, told, _verdict([holds])))
    return found


def _drawn(rise: float, others: list[float]) -> str:
    """How much random draws change, and how many of them at least as much as the probe's neurons."""
    if not others:
        return f"random draws change by {MISSING}"
    mean, least, most = sum(others) / len(others), min(others), max(others)
    as_much = sum(other >= rise for other in others)
    return (
        f"{len(others)} random draws change by {100 * mean:+.1f} % ({100 * least:+.1f} % to {100 * most:+.1f} %), "
        f"{as_much} of them by as much or more"
    )


def _rise(curve: Figures, label: str) -> float:
    return float(curve["3"]["sets"][label]["gave_in"]["value"] - curve["0"]["sets"][label]["gave_in"]["value"])
