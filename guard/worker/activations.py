"""Collecting, in place of scoring: the mean CETT of every neuron, and the mean output of every layer's MLP, over a span
of given text, inside the engine.

The kernels that serve are the ones that are read, so what a probe is fit on is what it will see. Each sequence has two
rows of accumulators, for its span and for the span's first position alone (the last prompt token), one for each neuron
of each layer: float32 [2 slots, neurons] a layer, whatever the text's length. For a 70B (80 layers of 28,672 neurons)
that is 17.5 MiB a sequence, 560 MiB for 32 at once, spread over the ranks. Beside them the outputs, float32
[slots, hidden] a layer, the same on every rank and whole on each: for a 70B (8,192 wide) 2.5 MiB a sequence, 80 MiB for
32.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.ipc.taps import COLLECT_KEY
from guard.worker.batch import Step


@dataclass(slots=True)
class Collector:
    """The accumulators of one worker.

    weight: float32 [2 slots, max_num_batched_tokens], which row of the step counts for which sequence, and how much:
    first the spans, then their first positions alone.
    sums: by layer, float32 [2 slots, neurons of this rank], the weighted sum of |z| / ||h||.
    outputs: by layer, float32 [slots, hidden], the weighted sum of h over the spans, summed over the ranks already.
    first: by layer, the first neuron of this rank.
    """

    slots: int
    layers: int
    weight: torch.Tensor
    ranks: int
    sums: dict[int, torch.Tensor] = field(default_factory=dict)
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    # Positions of a preempted sequence come again; each counts once.
    _next: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    _counted: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    # Whose a slot is: what a sequence left that was given up, and never written, is not the next one's.
    _generation: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
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

    @property
    def wanted(self) -> Collection[int]:
        """The layers that are read: all."""
        return range(self.layers)

    def __post_init__(self) -> None:
        self._next = np.zeros(self.slots, np.int64)
        self._counted = np.zeros(self.slots, np.int64)
        self._generation = np.zeros(self.slots, np.uint32)

    def add_layer(self, layer: int, first: int, neurons: int, hidden: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Accumulators for one layer: its ``sums`` and its ``outputs``."""
        self.first[layer] = first
        # Not the model's dtype, which is vLLM's default while it loads: sums of many small shares need float32.
        make = partial(torch.zeros, dtype=torch.float32, device=self.weight.device)
        self.sums[layer] = make(len(self.weight), neurons)
        self.outputs[layer] = make(self.slots, hidden)
        return self.sums[layer], self.outputs[layer]

    def begin(self, step: Step) -> None:
        """Before the forward pass: which of its rows count."""
        if not (step.recorded or self._counts):
            return  # sampling: no row counts, in this step as in the one before
        self._counts = step.recorded
        if step.recorded:
            self._capture(step.captured.slot, step.captured.generation)
        weight = np.zeros(tuple(self.weight.shape), np.float32)
        rows = step.activations()
        slot = step.captured.slot[rows.owner]
        fresh = rows.position >= self._next[slot]
        weight[slot[fresh], rows.row[fresh]] = 1
        lead = fresh & (rows.position == step.captured.start[rows.owner])
        weight[self.slots + slot[lead], rows.row[lead]] = 1
        np.maximum.at(self._next, slot, rows.position + 1)
        self._counted += weight[: self.slots].sum(1).astype(np.int64)
        self.weight.copy_(torch.from_numpy(weight))

    def write(
        self, path: str, slots: list[int], rows: list[int], outputs: str | None = None, leads: str | None = None
    ) -> tuple[list[int], list[int]]:
        """Put the means of ``slots`` into rows of the array at ``path`` [answers, layers, neurons], and clear them.

        With ``leads``, what the spans' first positions had alone into the array there, of the same shape. With
        ``outputs``, the means of the layers' outputs into the array there [answers, layers, hidden]; one rank does.
        Returns how many positions each sequence counted, and the first layer in which one of them was not finite, -1
        for none: what is written of such a sequence means nothing.
        """
        counted, flawed = self._counted[slots], self._flawed(slots)
        self._put(path, self.sums, self.first, slots, rows, counted)
        firsts = [self.slots + slot for slot in slots]
        if leads is not None:
            self._put(leads, self.sums, self.first, firsts, rows, np.ones_like(counted))
        if outputs is not None and not any(self.first.values()):
            self._put(outputs, self.outputs, dict.fromkeys(self.outputs, 0), slots, rows, counted)
        self._clear(slots)
        return [int(count) for count in counted], flawed

    def _capture(self, slot: NDArray[np.int64], generation: NDArray[np.uint32]) -> None:
        """Clear the slots that have changed hands; both arrays [requests], slot -1 where none is had."""
        moved = (slot >= 0) & (generation != self._generation[slot])
        if moved.any():
            self._clear(slot[moved].tolist())
            self._generation[slot[moved]] = generation[moved]

    def _clear(self, slots: list[int]) -> None:
        rows = [*slots, *(self.slots + slot for slot in slots)]
        for sums, averaged in zip(self.sums.values(), self.outputs.values(), strict=True):
            sums[rows] = 0
            averaged[slots] = 0
        self._next[slots] = 0
        self._counted[slots] = 0

    def _flawed(self, slots: list[int]) -> list[int]:
        """By slot, the first layer whose sums ``op.collect`` marked, or -1."""
        layers = sorted(self.sums)
        marked = torch.stack([self.sums[layer][slots, 0] for layer in layers]).isnan().cpu().numpy()
        return [layers[int(one.argmax())] if one.any() else -1 for one in marked.T]

    def _put(
        self,
        path: str,
        sums: dict[int, torch.Tensor],
        first: dict[int, int],
        slots: list[int],
        rows: list[int],
        counted: NDArray[np.int64],
    ) -> None:
        """Write means by layer, from each layer's ``first`` column on."""
        means: NDArray[np.float32] = np.load(Path(path), mmap_mode="r+")
        share = np.maximum(counted, 1)[:, None]
        for layer, one in sums.items():
            means[rows, layer, first[layer] : first[layer] + one.shape[1]] = one[slots].cpu().numpy() / share
        means.flush()  # type: ignore[attr-defined]


_collectors: dict[int, Collector] = {}


def current(vllm_config: Any) -> Collector | None:
    """This worker's collector, made at the first call; None where the engine serves."""
    additional = vllm_config.additional_config
    slots = additional.get(COLLECT_KEY) if isinstance(additional, dict) else None
    if slots is None:
        return None
    if slots not in _collectors:
        from vllm.platforms import current_platform

        rows = vllm_config.scheduler_config.max_num_batched_tokens
        weight = torch.zeros(2 * slots, rows, dtype=torch.float32, device=torch.device(current_platform.device_type))
        layers = int(vllm_config.model_config.hf_text_config.num_hidden_layers)
        _collectors[slots] = Collector(slots, layers, weight, vllm_config.parallel_config.tensor_parallel_size)
    return _collectors[slots]
