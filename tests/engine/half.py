"""What scores in half precision are held to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from guard.probe.bundle import Bundle
from guard.probe.signals import NEURONS, Source, TokenSignals, names
from models.atlas.recipe.reference import Reader
from tests.engine.harness import Produced
from tests.engine.test_adversity import read
from tests.engine.test_parity import signals

# The engine's scores may be so many times as far from float32 as transformers' in the same precision are, by root mean
# squares over all tokens of a test.
NEAR = 1.5


class References:
    """transformers, in float32 and in the precision that the engine has."""

    def __init__(self, exact: Reader, rounded: Reader, bundle: Bundle) -> None:
        self._exact, self._rounded, self._bundle = exact, rounded, bundle

    def hold(self, produced: list[Produced], prompts: list[list[int]], scale: float = 1.0) -> None:
        self.hold_signals([signals(one) for one in produced], prompts, [one.tokens for one in produced], scale)
        for one in produced:  # what vLLM reports, by another path, from the same logits
            np.testing.assert_allclose(signals(one)["logprob"], one.logprobs, rtol=1e-4, atol=1e-4)

    def hold_signals(
        self, measured: list[TokenSignals], prompts: list[list[int]], answers: list[list[int]], scale: float = 1.0
    ) -> None:
        exact, rounded = (
            read(reader, self._bundle, prompts, answers, scale) for reader in (self._exact, self._rounded)
        )
        for name in self._bundle.layers_read:
            assert_near(scores(measured, name), scores(rounded, name), scores(exact, name))
        for name in names(Source.DRAW, self._bundle.measured):
            values = (np.concatenate([one[name] for one in read]) for read in (measured, rounded, exact))
            assert_near(*values, most=0.2)  # differences of large numbers


def assert_near(
    got: NDArray[np.float32], rounded: NDArray[np.float32], exact: NDArray[np.float32], most: float = 0.02
) -> None:
    """``got`` is no further from ``exact`` than NEAR times what ``rounded``, transformers in that precision, is; and
    that is less than ``most`` of their size."""
    allowed = size(rounded - exact)
    print(f"values of {size(exact):.4g}, transformers {allowed:.3g} off, engine {size(got - exact):.3g} off")
    assert 0 < allowed < most * size(exact), "the tolerance must mean something"
    assert size(got - exact) <= NEAR * allowed


def scores(measured: list[TokenSignals], name: str = NEURONS) -> NDArray[np.float32]:
    """One signal of every token but the last of each answer, which never enters the model."""
    return np.concatenate([np.append(one.last_prompt[name], one[name][:-1]) for one in measured])


def size(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
