"""An evaluation as one HTML file that a person can read: what was found, tables, and plots as SVG inside it."""

from __future__ import annotations

import html
from typing import Any

from guard.evaluation import plots
from guard.probe.conformal import TARGETS

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1d2430; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #dde3ea; } h3 { margin-bottom: .2rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; vertical-align: top; } th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; } tr + tr { border-top: 1px solid #dde3ea; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } svg { max-width: 100%; height: auto; }
small { color: #5c6877; } td small { display: block; white-space: nowrap; }
dt { float: left; clear: left; width: 8rem; font-weight: 600; } dd { margin: 0 0 .4rem 8rem; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .3em; }
"""
GUARD, FREE, FITTED = plots.RED, plots.BLUE, plots.GREY
_COLOURS = {
    **dict.fromkeys(("stack", "neurons", "last_prompt"), GUARD),
    **dict.fromkeys(("entropy", "logprob", "length", "consistency"), FREE),
    **dict.fromkeys(("refit", "linear", "random"), FITTED),
}
_UNGUARDED = ("0.0%", "0.0%", "100.0%")  # false alarms, caught, coverage
_SAYS = {
    "stack": "The guard's risk: neurons, entropy and surprise of the answer's worst window. Read while it answers.",
    "neurons": "The probe's neurons alone, averaged over the answer. Read while it answers.",
    "last_prompt": "The probe's neurons at the last token of the question: what they say before the answer begins.",
    "entropy": "The highest entropy among the answer's tokens. Needs no probe.",
    "logprob": "How improbable the answer's tokens were, on average. Needs no probe.",
    "length": "How long the answer is, in tokens. Needs no model.",
    "consistency": "How many of {samples} further answers, drawn at temperature {temperature:g}, say something else. "
    "They take {tokens_per_question:.1f} tokens a question, beside {greedy_tokens_per_question:.1f} of the answer "
    "itself: {ratio:.1f} times as many. What the others read costs no further token.",
    "refit": "The probe's own neurons, weighted anew on these answers: what to compare the next two with.",
    "linear": "A linear probe on the output of one layer's MLP; of {folds} folds, each chose its layer: {layers}.",
    "random": "As many neurons in each layer as the probe has, drawn at random and weighted like refit's: the mean of "
    "{draws} draws, from the lowest end of their intervals to the highest.",
}


def render(result: dict[str, Any]) -> str:
    """``result`` is what ``hguard eval`` writes as JSON."""
    title = f"{html.escape(str(result['model']))}, guarded by {html.escape(result['probe']['id'])}"
    sets = dict(result["sets"])
    whole = sets.pop("all", None)
    return "\n".join(
        [
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>',
            f"<h1>{title}</h1>",
            f"<p>{_summary(result)}</p>",
            "<h2>Which answers are wrong?</h2>",
            *([_keys(result), plots.aurocs(whole["parts"], _COLOURS), _parts(whole, result)] if whole else []),
            *([_set("all", whole)] if whole else ["<p>Too few answers, or all of them right or all wrong.</p>"]),
            "<h2>What is a risk worth?</h2>",
            '<div class="plots">',
            plots.reliability(result["reliability"]),
            plots.coverage(result["risk_coverage"], result["thresholds"]),
            "</div>",
            _thresholds(result["thresholds"], result["truthfulness"]),
            *_scale(result.get("scale"), result.get("scale_random", [])),
            *(["<h2>Sets of questions</h2>"] if sets else []),
            *(_set(name, one) for name, one in sets.items()),
            "</html>",
        ]
    )


def _summary(result: dict[str, Any]) -> str:
    return (
        f"{result['n']} questions: {result['right']} right, {result['wrong']} wrong, {result['declined']} declined; "
        f"{result['not_scored']} not scored. Truthfulness {result['truthfulness']:.3f} "
        "<small>(+1 right, 0 declined, -1 wrong, on average)</small>. Intervals are 95 %, by bootstrap over entities."
    )


def _keys(result: dict[str, Any]) -> str:
    keys = [(GUARD, "the guard"), (FREE, "needs no probe")]
    keys += [(FITTED, "fit on these very answers")] if "folds" in result.get("baselines", {}) else []
    spans = [f'<span class="key" style="background:{colour}"></span>{text}' for colour, text in keys]
    return f"<p>{' &nbsp; '.join(spans)}</p>"


def _parts(whole: dict[str, Any], result: dict[str, Any]) -> str:
    """A sentence on each part, and why others are not there."""
    facts = result.get("baselines", {})
    values = {**facts, **facts.get("consistency", {}), "layers": ", ".join(map(str, facts.get("layers", [])))}
    lines = [
        f"<dt>{html.escape(part)}</dt><dd>{_SAYS[part].format_map(values)}</dd>"
        for part in whole["parts"]
        if part in _SAYS
    ]
    lines += [
        f"<dt>{html.escape(part)}</dt><dd>Left out: {html.escape(why)}.</dd>"
        for part, why in facts.get("left_out", {}).items()
    ]
    note = ""
    if "folds" in facts:
        note = (
            "<p>refit, linear and random are fit on the evaluated answers themselves, in "
            f"{facts['folds']} folds that share no entity. They know this domain, which favours them; "
            "the guard's own parts see these answers for the first time.</p>"
        )
    return f"<dl>{''.join(lines)}</dl>{note}"


def _set(name: str, one: dict[str, Any]) -> str:
    head = ["", "AUROC", "AUPRC", *(f"recall at {target:.0%} false alarms" for target in TARGETS)]
    rows = []
    for part, values in one["parts"].items():
        recalls = [values[f"recall_at_{target:.2f}"] for target in TARGETS]
        rows.append([html.escape(part), *map(_interval, (values["auroc"], values["auprc"], *recalls))])
    caption = f"{one['n']} answers, {one['wrong']} wrong; the stack's ECE {one['ece']:.3f}, Brier {one['brier']:.3f}"
    return f"<h3>{html.escape(name)}</h3><p><small>{caption}</small></p>{_table(head, rows)}"


def _thresholds(rows: list[dict[str, Any]], without: float) -> str:
    head = ["abstain at", "threshold", "false alarms", "wrong answers caught", "coverage", "truthfulness"]
    body = [["never (no guard)", "", *_UNGUARDED, f"{without:.3f}"]]
    body += [
        [
            f"{row['target_fpr']:.0%} false alarms",
            f"{row['threshold']:.3f}",
            _share(row["false_alarms"], "no right answer was seen"),
            _share(row["caught"], "no wrong answer was seen"),
            _share(row["coverage"], "no answer was judged"),
            f"{row['truthfulness']:.3f}",
        ]
        for row in rows
    ]
    return f"<h3>Abstaining</h3>{_table(head, body)}"


def _share(share: float | None, otherwise: str) -> str:
    return otherwise if share is None else f"{share:.1%}"


def _scale(rows: list[dict[str, Any]] | None, random: list[list[dict[str, Any]]]) -> list[str]:
    if not rows:
        return []
    said = "<p>All answers again, with the probe's positive neurons scaled"
    if random:
        draws = f"{len(random)} draws" if len(random) > 1 else "one draw"
        said += f"; dashed, as many neurons in each layer drawn at random ({draws})"
    tables = [_sweep("The probe's neurons", rows)]
    tables += [_sweep(f"Random neurons, draw {n}", one) for n, one in enumerate(random, 1)]
    by_set = _table(
        ["wrong answers in", *(f"{row['alpha']:g}" for row in rows)],
        [[html.escape(name), *(str(row["sets"][name]["wrong"]) for row in rows)] for name in rows[0]["sets"]],
    )
    return [
        "<h2>Scaling</h2>",
        f"{said}.</p>",
        plots.scaling(rows, random),
        f'<div class="plots">{"".join(tables)}</div>',
        *([f"<h3>The probe's neurons, by set</h3>{by_set}"] if rows[0]["sets"] else []),
    ]


def _sweep(caption: str, rows: list[dict[str, Any]]) -> str:
    head = ["strength", "right", "wrong", "declined", "truthfulness"]
    body = [
        [f"{row['alpha']:g}", *(str(row[key]) for key in ("right", "wrong", "declined")), f"{row['truthfulness']:.3f}"]
        for row in rows
    ]
    return f"<div><h3>{caption}</h3>{_table(head, body)}</div>"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _interval(one: dict[str, float]) -> str:
    return f"{one['value']:.3f} <small>{one['low']:.3f} to {one['high']:.3f}</small>"
