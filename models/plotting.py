"""Plots of the models' reports, as SVG files that are the same when made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

RED, BLUE, GREY, GREEN, BROWN = "#b3362b", "#2f5d8a", "#8a94a0", "#2b7a4b", "#a8732c"
LINE = "#dde3ea"

Plot = Callable[[Figure, dict[str, Any]], None]


def draw(figures: dict[str, Any], stem: Path, salt: str, plots: Mapping[str, tuple[Plot, tuple[float, float]]]) -> None:
    """Write ``stem``-NAME.svg for each plot (and its size). ``salt`` makes the names inside the files."""
    matplotlib.rcParams["svg.hashsalt"] = salt
    matplotlib.rcParams["svg.fonttype"] = "none"
    for name, (plot, size) in plots.items():
        figure = Figure(figsize=size, layout="constrained")
        plot(figure, figures)
        figure.savefig(f"{stem}-{name}.svg", metadata={"Date": None})


def reach(rows: list[dict[str, float]]) -> list[list[float]]:
    """How far below and above each value its interval reaches."""
    low = [row["value"] - (row["value"] if row["low"] is None else row["low"]) for row in rows]
    high = [(row["value"] if row["high"] is None else row["high"]) - row["value"] for row in rows]
    return [[max(one, 0.0) for one in side] for side in (low, high)]
