"""An evaluation as one HTML file that a person can read: tables, and plots as SVG inside it."""

from __future__ import annotations

import html
import io
from collections.abc import Callable
from typing import Any

from guard.fit.pipeline import TARGETS

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1d2430; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .25rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr + tr { border-top: 1px solid #dde3ea; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } .plots svg { max-width: 100%; height: auto; }
small { color: #5c6877; }
"""


def render(result: dict[str, Any]) -> str:
    """``result`` is what ``hguard eval`` writes as JSON."""
    model, probe = html.escape(str(result["model"])), result["probe"]
    title = f"{model}, guarded by {html.escape(probe['id'])}"
    summary = (
        f"{result['n']} questions: {result['right']} right, {result['wrong']} wrong, {result['declined']} declined; "
        f"{result['not_scored']} not scored. Truthfulness {result['truthfulness']:.3f} "
        "<small>(+1 right, 0 declined, -1 wrong, on average)</small>. Intervals are 95 %, by bootstrap."
    )
    return "\n".join(
        [
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>',
            f"<h1>{title}</h1>",
            f"<p>{summary}</p>",
            *(_set(name, one) for name, one in result["sets"].items()),
            _thresholds(result["thresholds"]),
            *([_damp(result["damp"])] if result.get("damp") else []),
            '<div class="plots">',
            *(_svg(draw) for draw in _plots(result)),
            "</div></html>",
        ]
    )


def _set(name: str, one: dict[str, Any]) -> str:
    head = ["part", "AUROC", "AUPRC", *(f"recall at {target:.0%} false alarms" for target in TARGETS)]
    rows = []
    for part, values in one["parts"].items():
        recalls = [values[f"recall_at_{target:.2f}"] for target in TARGETS]
        rows.append([html.escape(part), *map(_interval, (values["auroc"], values["auprc"], *recalls))])
    caption = f"{one['n']} answers, {one['wrong']} wrong; ECE {one['ece']:.3f}, Brier {one['brier']:.3f}"
    return f"<h2>{html.escape(name)}</h2><p><small>{caption}</small></p>{_table(head, rows)}"


def _thresholds(rows: list[dict[str, Any]]) -> str:
    head = ["abstain at", "threshold", "false alarms", "wrong answers caught", "coverage", "truthfulness"]
    body = [
        [
            f"{row['target_fpr']:.0%} false alarms",
            f"{row['threshold']:.3f}",
            f"{row['false_alarms']:.1%}",
            f"{row['caught']:.1%}",
            f"{row['coverage']:.1%}",
            f"{row['truthfulness']:.3f}",
        ]
        for row in rows
    ]
    return f"<h2>Abstaining</h2>{_table(head, body)}"


def _damp(rows: list[dict[str, Any]]) -> str:
    head = ["strength", "right", "wrong", "declined", "truthfulness"]
    body = [
        [f"{row['alpha']:g}", *(str(row[key]) for key in ("right", "wrong", "declined")), f"{row['truthfulness']:.3f}"]
        for row in rows
    ]
    return f"<h2>Damping</h2>{_table(head, body)}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _interval(one: dict[str, float]) -> str:
    return f"{one['value']:.3f} <small>({one['low']:.3f} to {one['high']:.3f})</small>"


def _plots(result: dict[str, Any]) -> list[Callable[[Any], None]]:
    def reliability(axes: Any) -> None:
        bins = result["reliability"]
        axes.plot([0, 1], [0, 1], color="#b8c2cc")
        axes.plot([one["risk"] for one in bins], [one["wrong"] for one in bins], "o-", color="#b3362b")
        axes.set(xlabel="risk", ylabel="share of wrong answers", title="Reliability")

    def coverage(axes: Any) -> None:
        axes.plot(*zip(*result["risk_coverage"], strict=True), color="#b3362b")
        axes.set(
            xlabel="coverage", ylabel="share of wrong answers", title="Withholding the riskiest first", ylim=(0, None)
        )

    def damp(axes: Any) -> None:
        for key, colour in (("right", "#2b7a4b"), ("wrong", "#b3362b"), ("declined", "#8a94a0")):
            axes.plot(
                [row["alpha"] for row in result["damp"]],
                [row[key] for row in result["damp"]],
                "o-",
                label=key,
                color=colour,
            )
        axes.set(xlabel="damp", ylabel="answers", title="Damping", ylim=(0, None))
        axes.legend()

    return [reliability, coverage, *([damp] if result.get("damp") else [])]


def _svg(draw: Callable[[Any], None]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    draw(figure.add_subplot())
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]
