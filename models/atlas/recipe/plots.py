"""The plots of atlas's report, as SVG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from models import plotting
from models.atlas.recipe.prose import PRESSED, UNFAMILIAR
from models.plotting import BLUE, GREEN, GREY, LINE, RED, reach

PARTS = {"stack": RED, "neurons": BLUE, "random": GREY, "entropy": GREEN}


def draw(figures: dict[str, Any], stem: Path) -> None:
    """Write ``stem``-NAME.svg for each plot."""
    plots = {"detection": (_detection, (9, 3.6)), "alpha": (_alpha, (9, 5.6)), "laws": (_laws, (9, 3.4))}
    plotting.draw(figures, stem, "atlas", plots)


def _detection(figure: Figure, figures: dict[str, Any]) -> None:
    names = ("all", "unfamiliar", "hard", "rare", "once", "shadowed", "learnt")
    for axes, (title, sets) in zip(
        figure.subplots(1, 2, sharey=True),
        (("chat checkpoint", figures["sets"]), ("base checkpoint", figures["base"]["sets"])),
        strict=True,
    ):
        shown = [name for name in names if name in sets]
        for k, (part, colour) in enumerate(PARTS.items()):
            rows = [sets[name]["auroc"][part] for name in shown]
            middle = [row["value"] for row in rows]
            places = [i + 0.2 * (k - 1.5) for i in range(len(shown))]
            axes.errorbar(places, middle, yerr=reach(rows), fmt="o", ms=4, lw=1, color=colour, label=part)
        axes.set_xticks(range(len(shown)), shown, rotation=30, ha="right")
        axes.axhline(0.5, color=LINE, zorder=0)
        axes.set(title=title, ylim=(0.2, 1.02))
    figure.axes[0].set_ylabel("AUROC, wrong against right")
    figure.axes[1].legend(loc="lower right", fontsize=8)


def _alpha(figure: Figure, figures: dict[str, Any]) -> None:
    curves = figures["alpha"]
    names = [*UNFAMILIAR, *PRESSED, "places popular"]
    for axes, name in zip(figure.subplots(2, 4, sharex=True, sharey=True).flat, names, strict=True):
        for curve, colour, style, label in (
            (curves["h_neurons"], RED, "-", "H-neurons"),
            (curves["base_h_neurons"], BLUE, "-", "found on base"),
            *((one, GREY, "--", "random" if i == 0 else None) for i, one in enumerate(curves["random"])),
        ):
            alphas = [float(alpha) for alpha in curve]
            axes.plot(
                alphas, [100 * rates[name]["wrong"] for rates in curve.values()], style, color=colour, label=label
            )
        axes.set_title(name, fontsize=9)
    figure.axes[0].legend(fontsize=7)
    figure.supxlabel("alpha", fontsize=9)
    figure.supylabel("wrong answers, %", fontsize=9)


def _laws(figure: Figure, figures: dict[str, Any]) -> None:
    left, middle, right = figure.subplots(1, 3)
    rows = figures["once_seen"]["base"]
    left.plot([0, 0.4], [0, 0.4], color=LINE)
    left.scatter([row["once_seen"] for row in rows], [row["made_up"] for row in rows], color=RED, s=18)
    for row in rows:
        left.annotate(row["relation"], (row["once_seen"], row["made_up"]), fontsize=6)
    left.set(xlabel="share shown once", ylabel="share made up", title="Left to itself")
    for name, colour in (("base", BLUE), ("chat", RED)):
        law = figures["shadows"][name]
        x = [one["log10_popularity"] for one in law["bins"]]
        middle.plot(x, [one["wrong"] for one in law["bins"]], "o-", color=colour, label=name)
        middle.plot(x, [law["intercept"] + law["slope"]["value"] * one for one in x], ":", color=colour)
    middle.set(xlabel="log10 of relative popularity", ylabel="wrong", title="Overshadowing")
    middle.legend(fontsize=8)
    rows = figures["ignorance"]["chat"]
    bottom = [0.0] * len(rows)
    for kind, colour in (("known", GREEN), ("error", RED), ("ignorance", GREY)):
        heights = [row[kind] for row in rows]
        right.bar([str(row["exposures"]) for row in rows], heights, bottom=bottom, color=colour, label=kind)
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    right.set(xlabel="exposures", title="Known, error, ignorance")
    right.legend(fontsize=8)
