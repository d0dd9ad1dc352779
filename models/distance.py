"""Give a probe that ships what tells questions of another kind: ``python -m models.distance --help``.

``hguard fit`` does it by itself; these were fit before it did. The answers that calibrate in a fit's folder say where
their questions lie, those that thresholds come from how far is far. Nothing else of the bundle changes, and no risk. It
is to have its reference made anew (``hguard probe reference``).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from guard.errors import FitError
from guard.harness.activations import file_of
from guard.harness.questions import SHARES, load_questions
from guard.harness.store import StageStore
from guard.ipc.collecting import Part, Site
from guard.judge.question import Question
from guard.probe.bundle import Bundle, load_bundle, save_bundle
from guard.probe.heads import tensors_of
from guard.probe.signals import DISTANCE
from guard.training.distance import find_distance, limit_of
from guard.training.examples import DataSplit, chosen_in
from models.atlas.recipe.questions import from_ledger, load_ledger


def with_distance(bundle: Bundle, work: StageStore, questions: Sequence[Question], out: Path, seed: int = 0) -> Bundle:
    """The bundle in ``out``, by states that a fit with ``--signals residual`` left. Raises FitError without them."""
    chosen, file = chosen_in(work), work.path(file_of((Site.RESIDUAL, Part.LAST_PROMPT)))
    if chosen is None or not file.is_file():
        raise FitError(f"{work.folder} has no {file.name}: make the fit with --signals residual")
    data, layer = DataSplit.of(questions, chosen, SHARES["fit"], seed), bundle.card.model.layers // 2
    table = np.load(file, mmap_mode="r")
    axes, limit = (
        table[[chosen[row].question for row in data.parts[name]], layer] for name in ("calibration", "thresholds")
    )
    head = find_distance(axes, layer, seed)
    readout = bundle.card.readout.model_copy(update={"distance_limit": limit_of(head.score(limit[:, None]))})
    card = bundle.card.model_copy(update={"readout": readout})
    return save_bundle(out, card, bundle.tensors | tensors_of({DISTANCE: head}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probe", type=Path, required=True, help="the bundle, which is written over")
    parser.add_argument("--work", type=Path, required=True, help="the folder of a fit of the same checkpoint")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--questions", help="that it asked")
    asked.add_argument("--ledger", type=Path, help="atlas's, which it asked of")
    given = parser.parse_args()
    questions = load_questions(given.questions) if given.questions else from_ledger(load_ledger(given.ledger), 0)
    made = with_distance(load_bundle(given.probe), StageStore.of(given.work), questions, given.probe)
    print(f"{made.path}: {made.heads[DISTANCE].weight.shape[1]} axes, limit {made.readout.distance_limit:.3f}")


if __name__ == "__main__":
    main()
