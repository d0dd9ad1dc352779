"""The per-worker buffers that the compiled forward pass and the runner's adapter share (vLLM 0.26 and 0.32)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.errors import TapError
from guard.ipc.collecting import NAMES, site_of
from guard.ipc.taps import TapConfig, TapSpec
from guard.probe.cett import EPSILON
from guard.probe.signals import NEURONS
from guard.worker.batch import BatchParams, Measured, Rows, Step


@dataclass(slots=True)
class Taps:
    """score, alpha: float32 [max_num_batched_tokens], allocated once, addresses never change. head_scores: the same as
    score of each head that the probe has, by name of its signal.

    apart: what each neuron contributes to each row, float32 [layers, max_num_batched_tokens, K]; None where compiled
    graphs do not tell neurons apart. Eager mode has no need of it. ranks: over how many tensor-parallel ranks a layer's
    neurons are spread. scaling: whether any row's alpha differs from 1 in this step.
    """

    spec: TapSpec
    score: torch.Tensor
    alpha: torch.Tensor
    ranks: int = 1
    apart: torch.Tensor | None = None
    scaling: bool = False
    tapped_layers: int = 0
    head_scores: dict[str, torch.Tensor] = field(init=False)
    _read: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    _folded: list[torch.Tensor] = field(default_factory=list)
    _exchange: list[Callable[[TapSpec], None]] = field(default_factory=list)
    # What makes a score, by signal and layer, and what stood there before ``count_alone``.
    _weights: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    _kept: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    _stacked: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self.head_scores = {name: torch.zeros_like(self.score) for name in self.spec.heads}

    def add_layer(
        self, layer: int, folded: torch.Tensor, exchange: Callable[[TapSpec], None] | None = None
    ) -> torch.Tensor | None:
        """Count a tapped layer; called in the order in which layers are built, which is that in which they run.

        ``exchange``: has the layer read other neurons, in the buffers that it has. Returns the layer's part of
        ``apart``.
        """
        self.tapped_layers += 1
        if exchange is not None:
            self._exchange.append(exchange)
        self._folded.append(folded)
        self._weights[NEURONS, layer] = folded
        return None if self.apart is None else self.apart[self.tapped_layers - 1]

    def add_head(
        self, signal: str, layer: int, weight: torch.Tensor, own: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """Count one layer of a head: ``weight`` as in ``TapSpec.heads``, ``own``: this rank's part of a whole."""

        def exchange(spec: TapSpec) -> None:
            found = spec.heads.get(signal, {}).get(layer)
            weight.copy_(torch.zeros_like(weight) if found is None else own(torch.from_numpy(found)))

        self._exchange.append(exchange)
        self._weights[signal, layer] = weight

    def require_sites(self) -> None:
        """Raise TapError where the model lacks what a head reads."""
        for name, weights in self.spec.heads.items():
            if missing := sorted(layer for layer in weights if (name, layer) not in self._weights):
                raise TapError(
                    f"the probe reads {name}, and the model builds no {NAMES[site_of(name)]} in layers "
                    f"{', '.join(map(str, missing))}: serve a probe without it"
                )

    def exchange(self, spec: TapSpec) -> None:
        """Read other neurons from the next step on, of the same layers and as many, and other heads. In place: compiled
        graphs keep the buffers' addresses."""
        for layer in self._exchange:
            layer(spec)
        self.spec, self._kept, self._stacked = spec, {}, None

    def count_alone(self, signal: str | None, layer: int | None) -> None:
        """From the next step on this layer alone counts in this signal, and nothing in others; None: all do, as they
        did at first.

        For the self-test. In place: compiled graphs keep the weights' addresses.
        """
        if not self._kept:
            self._kept = {place: weight.clone() for place, weight in self._weights.items()}
        for place, weight in self._weights.items():
            weight.copy_(self._kept[place]) if signal is None or place == (signal, layer) else weight.zero_()
        self._stacked = None

    def read(self, columns: torch.Tensor, h: torch.Tensor) -> None:
        """Eager mode: keep what the score needs of one layer; ``total`` sums over all layers at once.

        columns: the layer's neurons before scaling, [tokens, K]; h: its output, [tokens, hidden]; in the model's dtype.
        As ``guard.worker.ops`` with half its calls: at a decode's few rows it is their number that costs.
        """
        self._read.append((columns, torch.linalg.vector_norm(h, dim=-1, dtype=torch.float32)))

    @property
    def expected_layers(self) -> int:
        """How many layers have H-neurons."""
        return len(self.spec.layers)

    @property
    def wanted(self) -> Collection[int]:
        """The layers that have H-neurons."""
        return self.spec.layers.keys()

    @property
    def scores(self) -> bool:
        """Whether the runner's adapter has something to fetch after the forward pass."""
        return True

    def begin(self, step: Step) -> None:
        """Fill alpha and clear score, before the forward pass."""
        scaling = step.captured.any_scaled
        if scaling:
            self.fill_alpha(np.repeat(step.captured.scale, step.scheduled))
        elif self.scaling:
            self.alpha.fill_(1)
        self.scaling = scaling
        if self._read:
            self._read.clear()
        else:
            self.score.zero_()
        for score in self.head_scores.values():
            score.zero_()

    def fill_alpha(self, values: NDArray[np.float32]) -> None:
        """Set the first rows' alpha, without waiting for the device."""
        host = torch.from_numpy(values)
        if self.alpha.is_cuda:
            host = host.pin_memory()  # torch keeps it until the copy is done
        self.alpha[: len(values)].copy_(host, non_blocking=True)

    def signals(self, rows: int) -> Measured:
        """The signals of the forward pass of the first rows: tensors of their own, which no later step clears.

        Every rank must call it when any does.
        """
        found = {NEURONS: self._summed()[:rows] if self._read else self.score[:rows].clone()}
        found |= {name: score[:rows].clone() for name, score in self.head_scores.items()}
        if self.ranks == 1:
            return found

        from vllm.distributed import tensor_model_parallel_all_reduce

        together = tensor_model_parallel_all_reduce(torch.stack(list(found.values())))
        return dict(zip(found, together.unbind(), strict=True))

    @property
    def tells_apart(self) -> bool:
        """Whether ``told_apart`` can be asked, after a forward pass."""
        return bool(self._read) or self.apart is not None

    def told_apart(self, rows: torch.Tensor) -> torch.Tensor:
        """What each neuron of this rank contributes to the sum of these rows' scores; rows int64 [m] -> float32
        [layers, K].

        After the forward pass, and before the next.
        """
        if self._read:
            read, folded, norms = self._stacks()
            return (read[:, rows] / norms[:, rows, None]).sum(1).mul_(folded[:, :, 0])
        assert self.apart is not None
        return self.apart[:, rows].sum(1)

    def _summed(self) -> torch.Tensor:
        read, folded, norms = self._stacks()
        # 0 times the norm: as in ``op.tap``, an output that overflows makes the score NaN.
        return torch.bmm(read, folded)[:, :, 0].add_(norms, alpha=0).div_(norms).sum(0)

    def _stacks(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of what was read: |z| of the neurons [layers, rows, K], what they weigh [layers, K, 1], norms [layers, rows];
        float32."""
        gathered, norm = zip(*self._read, strict=True)
        read = torch.stack(gathered).float().abs_()  # [layers, rows, K]
        if self._stacked is None:
            self._stacked = torch.stack(self._folded)[:, :, None]
        return read, self._stacked, torch.stack(norm).add_(EPSILON)


class NeuronSums:
    """What each neuron contributes over given positions of a sequence, for those that ask (``CaptureParams.apart``).

    By slot: its generation, the next position that is new, how many have counted, and the sums, float32 [layers, K].
    A position that is computed again, for a preempted sequence or at the seam of two pieces, does not count twice.
    """

    def __init__(self, taps: Taps) -> None:
        self._taps = taps
        self._sums: dict[int, tuple[int, int, int, torch.Tensor]] = {}

    def add(self, captured: BatchParams, recorded: Rows) -> None:
        """Take what a step ``recorded``, after its forward pass; nothing where the engine was compiled without room."""
        if not self._taps.tells_apart:
            return
        wanted = recorded.where(captured.apart[recorded.owner])
        for owner in np.unique(wanted.owner).tolist():
            slot, generation = int(captured.slot[owner]), int(captured.generation[owner])
            found = self._sums.get(slot)
            following, count = found[1:3] if found is not None and found[0] == generation else (0, 0)
            own = wanted.where((wanted.owner == owner) & (wanted.position >= following))
            if not len(own):
                continue
            added = self._taps.told_apart(torch.from_numpy(own.row).to(self._taps.score.device))
            sums = added if not count or found is None else found[3] + added
            self._sums[slot] = generation, int(own.position.max()) + 1, count + len(own), sums

    def take(self, slot: int, generation: int) -> tuple[int, list[list[float]]]:
        """How many positions of a slot have counted, and this rank's sums [layers, K]; they are forgotten."""
        found = self._sums.pop(slot, None)
        if found is None or found[0] != generation:
            return 0, []
        *_, count, sums = found
        return count, sums.tolist()


_taps: dict[str, Taps] = {}


def current(vllm_config: Any) -> Taps | None:
    """This worker's taps, made at the first call; None when no probe is configured."""
    config = TapConfig.find(vllm_config.additional_config)
    if config is None:
        return None
    found = _taps.get(config.sha256)
    if found is None:
        from vllm.platforms import current_platform

        rows = vllm_config.scheduler_config.max_num_batched_tokens
        device = torch.device(current_platform.device_type)
        found = _taps[config.sha256] = Taps(
            config.spec(),
            torch.zeros(rows, dtype=torch.float32, device=device),
            torch.ones(rows, dtype=torch.float32, device=device),
            ranks=vllm_config.parallel_config.tensor_parallel_size,
            apart=_room_apart(config, rows, device) if config.apart else None,
        )
    return found


def _room_apart(config: TapConfig, rows: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(len(config.layers), rows, config.width, dtype=torch.float32, device=device)
