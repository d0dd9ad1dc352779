"""Measure atlas on everything that makes detection hard: ``make atlas-report``.

Writes ``docs/atlas-report.json``, the plots beside it, and ``docs/atlas-report.md`` around them. It needs both
checkpoints, and the workspaces in which their probes were fit (``python -m models.atlas.recipe.probe``).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guard.evaluation import random_baseline
from guard.harness.store import write_json
from guard.probe.bundle import Bundle, load_bundle
from models.atlas.recipe import detection, laws, plots, prose, trials
from models.atlas.recipe.detection import Fitted
from models.atlas.recipe.questions import from_ledger, held_out, load_ledger
from models.atlas.recipe.trials import Trial

SEED = 1
FIT_SEED = 0  # of the probes' questions and splits
EACH = 200  # questions of each set on a curve
MANY = 500  # of each set that presses for a wrong answer
ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
RANDOM = 3  # draws


def measure(model: Path, base: Path, work: Path) -> dict[str, Any]:
    """All figures; the workspaces of both fits are ``work``/chat and ``work``/base."""
    ledger = load_ledger(model)
    questions = from_ledger(ledger, FIT_SEED)
    chat = Fitted.load(model, work / "chat", questions, FIT_SEED)
    before = Fitted.load(base, work / "base", questions, FIT_SEED)
    figures = {
        "probes": {
            name: _probe(one, shipped) for name, one, shipped in (("chat", chat, model), ("base", before, base))
        },
        "sets": detection.sets(chat, SEED),
        "base": {"sets": detection.sets(before, SEED)},
        "reseeded": {"chat": detection.reseeded(chat), "base": detection.reseeded(before)},
        "transfer": detection.transfer(before, chat, SEED),
    }
    reader, reader_before = trials.reader_of(model), trials.reader_of(base)
    asked = [Trial("held out", (question.text,), question) for question in held_out(ledger, SEED)]
    asked += trials.pressure_sets(ledger, MANY, SEED)
    figures["elsewhere"] = {
        "chat": detection.elsewhere(chat, reader, asked, SEED),
        "base": detection.elsewhere(before, reader_before, asked, SEED),
    }
    figures["alpha"] = _curves(reader, ledger, chat, before)
    figures["once_seen"] = {
        "base": laws.once_seen(reader_before, ledger, SEED),
        "chat": laws.once_seen(reader, ledger, SEED),
    }
    figures["shadows"] = {"base": laws.shadows(reader_before, ledger), "chat": laws.shadows(reader, ledger)}
    figures["ignorance"] = {"base": laws.ignorance(reader_before, ledger), "chat": laws.ignorance(reader, ledger)}
    return figures


def _probe(fitted: Fitted, model: Path) -> dict[str, Any]:
    bundle = fitted.bundle
    total = bundle.card.model.layers * bundle.card.model.neurons_per_layer
    return {
        "id": bundle.card.id,
        "revision": bundle.revision,
        "shipped": _alike(load_bundle(model / "probe"), bundle),
        "neurons": len(bundle.neuron),
        "h_neurons": bundle.h_neurons,
        "per_mille": 1000 * bundle.h_neurons / total,
        "C": bundle.card.training.C,
        "answers": bundle.card.training.answers,
    }


def _alike(one: Bundle, other: Bundle) -> bool:
    """Whether two fits came to the same; kernels round differently from machine to machine, so hashes may not."""
    same = one.layer.tolist() == other.layer.tolist() and one.neuron.tolist() == other.neuron.tolist()
    return same and bool(np.allclose(one.coefficient, other.coefficient, rtol=1e-3))


def _curves(reader: Any, ledger: dict[str, Any], chat: Fitted, base: Fitted) -> dict[str, Any]:
    """Answers against the strength of scaling: the probe's H-neurons, those found on base, random ones."""
    asked = trials.only(
        trials.exposure_sets(ledger, EACH, SEED),
        lambda label: (
            label in {f"{d} {g}" for d in ("places", "languages") for g in ("popular", "never", "fabricated")}
        ),
    )
    asked += trials.pressure_sets(ledger, EACH, SEED)
    width = chat.bundle.card.model.neurons_per_layer
    random = [random_baseline.layer_matched(chat.h_neurons, width, SEED + draw) for draw in range(RANDOM)]
    return {
        "h_neurons": trials.sweep(reader, chat.h_neurons, asked, ALPHAS),
        "base_h_neurons": trials.sweep(reader, base.h_neurons, asked, ALPHAS),
        "random": [trials.sweep(reader, drawn, asked, ALPHAS) for drawn in random],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where the fits of both probes left their stages")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prose-only", action="store_true", help="take the figures from the JSON that is there")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    file = options.out / "atlas-report.json"
    if not options.prose_only:
        write_json(file, measure(options.model, options.base, options.work))
    figures = json.loads(file.read_text(encoding="utf-8"))
    plots.draw(figures, options.out / "atlas-report")
    (options.out / "atlas-report.md").write_text(prose.render(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
