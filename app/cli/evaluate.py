"""``hguard eval``: measure a guarded model on questions whose answers are known."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.fit import add_asking, digest, judge_of, require_extra, stopped
from app.cli.flags import add_flags, read_flags
from guard.errors import FitError
from guard.evaluation.config import EvalConfig
from guard.judge.question import Question
from guard.launch.engines import run_engines

if TYPE_CHECKING:  # it brings numpy and what the extra brings
    from guard.evaluation.figures import EvaluatedAnswer


_SHOWN = 20


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
    add_flags(parser, EvalConfig)
    parser.add_argument(
        "--show-judged",
        nargs="?",
        type=int,
        const=_SHOWN,
        metavar="N",
        help=f"print the first N questions with what is accepted, the answer and the verdict (N: {_SHOWN})",
    )
    parser.add_argument("--work", type=Path, help="a folder that keeps answers, so that a stop loses nothing")
    add_asking(parser)


def run(options: argparse.Namespace, extra: list[str]) -> int:
    """Measure and write. Raises GuardError with what to mend."""
    require_extra("eval")
    from app.resolver import find_model, find_probe
    from app.settings import settings_from
    from guard.evaluation.baseline_data import SLOTS
    from guard.evaluation.html import render
    from guard.evaluation.run import Evaluation
    from guard.harness.engines import RealEngines
    from guard.harness.questions import load_questions
    from guard.harness.store import StageStore, translate_os_errors
    from guard.probe.bundle import load_bundle, require_calibrated, require_model

    judge, config = judge_of(options), read_flags(options, EvalConfig)
    if options.show_judged is not None and options.show_judged < 1:
        raise FitError("--show-judged takes how many questions to show, 1 or more")
    questions = load_questions(options.data, options.limit)
    given = settings_from({"model": options.model, "probe": options.probe})
    model, name = find_model(given)
    bundle = load_bundle(find_probe(given))
    require_model(bundle, model)
    require_calibrated(bundle, options.model)
    settings = {
        "probe": bundle.revision,
        "questions": digest(questions),
        "judge": options.judge_model,
        "max_tokens": config.max_tokens,
    }
    engines = RealEngines(model, bundle.card.model.dtype, SLOTS, options.compiled, extra)
    with contextlib.ExitStack() as stack:
        folder = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trial = Evaluation(
            engines, bundle, questions, judge, config.max_tokens, lambda name: StageStore(folder / name, settings)
        )
        try:
            result = run_engines(trial.run(list(config.scales), config.random_draws, config.baselines))
        except KeyboardInterrupt:
            return stopped(folder) if options.work else 130
    for line in judged_lines(questions, trial.answers, options.show_judged or 0):
        print(line)
    result = {"model": name, **result}
    page = options.html or options.json.with_suffix(".html")
    for path, text in ((options.json, json.dumps(result, indent=1) + "\n"), (page, render(result))):
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for group, one in result["sets"].items():
        parts = "  ".join(f"{part} {values['auroc']['value']:.3f}" for part, values in one["parts"].items())
        print(f"{group:14s} n={one['n']:5d} wrong={one['wrong'] / one['n']:.2f}  {parts}  ECE {one['ece']:.3f}")
    print(f"{options.json} and {page} are written")
    return 0


def judged_lines(questions: Sequence[Question], answers: Sequence[EvaluatedAnswer], most: int) -> Iterator[str]:
    """The first ``most`` questions with what is accepted, the answer, and what was made of it."""
    for question, answer in list(zip(questions, answers, strict=True))[:most]:
        verdict = {True: "right", False: "wrong", None: "declined"}[answer.right]
        yield f"{verdict:9s} {' '.join(question.text.split())}"
        yield f"          accepted: {'; '.join(question.accepted) or '(none)'}"
        yield f"          answer:   {' '.join(answer.text.split()) or '(empty)'}"
