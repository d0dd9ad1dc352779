"""Pictures of the dashboards: ``python -m deploy.grafana.draw --out docs``.

A real server, real load, a real Prometheus; every panel's query must return data. What it returns is drawn with
matplotlib where the dashboard's JSON puts it: close to what Grafana shows, and not Grafana.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from bench.soak import KEY, running
from deploy.grafana.panels import WIDTH
from deploy.live import Prometheus, load, panels, prometheus, targets
from models.atlas.recipe.questions import from_ledger, load_ledger

ATLAS = Path("models/atlas")
STEP = 2.0  # seconds between the points of a line
CLIENTS, BURST = 8, 160  # at once; the second for a moment, so that some are refused
ASKED: list[dict[str, Any]] = [
    {"mode": "score"},
    {"mode": "flag"},
    {"mode": "abstain"},
    {"mode": "abstain", "hold": "window"},
    {"mode": "abstain", "retry_scale": 0.0},
]
COLORS = ["#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0"]


def spelled(value: float, unit: str) -> str:
    """A value as a person would write it."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "bytes":
        return f"{value / 2**20:.4g} MiB"
    return f"{value:.3g}" + {"reqps": " req/s", "ops": " /s"}.get(unit, "")


async def traffic(url: str, seconds: float) -> None:
    """Questions of all kinds that atlas was made for, in every mode."""
    texts = [question.text for question in from_ledger(load_ledger(ATLAS), seed=3)]
    until = time.monotonic() + seconds
    headers, limits = {"authorization": f"Bearer {KEY}"}, httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, headers=headers, limits=limits) as http:

        async def client(rng: random.Random, until: float) -> None:
            while time.monotonic() < until:
                asked = rng.choice(ASKED)
                body = {
                    "model": "atlas",
                    "messages": [{"role": "user", "content": rng.choice(texts)}],
                    "hallucination": asked,
                    "stream": rng.random() < 0.5,
                    "max_tokens": 64,
                }
                await http.post("/v1/chat/completions", json=body)
                await asyncio.sleep(rng.expovariate(20))

        ordinary = [client(random.Random(i), until) for i in range(CLIENTS)]

        async def burst() -> None:
            await asyncio.sleep(seconds / 2)
            end = time.monotonic() + min(5, seconds / 4)
            await asyncio.gather(*(client(random.Random(100 + i), end) for i in range(BURST)))

        await asyncio.gather(*ordinary, burst())


def draw(dashboard: dict[str, Any], source: Prometheus, start: float, end: float, file: Path) -> list[str]:
    """Write a dashboard's picture; returns the panels' queries that had no data."""
    shown = panels(dashboard)
    rows = max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in shown)
    figure = plt.figure(figsize=(16, 0.42 * rows), facecolor="#111217")
    empty = []
    for row in (one for one in dashboard["panels"] if one["type"] == "row"):
        at = 1 - (row["gridPos"]["y"] + 0.4) / rows
        figure.text(0.01, at, row["title"], color="#ccccdc", fontsize=11, weight="bold")
    for panel in shown:
        at = panel["gridPos"]
        left, width = at["x"] / WIDTH, at["w"] / WIDTH
        bottom, height = (
            1 - (at["y"] + at["h"] - 1) / rows,
            (at["h"] - 2) / rows,
        )  # in Grafana's rows: room for the text
        axes = figure.add_axes((left + 0.035, bottom, width - 0.05, height), facecolor="#181b1f")
        axes.set_title(panel["title"], color="#ccccdc", fontsize=9, loc="left")
        axes.tick_params(colors="#8e8e99", labelsize=7)
        found: list[tuple[str, dict[str, Any]]] = []
        for target in targets(dashboard, panel):
            instant = target.instant
            result = source.now(target.filled) if instant else source.over(target.filled, start, end, STEP)
            if not result:
                empty.append(f"{dashboard['title']}, {panel['title']}: {target.expr}")
            found += [(_legend(target.legend, one["metric"]), one) for one in result]
        unit = _defaults(panel).get("unit", "none")
        PAINTERS[panel["type"]](axes, panel, found, unit, start)
    figure.savefig(file, dpi=75, facecolor=figure.get_facecolor())
    plt.close(figure)
    return empty


def _defaults(panel: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = panel.get("fieldConfig", {}).get("defaults", {})
    return found


def _legend(template: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        template = template.replace("{{" + name + "}}", value)
    return template


def _color(panel: dict[str, Any], name: str, position: int) -> str:
    """What the dashboard gives a series, or the next one."""
    for override in panel.get("fieldConfig", {}).get("overrides", []):
        if override["matcher"]["options"] == name:
            return str(override["properties"][0]["value"]["fixedColor"])
    return COLORS[position % len(COLORS)]


def _number(
    axes: Axes, panel: dict[str, Any], found: list[tuple[str, dict[str, Any]]], unit: str, start: float
) -> None:
    axes.axis("off")
    by_name = panel["options"].get("textMode") == "name"
    text = "\n".join(name if by_name else spelled(float(one["value"][1]), unit) for name, one in found) or "no data"
    size = 11 if by_name else 20
    axes.text(0.5, 0.45, text, color="#d8d9da", fontsize=size, ha="center", va="center", transform=axes.transAxes)


def _lines(axes: Axes, panel: dict[str, Any], found: list[tuple[str, dict[str, Any]]], unit: str, start: float) -> None:
    custom = _defaults(panel).get("custom", {})
    series = [(name, *_points(one, start)) for name, one in found]
    colors = [_color(panel, name, i) for i, (name, _, _) in enumerate(series)]
    if custom.get("stacking", {}).get("mode") == "normal" and series:
        times = sorted({t for _, at, _ in series for t in at})
        heights = [[dict(zip(at, values, strict=True)).get(t, 0.0) for t in times] for _, at, values in series]
        axes.stackplot(times, heights, labels=[name for name, _, _ in series], alpha=0.75, colors=colors)
    else:
        for (name, at, values), color in zip(series, colors, strict=True):
            axes.plot(at, values, label=name, linewidth=1.2, color=color)
    for step in _defaults(panel).get("thresholds", {}).get("steps", []):
        if step["value"] is not None and "thresholdsStyle" in custom:
            axes.axhline(step["value"], color=step["color"], linestyle="--", linewidth=0.8)
    top = _defaults(panel).get("max")
    axes.set_ylim(0, top if top is not None else max(axes.get_ylim()[1], 1e-9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: spelled(value, unit)))
    axes.grid(color="#2c3235", linewidth=0.5)
    if series:
        axes.legend(
            fontsize=6.5, loc="upper left", labelcolor="#ccccdc", facecolor="#181b1f", edgecolor="none", ncols=4
        )


def _heat(axes: Axes, panel: dict[str, Any], found: list[tuple[str, dict[str, Any]]], unit: str, start: float) -> None:
    buckets = sorted(((float(one["metric"]["le"]), *_points(one, start)) for _, one in found), key=lambda b: b[0])
    below: dict[float, float] = {}
    for i, (_, at, values) in enumerate(buckets):
        counts = [max(0.0, value - below.get(t, 0.0)) for t, value in zip(at, values, strict=True)]
        below = dict(zip(at, values, strict=True))
        axes.scatter(at, [i] * len(at), c=counts, cmap="Oranges", marker="s", s=16, vmin=0)
    axes.set_yticks(range(0, len(buckets), 4), [spelled(edge, unit) for edge, _, _ in buckets[::4]])


def _bars(axes: Axes, panel: dict[str, Any], found: list[tuple[str, dict[str, Any]]], unit: str, start: float) -> None:
    values = [float(one["value"][1]) for _, one in found]
    axes.barh(range(len(found)), values, color=COLORS[3])
    axes.set_yticks(range(len(found)), [name for name, _ in found])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: spelled(value, unit)))


def _table(axes: Axes, panel: dict[str, Any], found: list[tuple[str, dict[str, Any]]], unit: str, start: float) -> None:
    axes.axis("off")
    lines = [
        ", ".join(f"{name} {value}" for name, value in one["metric"].items() if name != "__name__") for _, one in found
    ]
    axes.text(0, 0.95, "\n".join(lines), color="#d8d9da", fontsize=8, va="top", transform=axes.transAxes, wrap=True)


def _points(one: dict[str, Any], start: float) -> tuple[list[float], list[float]]:
    """(seconds since the start, values) without what is no number."""
    kept = [(t - start, float(text)) for t, text in one["values"] if text not in ("NaN", "+Inf", "-Inf")]
    return [t for t, _ in kept], [value for _, value in kept]


Painter = Callable[[Axes, dict[str, Any], list[tuple[str, dict[str, Any]]], str, float], None]
PAINTERS: dict[str, Painter] = {
    "stat": _number,
    "timeseries": _lines,
    "heatmap": _heat,
    "bargauge": _bars,
    "table": _table,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the pictures go")
    parser.add_argument("--seconds", type=float, default=240, help="of load (default: 240)")
    options = parser.parse_args()
    empty: list[str] = []
    with running(None) as server, tempfile.TemporaryDirectory() as work:
        with prometheus(server.url.removeprefix("http://"), Path(work)) as source:
            start = time.time()
            asyncio.run(traffic(server.url, options.seconds))
            end = time.time()
            time.sleep(2)  # for the last scrape and the rules after it
            for dashboard in load():
                file = options.out / f"dashboard-{dashboard['uid'].removeprefix('hguard-')}.png"
                empty += draw(dashboard, source, start, end, file)
            empty += source.unhealthy()
        server.stop()
    print("\n".join(empty) or "every query returned data")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
