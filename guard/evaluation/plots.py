"""The plots of an evaluation's page: each takes rows of its JSON, and gives SVG to stand inside the page."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

RED, GREEN, GREY, BLUE = "#b3362b", "#2b7a4b", "#8a94a0", "#3c6e9f"
_LINE = "#b8c2cc"
_OUTCOMES = (("right", GREEN), ("wrong", RED), ("declined", GREY))

Rows = list[dict[str, Any]]


def aurocs(parts: dict[str, dict[str, Any]], colours: dict[str, str]) -> str:
    """A bar with its interval for each part, in the order of ``parts``."""

    def draw(axes: Any) -> None:
        names = list(parts)[::-1]
        values = [parts[name]["auroc"] for name in names]
        sides = [[one["value"] - one["low"] for one in values], [one["high"] - one["value"] for one in values]]
        lengths = [one["value"] - 0.5 for one in values]
        style = {"ecolor": "#1d2430", "capsize": 3, "error_kw": {"elinewidth": 1}}
        axes.barh(
            names, lengths, left=0.5, xerr=sides, color=[colours.get(n, GREY) for n in names], height=0.6, **style
        )
        for place, one in enumerate(values):
            right = max(one["high"], one["value"])
            axes.text(right + 0.012, place, f"{one['value']:.3f}", va="center", fontsize=8)
        axes.axvline(0.5, color="#1d2430", linewidth=1)
        axes.set(
            xlabel="AUROC (0.5 is chance, 1 is perfect)", xlim=(min(0.5, *(v["low"] for v in values)) - 0.02, 1.08)
        )
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)

    return _svg(draw, (9.2, 0.9 + 0.34 * len(parts)))


def reliability(bins: Rows) -> str:
    """Share of wrong answers against risk, by bin; a point's area is how many answers it stands for."""

    def draw(axes: Any) -> None:
        total = sum(one["n"] for one in bins)
        axes.plot([0, 1], [0, 1], color=_LINE)
        risk, wrong = [one["risk"] for one in bins], [one["wrong"] for one in bins]
        axes.plot(risk, wrong, color=RED)
        axes.scatter(risk, wrong, s=[20 + 400 * one["n"] / total for one in bins], color=RED, alpha=0.7, zorder=3)
        axes.set(xlabel="risk", ylabel="share of wrong answers", title="Is a risk a probability?")

    return _svg(draw)


def coverage(points: list[list[float]], thresholds: Rows) -> str:
    """Share of wrong answers among those that are shown, when the riskiest are withheld first."""

    def draw(axes: Any) -> None:
        axes.plot(*zip(*points, strict=True), color=RED)
        for row in (one for one in thresholds if one["coverage"] is not None):
            axes.axvline(row["coverage"], color=_LINE, linewidth=1, zorder=0)
            at = (row["coverage"], 1)
            label = f" {row['target_fpr']:.0%}"
            axes.annotate(label, at, xycoords=("data", "axes fraction"), va="top", fontsize=7, color=GREY, rotation=90)
        axes.set(xlabel="share of answers that are shown", ylabel="share of them that are wrong", ylim=(0, None))
        axes.set_title("Withholding the riskiest first")

    return _svg(draw)


def scaling(rows: Rows, random: list[Rows]) -> str:
    """Right, wrong and declined answers against strength; the mean of ``random``'s draws dashed."""

    def draw(axes: Any) -> None:
        for key, colour in _OUTCOMES:
            axes.plot([row["alpha"] for row in rows], [row[key] for row in rows], "o-", label=key, color=colour)
            if random:
                means = [sum(draw[i][key] for draw in random) / len(random) for i in range(len(rows))]
                label = f"{key}, random neurons"
                axes.plot([row["alpha"] for row in rows], means, "o--", label=label, color=colour, alpha=0.6, ms=3)
        axes.set(xlabel="neuron scale (1: unchanged)", ylabel="answers", ylim=(0, None))
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)

    return _svg(draw, (9.2, 3.8))


def _svg(draw: Callable[[Any], None], size: tuple[float, float] = (4.5, 3.6)) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.add_subplot())
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
