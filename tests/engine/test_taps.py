"""The taps are counted in the model that was loaded."""

from __future__ import annotations

import pytest
import torch

from guard.errors import TapError
from guard.worker.layer import GuardRowParallelLinear, require_taps


def model(*layers: int | None) -> torch.nn.Module:
    """A model whose projections are read as these layers, or not at all."""
    made = torch.nn.ModuleList()
    for layer in layers:
        one = GuardRowParallelLinear.__new__(GuardRowParallelLinear)  # its weights do not matter here
        torch.nn.Module.__init__(one)
        one.hguard_layer = layer
        made.append(one)
    return torch.nn.ModuleDict({"embed": torch.nn.Embedding(2, 2), "layers": made})


def test_each_layer_has_its_tap() -> None:
    require_taps(model(0, None, 2, None), {0, 2}, 0)
    require_taps(model(None), set(), 0)


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ((None, None, None), r"worker 3 tapped 0 of 2 layers: .*VLLM_USE_HW_AGNOSTIC.*without a tap: 0, 2"),
        ((0, 0), r"tapped 1 of 2 layers: .*without a tap: 2"),
        ((0, 2, 2), r"tapped layers 2 more often"),
        ((0, 1, 2), r"tapped layers 1 more often"),
    ],
)
def test_as_many_taps_are_not_the_same_taps(layers: tuple[int | None, ...], says: str) -> None:
    with pytest.raises(TapError, match=says):
        require_taps(model(*layers), {0, 2}, 3)
