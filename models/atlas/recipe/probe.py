"""Fit a checkpoint's probe: ``python -m models.atlas.recipe.probe --help``.

What ``hguard fit`` does, with one greedy answer to each question of the ledger, and the ledger's own answer spans.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from guard.harness.engines import RealEngines
from guard.harness.store import StageStore
from guard.launch.engines import run_engines
from guard.probe.cett import norms_of
from guard.probe.identity import identify
from guard.training.config import FitConfig
from guard.training.pipeline import Fit
from guard.versions import engine_version
from models.atlas.recipe.questions import from_ledger, load_ledger, locate

SEED = 0
CAP = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--ledger", type=Path, required=True, help="the folder that holds ledger.json")
    parser.add_argument("--id", required=True, help="of the bundle")
    parser.add_argument("--work", type=Path, required=True, help="where the stages go; the bundle goes to WORK/probe")
    parser.add_argument("--signals", default=[], help="what else the probe reads, as of hguard fit")
    options = parser.parse_args()
    identity = identify(options.model, "atlas", " ".join(engine_version()))
    questions = from_ledger(load_ledger(options.ledger), SEED)
    config = FitConfig(
        seed=SEED, max_tokens=24, max_neuron_fraction=CAP, calibration="isotonic", signals=options.signals
    )
    work = StageStore(options.work, {"model": identity.fingerprint, "seed": SEED, "signals": list(config.signals)})
    norms = norms_of(options.model, identity.layers, identity.neurons_per_layer)
    fit = Fit(work, questions, identity, norms, config, options.id, locate=locate)
    engines = RealEngines(options.model, identity.dtype, config.slots, sites=config.sites, measured=config.measured)
    bundle = run_engines(fit.run(engines, options.work / "probe"))
    for name, report in bundle.card.metrics.items():
        scores = "  ".join(f"{part} {interval.value:.3f}" for part, interval in report.auroc.items())
        print(f"{name:12s} n={report.n:5d} wrong={report.wrong / report.n:.2f}  {scores}  ECE {report.ece:.3f}")


if __name__ == "__main__":
    main()
