"""``hguard eval``: measure a guarded model on questions whose answers are known."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from app.fit import add_asking, judge_of
from guard.engine.launch import run_engines
from guard.errors import FitError


def add_parser(commands: Any) -> None:
    """Add the command to ``hguard``'s."""
    parser = commands.add_parser(
        "eval",
        help="measure detection, calibration and abstention on questions whose answers are known",
        epilog="None of the questions may have been fit or calibrated on. What follows -- goes to vLLM.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", help="folder or Hugging Face id of the model")
    parser.add_argument("--probe", help="as for serve")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--html", type=Path, help="where a page with plots goes (default: beside the JSON)")
    parser.add_argument("--damp-sweep", metavar="A,B,...", help="also answer with the neurons scaled by each of these")
    add_asking(parser)


def run(options: argparse.Namespace, extra: list[str]) -> int:
    """Measure and write. Raises GuardError with what to mend."""
    from app.settings import Settings
    from app.source import find_model, find_probe
    from guard.fit import examine
    from guard.fit.engines import RealEngines
    from guard.fit.page import render
    from guard.fit.questions import load_questions
    from guard.fit.workspace import Workspace, explained
    from guard.probe.bundle import load_bundle, require_model

    judge, strengths = judge_of(options), _strengths(options.damp_sweep)
    questions = load_questions(options.data, options.most)
    given = Settings(model=options.model, probe=options.probe)
    model, name = find_model(given)
    bundle = load_bundle(find_probe(given))
    require_model(bundle, model)
    engines = RealEngines(model, bundle.card.model.dtype, 1, options.compiled, extra)

    async def measured(folder: Path) -> dict[str, Any]:
        async with engines.guarded(bundle) as engine:
            answers = await examine.answer_all(engine, questions, judge, Workspace(folder / "1", {}), options.longest)
            result = {"model": name, **examine.report(bundle, bundle.readout, questions, answers)}
            if strengths:
                result["damp"] = await examine.damp_sweep(
                    engine,
                    questions,
                    judge,
                    lambda alpha: Workspace(folder / f"damp-{alpha:g}", {}),
                    options.longest,
                    strengths,
                )
            return result

    with tempfile.TemporaryDirectory() as folder:
        result = run_engines(measured(Path(folder)))
    page = options.html or options.json.with_suffix(".html")
    for path, text in ((options.json, json.dumps(result, indent=1) + "\n"), (page, render(result))):
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for group, one in result["sets"].items():
        parts = "  ".join(f"{part} {values['auroc']['value']:.3f}" for part, values in one["parts"].items())
        print(f"{group:14s} n={one['n']:5d} wrong={one['wrong'] / one['n']:.2f}  {parts}  ECE {one['ece']:.3f}")
    print(f"{options.json} and {page} are written")
    return 0


def _strengths(text: str | None) -> list[float]:
    try:
        strengths = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise FitError(f"--damp-sweep takes numbers with commas between, not {text!r}") from None
    if any(not 0 <= alpha <= 3 for alpha in strengths):
        raise FitError("--damp-sweep takes strengths from 0 to 3")
    return strengths
