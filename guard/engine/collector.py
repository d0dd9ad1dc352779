"""Collecting, in place of scoring: the mean CETT of every neuron over a span of given text, inside the engine.

The kernels that serve are the ones that are read, so what a probe is fit on is what it will see. Each sequence has a
row of accumulators, one for each neuron of each layer: float32 [slots, neurons] a layer, whatever the text's length.
For a 70B (80 layers of 28,672 neurons) that is 8.8 MiB a sequence, 280 MiB for 32 at once, spread over the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.engine.step import Step

KEY = "hguard_collect"


@dataclass(slots=True)
class Collector:
    """The accumulators of one worker.

    weight: float32 [slots, max_num_batched_tokens], which row of the step counts for which sequence, and how much.
    sums: by layer, float32 [slots, neurons of this rank], the weighted sum of |z| / ||h||.
    first: by layer, the first neuron of this rank.
    """

    slots: int
    layers: int
    weight: torch.Tensor
    ranks: int
    sums: dict[int, torch.Tensor] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    # Positions of a preempted sequence come again; each counts once.
    _next: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    _counted: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    _counts: bool = False

    @property
    def scores(self) -> bool:
        """Whether the runner's adapter has something to fetch after the forward pass."""
        return False

    @property
    def tapped_layers(self) -> int:
        return len(self.sums)

    @property
    def expected_layers(self) -> int:
        return self.layers

    def __post_init__(self) -> None:
        self._next = np.zeros(self.slots, np.int64)
        self._counted = np.zeros(self.slots, np.int64)

    def add_layer(self, layer: int, first: int, neurons: int) -> torch.Tensor:
        """Accumulators for one layer."""
        self.first[layer] = first
        self.sums[layer] = torch.zeros(self.slots, neurons, device=self.weight.device)
        return self.sums[layer]

    def begin(self, step: Step) -> None:
        """Before the forward pass: which of its rows count."""
        if not (step.recorded or self._counts):
            return  # sampling: no row counts, in this step as in the one before
        self._counts = step.recorded
        weight = np.zeros(tuple(self.weight.shape), np.float32)
        rows = step.activations()
        slot = step.roster.slot[rows.owner]
        fresh = rows.position >= self._next[slot]
        weight[slot[fresh], rows.row[fresh]] = 1
        np.maximum.at(self._next, slot, rows.position + 1)
        self._counted += weight.sum(1).astype(np.int64)
        self.weight.copy_(torch.from_numpy(weight))

    def write(self, path: str, slots: list[int], rows: list[int]) -> int:
        """Put the means of ``slots`` into rows of the array at ``path`` [answers, layers, neurons], and clear them.

        Returns how many positions the sequence that counted least had.
        """
        means: NDArray[np.float32] = np.load(Path(path), mmap_mode="r+")
        counted = self._counted[slots]
        for layer, sums in self.sums.items():
            columns = slice(self.first[layer], self.first[layer] + sums.shape[1])
            means[rows, layer, columns] = sums[slots].cpu().numpy() / np.maximum(counted, 1)[:, None]
            sums[slots] = 0
        means.flush()  # type: ignore[attr-defined]
        self._next[slots] = 0
        self._counted[slots] = 0
        return int(counted.min(initial=1 << 30))


_collectors: dict[int, Collector] = {}


def current(vllm_config: Any) -> Collector | None:
    """This worker's collector, made at the first call; None where the engine serves."""
    additional = vllm_config.additional_config
    slots = additional.get(KEY) if isinstance(additional, dict) else None
    if slots is None:
        return None
    if slots not in _collectors:
        from vllm.platforms import current_platform

        rows = vllm_config.scheduler_config.max_num_batched_tokens
        weight = torch.zeros(slots, rows, device=torch.device(current_platform.device_type))
        layers = int(vllm_config.model_config.hf_text_config.num_hidden_layers)
        _collectors[slots] = Collector(slots, layers, weight, vllm_config.parallel_config.tensor_parallel_size)
    return _collectors[slots]
