"""What a probe would have read of the answers that a fit left in its folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from guard.evaluation.random_baseline import flat
from guard.harness.activations import file_of
from guard.harness.answers import Example
from guard.harness.features import Features
from guard.harness.store import StageStore
from guard.ipc.collecting import Part, Site, site_of
from guard.probe.bundle import Bundle
from guard.probe.signals import DISTANCE, NEURONS, TokenSignals
from guard.training.pipeline import whole


def signals_of(
    work: StageStore, chosen: Sequence[Example], bundle: Bundle, norms: NDArray[np.float32]
) -> list[TokenSignals]:
    """Of each answer, by what was collected of it; ``norms`` float32 [layers, neurons], of the model that answered."""
    rows = [one.question for one in chosen]

    def forward(part: Part) -> dict[str, NDArray[np.float64]]:
        cett = Features.of(work.path(file_of((Site.NEURONS, part))), norms, rows).take(flat(bundle))
        scores = {NEURONS: (cett @ bundle.coefficient).astype(np.float64)}
        for name, head in bundle.heads.items():
            if name == DISTANCE and part is not Part.LAST_PROMPT:
                continue  # that of a mean is no mean
            states = np.load(work.path(file_of((site_of(name), part))), mmap_mode="r")
            scores[name] = head.score(np.stack([states[rows, layer] for layer in head.layer], 1))
        return scores

    means, leads = forward(Part.SPAN), forward(Part.LAST_PROMPT)
    return [
        whole(one, *({name: float(by[name][row]) for name in by} for by in (means, leads)))
        for row, one in enumerate(chosen)
    ]
