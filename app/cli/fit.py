"""``hguard fit`` and ``hguard calibrate``: from questions to a bundle; what is done is not done again."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
from collections.abc import Coroutine, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from app.cli.flags import add_flags, read_flags
from guard.errors import BundleError, FitError
from guard.harness.store import StageStore
from guard.judge.question import Question
from guard.judge.rules import RemoteJudge
from guard.launch.engines import run_engines
from guard.probe import conformal
from guard.probe.bundle import Bundle
from guard.probe.identity import DTYPES
from guard.training.config import CalibrationConfig, FitConfig

_NONE = Path("none")  # --neurons
_NEEDED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}  # which `make serve` does not bring


def add_parser(commands: Any) -> None:
    """Add the command to ``hguard``'s."""
    parser = commands.add_parser(
        "fit",
        help="fit a probe for a model",
        epilog="Stop it whenever you like: the same command goes on where it stopped. What follows -- goes to vLLM.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", help="folder or Hugging Face id of the model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the bundle; its stages go to OUT/work")
    parser.add_argument("--id", help="name of the bundle (default: the model's name and -probe)")
    parser.add_argument(
        "--neurons",
        type=Path,
        help="fit these with L2 in place of finding any: a list, or a probe of hprobes; none: fit heads alone "
        "(--signals), as for a mixture of experts",
    )
    add_flags(parser, FitConfig)
    parser.add_argument(
        "--dtype", choices=DTYPES, help="precision of the model, now and when it is served (default: the checkpoint's)"
    )
    add_asking(parser)


def add_calibrate_parser(commands: Any) -> None:
    """Add ``hguard calibrate`` to ``hguard``'s commands."""
    parser = commands.add_parser(
        "calibrate",
        help="calibrate a probe for other questions, with the neurons that it has",
        epilog="Stop it whenever you like: the same command goes on where it stopped. What follows -- goes to vLLM.",
    )
    parser.set_defaults(run=run_calibrate)
    parser.add_argument("model", help="folder or Hugging Face id of the model")
    parser.add_argument("--probe", help="the bundle to start from: as for serve")
    parser.add_argument("--out", type=Path, required=True, help="folder for the new bundle; its stages go to OUT/work")
    parser.add_argument("--id", help="name of the new bundle (default: the old one's and -calibrated)")
    add_flags(parser, CalibrationConfig)
    add_asking(parser)


def add_asking(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the options of every command that asks a model questions and has the answers judged."""
    parser.add_argument(
        "--data",
        required=required,
        help="a file of questions and answers (see hguard data), or triviaqa, nq_open, simpleqa",
    )
    parser.add_argument("--limit", type=int, help="use the first N questions only")
    parser.add_argument("--compiled", action="store_true", help="compile the model on CPU")
    parser.add_argument("--judge-url", help="an OpenAI-compatible endpoint that judges, up to /v1; default: by rule")
    parser.add_argument("--judge-model", help="the judge's model; its key is read from HGUARD_JUDGE_KEY")


def run(options: argparse.Namespace, extra: list[str]) -> int:
    """Fit and save. Raises GuardError with what to mend."""
    require_extra("fit")
    from app.resolver import find_model, label_of
    from app.settings import settings_from
    from guard.harness.engines import RealEngines
    from guard.harness.questions import load_questions
    from guard.probe.cett import norms_of
    from guard.probe.identity import identify
    from guard.training.imported import listed
    from guard.training.pipeline import Fit
    from guard.versions import engine_version

    require_free(options.out, unless="work")
    judge, config = judge_of(options), read_flags(options, FitConfig)
    questions = load_questions(options.data, options.limit)
    model, name = find_model(settings_from({"model": options.model}))
    identity = identify(model, label_of(name), " ".join(engine_version()), options.dtype)
    neurons = None
    if options.neurons == _NONE:
        neurons = ()
        config.require_heads()
    elif options.neurons is not None:
        given = listed(options.neurons, identity, weights=False)
        neurons = tuple(sorted((given.layer * identity.neurons_per_layer + given.neuron).tolist()))
    settings = {
        "model": identity.fingerprint,
        "dtype": identity.dtype,
        "questions": digest(questions),
        "judge": options.judge_model,
        "neurons": None if neurons is None else list(neurons),  # as JSON has it
        **config.stage_settings(),
    }
    work = StageStore(options.out / "work", settings)
    size = identity.layers, identity.neurons_per_layer
    norms = np.zeros(size, np.float32) if neurons == () else norms_of(model, *size)
    fit = Fit(work, questions, identity, norms, config, options.id or f"{Path(name).name}-probe", neurons, judge)
    kept = config.sites, config.question, config.measured, neurons != ()
    engines = RealEngines(model, identity.dtype, config.slots, options.compiled, extra, *kept)
    return _finish(fit.run(engines, options.out), work, options)


def run_calibrate(options: argparse.Namespace, extra: list[str]) -> int:
    """Calibrate and save. Raises GuardError with what to mend."""
    require_extra("calibrate")
    from app.resolver import find_model, find_probe
    from app.settings import settings_from
    from guard.harness.engines import RealEngines
    from guard.harness.questions import load_questions
    from guard.probe.bundle import load_bundle, require_model
    from guard.training.recalibration import recalibrate

    require_free(options.out, unless="work")
    judge, config = judge_of(options), read_flags(options, CalibrationConfig)
    questions = load_questions(options.data, options.limit)
    given = settings_from({"model": options.model, "probe": options.probe})
    model, _ = find_model(given)
    bundle = load_bundle(find_probe(given))
    require_model(bundle, model)
    settings = {
        "probe": bundle.revision,
        "questions": digest(questions),
        "judge": options.judge_model,
        "max_tokens": config.max_tokens,
        "seed": config.seed,
    }
    work = StageStore(options.out / "work", settings)
    engines = RealEngines(model, bundle.card.model.dtype, 1, options.compiled, extra)
    name = options.id or f"{bundle.card.id}-calibrated"

    async def calibrated() -> Bundle:
        async with engines.guarded(bundle) as engine:
            return await recalibrate(work, engine, bundle, questions, judge, options.out, name, config)

    return _finish(calibrated(), work, options)


def require_extra(command: str) -> None:
    """Raise FitError with the line that installs the extra ``fit``, when what it brings is not there."""
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise FitError(
            f"hguard {command} needs {' and '.join(missing)}, which the extra fit brings: "
            ".venv/bin/pip install -e '.[fit]'"
        )


def require_free(folder: Path, unless: str | None = None) -> None:
    """Raise BundleError for a folder that holds a bundle, unless this lies there, too: nobody asked for its end."""
    if (folder / "probe.json").exists() and not (unless and (folder / unless).exists()):
        raise BundleError(f"{folder} holds a bundle already: give another --out, or remove that one")


def judge_of(options: argparse.Namespace) -> RemoteJudge | None:
    """The remote judge that --judge-url names, or None. Raises FitError for half of one."""
    if (options.judge_url is None) != (options.judge_model is None):
        raise FitError("--judge-url and --judge-model go together")
    if options.judge_url is None:
        return None
    return RemoteJudge(options.judge_url, options.judge_model, os.environ.get("HGUARD_JUDGE_KEY"))


def digest(questions: Sequence[Question]) -> str:
    """What tells these questions from others."""
    return hashlib.sha256("\n".join(map(repr, questions)).encode()).hexdigest()


def stopped(folder: Path) -> int:
    """Say where what is done is kept; the exit status of a stop by hand."""
    print(f"hguard: stopped; rerun the same command to resume ({folder} keeps finished work)", flush=True)
    return 130


def _finish(fitting: Coroutine[Any, Any, Bundle], work: StageStore, options: argparse.Namespace) -> int:
    """Run it, say what came out and how it is served; a stop by hand keeps what is done."""
    try:
        bundle = run_engines(fitting)
    except KeyboardInterrupt:
        return stopped(work.folder)
    for group, report in bundle.card.metrics.items():
        parts = "  ".join(f"{part} {interval.value:.3f}" for part, interval in report.auroc.items())
        print(f"{group:14s} n={report.n:5d} wrong={report.wrong / report.n:.2f}  {parts}  ECE {report.ece:.3f}")
    for target, at in (bundle.card.at_thresholds or {}).items():
        print(
            f"at most {float(target):.1%} false alarms: threshold {bundle.card.thresholds[target]:.3f} withholds "
            f"{at.false_alarms:.1%} of right and {at.caught:.1%} of wrong answers; coverage {at.coverage:.1%}"
        )
    for rate in conformal.TARGETS:
        if conformal.name_of(rate) not in bundle.card.thresholds:
            print(
                f"at most {rate:.1%} false alarms: no threshold; it takes {conformal.needed(rate)} right answers among "
                f"those that set thresholds, here are {len(bundle.right_risks)}"
            )
    print(f"{bundle.card.id}, revision {bundle.revision}, is in {options.out}")
    print(_how_to_serve(options.model, options.out, bundle))
    return 0


def _how_to_serve(model: str, out: Path, bundle: Bundle) -> str:
    """The command; where its defaults would be refused, with what this probe can give."""
    from app.settings import Settings

    command, wanted = f"hguard serve {model} --probe {out}", Settings.model_fields["target_fpr"].default
    if conformal.needed(wanted) <= len(bundle.right_risks):
        return f"Serve it: {command}"
    least = 1 / (len(bundle.right_risks) + 1)
    return (
        f"`hguard serve` would refuse it at its default of {wanted:.0%} false alarms: too few right answers set "
        f"thresholds. Serve it: {command} --target-fpr {math.ceil(least * 100) / 100:g}; or fit with more questions"
    )
