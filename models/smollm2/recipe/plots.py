"""The plots of SmolLM2's report, as SVG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from models import plotting
from models.plotting import BLUE, BROWN, GREEN, GREY, LINE, RED, reach

PARTS = {"stack": RED, "neurons": BLUE, "entropy": GREEN, "logprob": BROWN, "words": GREY}
MARKERS = "o-", "s--"


def draw(figures: dict[str, Any], stem: Path) -> None:
    """Write ``stem``-NAME.svg for each plot; what was not measured has none."""
    plots = {"detection": (_detection, (9, 3.8)), "curve": (_curve, (9, 3.4)), "sparse": (_sparse, (6, 3.6))}
    if "deciles" in (figures.get("popularity") or {}):
        plots["popularity"] = _popularity, (6, 3.6)
    plotting.draw(figures, stem, "smollm2", plots)


def _detection(figure: Figure, figures: dict[str, Any]) -> None:
    report = figures.get("crossed") or figures["held_out"]
    axes = figure.subplots()
    names = list(report["sets"])
    for k, (part, colour) in enumerate(PARTS.items()):
        rows = [report["sets"][name]["auroc"][part] for name in names]
        rows += [report["mean"][part]] if part in report["mean"] else []
        places = [i + 0.15 * (k - 2) for i in range(len(rows))]
        axes.errorbar(
            places, [row["value"] for row in rows], yerr=reach(rows), fmt="o", ms=4, lw=1, color=colour, label=part
        )
    axes.set_xticks(range(len(names) + 1), [*names, "mean of sets"], rotation=40, ha="right", fontsize=8)
    axes.axhline(0.5, color=LINE, zorder=0)
    axes.set_ylabel("AUROC, wrong against right")
    axes.legend(loc="lower left", fontsize=8, ncols=5)


def _curve(figure: Figure, figures: dict[str, Any]) -> None:
    rows = figures["curve"]
    sizes = [row["answers"] for row in rows]
    axes, single = figure.subplots(1, 2, sharey=True)
    for part in ("stack", "neurons"):
        own = [row["mean"][part] for row in rows if part in row["mean"]]
        if own:
            axes.errorbar(
                sizes, [one["value"] for one in own], yerr=reach(own), fmt="o-", color=PARTS[part], label=part
            )
    axes.set(xscale="log", xlabel="training answers", ylabel="AUROC", title="Mean of sets")
    axes.legend(fontsize=8)
    for number, name in enumerate(rows[-1]["sets"]):
        values = [row["sets"][name]["stack"]["value"] for row in rows]
        single.plot(sizes, values, MARKERS[number // 10 % 2], ms=3, lw=1, label=name)  # ten colours
    single.set(xscale="log", xlabel="training answers", title="Stack, by set")
    if rows[-1]["sets"]:
        single.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))


def _sparse(figure: Figure, figures: dict[str, Any]) -> None:
    rows = [row for row in figures["sparse"]["rows"] if "chosen" in row]
    axes = figure.subplots()
    counts = [row["neurons"] for row in rows]
    chosen = [row["chosen"] for row in rows]
    axes.errorbar(
        counts, [one["value"] for one in chosen], yerr=reach(chosen), fmt="o-", color=RED, label="chosen by L1"
    )
    axes.plot(counts, [row["random"]["mean"] for row in rows], "o-", color=GREY, label="random, mean")
    low, high = ([row["random"][end] for row in rows] for end in ("least", "most"))
    axes.fill_between(counts, low, high, color=GREY, alpha=0.3, label="random, range")
    axes.set(xscale="log", xlabel="neurons", ylabel="AUROC, mean of sets")
    axes.legend(fontsize=8)


def _popularity(figure: Figure, figures: dict[str, Any]) -> None:
    rows = figures["popularity"]["deciles"]
    axes = figure.subplots()
    x = [row["log10_population"] for row in rows]
    for key, colour, label in (("right", GREEN, "right answers"), ("risk", RED, "mean risk")):
        own = [row[key] for row in rows]
        axes.errorbar(x, [one["value"] for one in own], yerr=reach(own), fmt="o-", color=colour, label=label)
    axes.set(xlabel="log10 of population", ylabel="share", ylim=(0, 1))
    axes.legend(fontsize=8)
