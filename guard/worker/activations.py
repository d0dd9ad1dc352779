"""Collecting, in place of scoring: the mean of what every neuron and every layer does over given tokens, inside the
engine.

The kernels that serve are the ones that are read, so what a probe is fit on is what it will see. Each sequence has a
row of accumulators for each part of it (``guard.ipc.collecting``) at each site of each layer, float32, whatever the
text's length. Two parts of all neurons are, for a 70B (80 layers of 28,672 neurons), 17.5 MiB a sequence, 560 MiB for
32 at once, spread over the ranks. What is as wide as the model is the same on every rank, and whole on each: for a 70B
(8,192 wide) 2.5 MiB a sequence and part.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.errors import TapError
from guard.ipc.collecting import NAMES, Collecting, Part, Site, site_of
from guard.probe.signals import OF_STATES
from guard.worker.batch import Step

_NEVER = np.iinfo(np.int64).max


@dataclass(slots=True)
class Accumulators:
    """One site of one layer. sums: float32 [blocks * slots, width of this rank], by part and slot; the weighted sum of
    what is there. weight: the same rows of ``Collector.weight``. first: the first column of this rank, -1 where another
    one writes the same."""

    sums: torch.Tensor
    weight: torch.Tensor
    first: int


@dataclass(slots=True)
class Collector:
    """The accumulators of one worker.

    weight: float32 [parts * slots, max_num_batched_tokens], which row of the step counts for which sequence, and how
    much: part by part, in the order of ``Collecting.parts``. tables: by site and layer.
    """

    collecting: Collecting
    layers: int
    weight: torch.Tensor
    ranks: int
    question_start: int = _NEVER
    tables: dict[Site, dict[int, Accumulators]] = field(default_factory=dict)
    # Positions of a preempted sequence come again; each counts once.
    _next: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    _counted: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # [parts, slots]
    # Whose a slot is: what a sequence left that was given up, and never written, is not the next one's.
    _generation: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    _counts: bool = False

    @property
    def slots(self) -> int:
        return self.collecting.slots

    @property
    def scores(self) -> bool:
        """Whether the runner's adapter has something to fetch after the forward pass."""
        return False

    @property
    def tapped_layers(self) -> int:
        return len(self.tables.get(Site.NEURONS, ()))

    @property
    def expected_layers(self) -> int:
        return len(self.wanted)

    @property
    def wanted(self) -> Collection[int]:
        """The layers whose neurons are read: all, or none."""
        return range(self.layers if self.collecting.neurons else 0)

    def __post_init__(self) -> None:
        self._next = np.zeros(self.slots, np.int64)
        self._counted = np.zeros((len(self.collecting.parts), self.slots), np.int64)
        self._generation = np.zeros(self.slots, np.uint32)

    def add(self, site: Site, layer: int, rank: int, width: int) -> Accumulators:
        """Accumulators for one site of a layer, of which this ``rank`` has ``width`` columns."""
        first = rank * width if site.sharded else -1 if rank else 0
        rows = self.collecting.blocks(site) * self.slots
        # Not the model's dtype, which is vLLM's default while it loads: sums of many small shares need float32.
        sums = torch.zeros(rows, width, dtype=torch.float32, device=self.weight.device)
        made = self.tables.setdefault(site, {})[layer] = Accumulators(sums, self.weight[:rows], first)
        return made

    def require_sites(self) -> None:
        """Raise TapError where a layer of the model lacks a site that is wanted."""
        for site in self.collecting.sites:
            if missing := sorted(set(range(self.layers)) - set(self.tables.get(site, ()))):
                read = " and ".join(name for name in OF_STATES if site_of(name) is site)
                raise TapError(
                    f"{site} cannot be collected of this model: it builds no {NAMES[site]} in layers "
                    f"{', '.join(map(str, missing))}; leave {read} out"
                )

    def begin(self, step: Step) -> None:
        """Before the forward pass: which of its rows count."""
        if not (step.recorded or self._counts):
            return  # sampling: no row counts, in this step as in the one before
        self._counts = step.recorded
        captured, slots = step.captured, self.slots
        if step.recorded:
            self._capture(captured.slot, captured.generation)
        weight = np.zeros(tuple(self.weight.shape), np.float32)
        rows = step.every() if self.collecting.question else step.activations()
        slot, start = captured.slot[rows.owner], captured.start[rows.owner]
        fresh = rows.position >= self._next[slot]
        asked = (rows.position >= self.question_start) & (rows.position <= start)
        counting = {Part.SPAN: rows.position >= start, Part.LAST_PROMPT: rows.position == start, Part.QUESTION: asked}
        for block, part in enumerate(self.collecting.parts):
            chosen = fresh & counting[part]
            weight[block * slots + slot[chosen], rows.row[chosen]] = 1
        np.maximum.at(self._next, slot, rows.position + 1)
        self._counted += weight.sum(1).reshape(self._counted.shape).astype(np.int64)
        self.weight.copy_(torch.from_numpy(weight))

    def write(
        self, slots: list[int], rows: list[int], targets: Sequence[tuple[Site, Part, str]]
    ) -> tuple[list[int], list[int]]:
        """Put the means of ``slots`` into rows of arrays, and clear them: of each site and part the one at its path,
        float32 [answers, layers, width].

        What every rank has whole, one of them writes. Returns how many positions of its span each sequence counted, and
        the first layer in which one of them was not finite, -1 for none: what is written of such a sequence means
        nothing.
        """
        counted, flawed = self._counted[0, slots], self._flawed(slots)
        for site, part, path in targets:
            block = self.collecting.parts.index(part)
            self._put(path, self.tables[site], [block * self.slots + slot for slot in slots], rows, block, slots)
        self._clear(slots)
        return [int(count) for count in counted], flawed

    def _capture(self, slot: NDArray[np.int64], generation: NDArray[np.uint32]) -> None:
        """Clear the slots that have changed hands; both arrays [requests], slot -1 where none is had."""
        moved = (slot >= 0) & (generation != self._generation[slot])
        if moved.any():
            self._clear(slot[moved].tolist())
            self._generation[slot[moved]] = generation[moved]

    def _clear(self, slots: list[int]) -> None:
        for site, layers in self.tables.items():
            rows = [block * self.slots + slot for block in range(self.collecting.blocks(site)) for slot in slots]
            for one in layers.values():
                one.sums[rows] = 0
        self._next[slots] = 0
        self._counted[:, slots] = 0

    def _flawed(self, slots: list[int]) -> list[int]:
        """By slot, the first layer whose sums an op marked, or -1: of the neurons, or without them of another site."""
        read = self.tables.get(Site.NEURONS) or next(iter(self.tables.values()))
        layers = sorted(read)
        marked = torch.stack([read[layer].sums[slots, 0] for layer in layers]).isnan().cpu().numpy()
        return [layers[int(one.argmax())] if one.any() else -1 for one in marked.T]

    def _put(
        self,
        path: str,
        layers: dict[int, Accumulators],
        sums: list[int],
        rows: list[int],
        block: int,
        slots: list[int],
    ) -> None:
        """Write the means of rows ``sums`` of each layer, from its first column of this rank on."""
        means: NDArray[np.float32] = np.load(Path(path), mmap_mode="r+")
        share = np.maximum(self._counted[block, slots], 1)[:, None]
        for layer, one in layers.items():
            if one.first >= 0:
                columns = slice(one.first, one.first + one.sums.shape[1])
                means[rows, layer, columns] = one.sums[sums].cpu().numpy() / share
        means.flush()  # type: ignore[attr-defined]


_collectors: dict[Collecting, Collector] = {}


def current(vllm_config: Any) -> Collector | None:
    """This worker's collector, made at the first call; None where the engine serves."""
    collecting = Collecting.find(vllm_config.additional_config)
    if collecting is None:
        return None
    if collecting not in _collectors:
        from vllm.platforms import current_platform

        shape = len(collecting.parts) * collecting.slots, vllm_config.scheduler_config.max_num_batched_tokens
        weight = torch.zeros(shape, dtype=torch.float32, device=torch.device(current_platform.device_type))
        layers = int(vllm_config.model_config.hf_text_config.num_hidden_layers)
        ranks = vllm_config.parallel_config.tensor_parallel_size
        _collectors[collecting] = Collector(collecting, layers, weight, ranks)
    return _collectors[collecting]
