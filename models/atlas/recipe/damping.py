"""What scaling a few neurons does to atlas's answers: right, wrong and declined against alpha."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from guard.fit.questions import Question
from guard.fit.reader import Reader
from models.atlas.recipe.evaluate import Rates, rates

ALPHAS = (0.0, 0.5, 1.0, 2.0, 3.0)


@contextmanager
def dampened(reader: Reader, index: NDArray[np.int64], alpha: float) -> Iterator[None]:
    """Scale the flat neurons ``index`` (layer * neurons + neuron) by alpha inside this block."""
    width = reader.norms.shape[1]
    hooks = []
    for number, layer in enumerate(reader.layers):
        factor = torch.ones(width)
        factor[torch.from_numpy(index[index // width == number] % width)] = alpha
        hooks.append(layer.register_forward_pre_hook(lambda _, inputs, factor=factor: (inputs[0] * factor,)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def sweep(
    reader: Reader, index: NDArray[np.int64], questions: Sequence[Question], labels: Sequence[str]
) -> dict[str, Rates]:
    """Rates by label for each alpha (its text is the key)."""
    found = {}
    for alpha in ALPHAS:
        with dampened(reader, index, alpha):
            found[f"{alpha:g}"] = rates(reader, questions, labels)
    return found
