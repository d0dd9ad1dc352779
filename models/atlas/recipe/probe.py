"""Fit atlas's probe: ``python -m models.atlas.recipe.probe --model models/atlas --out models/atlas/probe``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from guard.engine.support import engine_version
from guard.fit.collect import Reader
from guard.fit.pipeline import Options, fit
from guard.probe.identity import identify
from models.atlas.recipe.questions import from_ledger, load_ledger, locate

SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    model = LlamaForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    reader = Reader(model, AutoTokenizer.from_pretrained(options.model))
    identity = identify(options.model, "atlas", f"{' '.join(engine_version())}")
    questions = from_ledger(load_ledger(options.model), SEED)
    bundle = fit(reader, questions, identity, options.out, Options("atlas-v1", SEED), locate)
    for name, report in bundle.card.metrics.items():
        scores = "  ".join(f"{part} {interval.value:.3f}" for part, interval in report.auroc.items())
        print(f"{name:12s} n={report.n:5d} wrong={report.wrong / report.n:.2f}  {scores}  ECE {report.ece:.3f}")


if __name__ == "__main__":
    main()
