"""Measure SmolLM2's probe on held-out entities: ``make smollm2-report WORK=FOLDER``.

Writes ``smollm2-report.json``, the plots beside it, and ``smollm2-report.md`` around them. Each stage leaves its
figures in ``WORK/report``, by a digest of the answers: a stop loses one stage, and more answers make all of them anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from guard.harness.store import write_json
from guard.probe.cett import norms_of
from models.smollm2.checkpoint import checkpoint
from models.smollm2.recipe import detection, intervals, plots, prose, sources, sparsity
from models.smollm2.recipe.answered import GENERAL, PLACES, Answered, load
from models.smollm2.recipe.fits import Fits

LAYERS, NEURONS = 30, 1536
SIZES = (1000, 2000, 4000, 8000)
NAME = "smollm2-report"
# Written by `python -m models.smollm2.recipe.scaling` and `... .lengths`, which ask an engine, by `... .signals`,
# `... .domain` and `... .quantised`.
APART = {
    "scaling": "scaling.json",
    "lengths": "lengths.json",
    "signals": "signals.json",
    "domain": "domain.json",
    "quantised": "quantised.json",
}

Say = Callable[[str], None]


def measure(
    folder: Path,
    norms: NDArray[np.float32],
    say: Say,
    most: int | None = None,
    sizes: tuple[int, ...] = SIZES,
    shares: tuple[float, ...] = sparsity.SHARES,
    random: int = sparsity.RANDOM,
    draws: int = intervals.DRAWS,
    questions: Path | None = None,
    folds: bool = True,
) -> dict[str, Any]:
    """All figures of the workspace ``folder``. A part that cannot be measured is null. ``folds``: fit five times more,
    for figures over all answers and not the test part alone."""
    answered = load(folder, norms, most, questions)
    kept = folder / "report"
    fits = Fits(answered, kept, say)
    stage = _Stages(kept, answered, (random, draws, sizes, shares), say)
    parts = answered.parts()
    say(f"{len(answered)} answers, {int((~answered.wrong).sum())} right")
    held, chosen = detection.held_out(answered, fits)
    figures: dict[str, Any] = {"answers": _facts(answered), "probe": _probe(answered, chosen)}
    figures["held_out"] = stage("held_out", lambda: detection.by_set(answered, held, parts["test"], draws))
    figures["alarms"] = stage(
        "alarms", lambda: detection.alarms(answered, held["stack"], parts["thresholds"], parts["test"], draws)
    )
    figures["curve"] = stage("curve", lambda: detection.curve(answered, fits, sizes, draws))
    figures["shift"] = stage(
        "shift",
        lambda: {
            "from places": detection.shift(answered, fits, PLACES, GENERAL, draws),
            "to places": detection.shift(answered, fits, GENERAL, PLACES, draws),
        },
    )
    figures["sparse"] = stage("sparse", lambda: sparsity.against_count(answered, fits, shares, random, draws))
    figures |= _across(answered, fits, stage, chosen.C, draws) if folds else {"crossed": None, "popularity": None}
    return finite({**figures, **dict.fromkeys(APART), **apart(folder)})


def apart(folder: Path) -> dict[str, Any]:
    """What other programs left in the workspace."""
    there = {name: folder / file for name, file in APART.items() if (folder / file).is_file()}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in there.items()}


def _across(answered: Answered, fits: Fits, stage: _Stages, C: float, draws: int) -> dict[str, Any]:
    """Figures over all answers, each read by a probe that was fit on other entities."""
    leads = fits.chosen(answered.parts()["train"], leads=True)
    across = detection.crossed(answered, fits, C, leads.C)
    known = populations()
    return {
        "crossed": stage("crossed", lambda: detection.by_set(answered, across, np.arange(len(answered)), draws)),
        "popularity": known
        and stage("popularity", lambda: sparsity.popularity(answered, across["stack"], known, draws)),
    }


class _Stages:
    """Figures that are kept as JSON as soon as they are there."""

    def __init__(self, folder: Path, answered: Answered, settings: object, say: Say) -> None:
        self._folder, self._digest, self._say = folder, answered.digest(settings), say

    def __call__(self, name: str, figures: Callable[[], Any]) -> Any:
        file = self._folder / f"{name}-{self._digest}.json"
        if not file.is_file():
            self._say(f"measuring {name}")
            write_json(file, finite(figures()))
        return json.loads(file.read_text(encoding="utf-8"))


def finite(value: Any) -> Any:
    """The same with null for what is not a finite number, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def populations() -> dict[str, int] | None:
    """Inhabitants of the largest city of each name; None where GeoNames' package is not installed."""
    try:
        found = sources.cities()
    except ModuleNotFoundError:
        return None
    return {city.name: city.population for city in reversed(found)}


def _facts(answered: Answered) -> dict[str, Any]:
    length = answered.signals["length"]
    return {
        "n": len(answered),
        "right": int((~answered.wrong).sum()),
        "entities": len(set(answered.entities)),
        "parts": {
            name: {"n": len(part), "right": int((~answered.wrong[part]).sum())}
            for name, part in answered.parts().items()
        },
        "sets": {
            name: {**counts, "tokens": float(length[answered.sets == name].mean())}
            for name, counts in sorted(answered.counts.items())
            if (answered.sets == name).any()
        },
    }


def _probe(answered: Answered, chosen: Any) -> dict[str, Any]:
    layers, width = answered.norms.shape
    return {
        "neurons": len(chosen.index),
        "h_neurons": int((chosen.coefficient > 0).sum()),
        "of": layers * width,
        "C": chosen.C,
        "by_layer": np.bincount(chosen.index // width, minlength=layers).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="questions, answers and activations of a finished fit")
    parser.add_argument("--questions", type=Path, help="where they are not in the same folder")
    parser.add_argument("--model", type=Path, help="the checkpoint, where it is not the pinned one")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--most", type=int, help="only the answers to so many of the first questions")
    parser.add_argument("--random", type=int, default=sparsity.RANDOM, help="draws of random neurons")
    parser.add_argument("--draws", type=int, default=intervals.DRAWS, help="of the bootstrap")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-folds", action="store_true", help="spare the five further fits over all answers")
    parser.add_argument(
        "--prose-only",
        action="store_true",
        help="take the figures from the JSON that is there, but for what scaling, lengths and signals left in WORK",
    )
    given = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    file = given.out / f"{NAME}.json"
    if not given.prose_only:
        with threadpool_limits(limits=given.threads):
            norms = norms_of(given.model or checkpoint(say), LAYERS, NEURONS)
            figures = measure(
                given.work,
                norms,
                say,
                given.most,
                random=given.random,
                draws=given.draws,
                questions=given.questions,
                folds=not given.no_folds,
            )
    else:
        figures = json.loads(file.read_text(encoding="utf-8")) | finite(apart(given.work))
    write_json(file, figures)
    figures = json.loads(file.read_text(encoding="utf-8"))
    plots.draw(figures, given.out / NAME)
    (given.out / f"{NAME}.md").write_text(prose.render(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
