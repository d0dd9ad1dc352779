"""An evaluation as one HTML file that a person can read: what was found, tables, and plots as SVG inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guard.evaluation import plots
from guard.probe.conformal import TARGETS
from guard.templates import template

PAGE = Path(__file__).with_name("page.html.j2")
GUARD, FREE, FITTED = plots.RED, plots.BLUE, plots.GREY
_COLOURS = {
    **dict.fromkeys(("stack", "neurons", "last_prompt"), GUARD),
    **dict.fromkeys(("entropy", "logprob", "length", "consistency"), FREE),
    **dict.fromkeys(("refit", "linear", "random"), FITTED),
}
_LATER: dict[str, Any] = {"baselines": {}, "scale": [], "scale_random": []}  # what an evaluation may do without


def render(result: dict[str, Any]) -> str:
    """``result`` is what ``hguard eval`` writes as JSON."""
    keys = [(GUARD, "the guard"), (FREE, "needs no probe")]
    keys += [(FITTED, "fit on these very answers")] if "folds" in result.get("baselines", {}) else []
    known = {name: value for name, value in result.items() if value is not None}
    return template(PAGE).render({**_LATER, **known}, plots=plots, colours=_COLOURS, keys=keys, targets=TARGETS)
