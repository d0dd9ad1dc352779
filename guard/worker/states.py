"""Layers' states: what a linear head reads of them, or an engine that collects.

RESIDUAL is the input of a layer's ``qkv_proj``, which is built as the QKVParallelLinear below in place of vLLM's (0.26
and 0.32, ``model_executor/layers/linear.py``); ATTENTION that of its ``o_proj``, a RowParallelLinear
(``guard.worker.layer``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.linear import QKVParallelLinear

from guard.errors import UnsupportedError
from guard.ipc.collecting import Site
from guard.worker import activations, buffers, ops
from guard.worker.activations import Accumulators, Collector
from guard.worker.buffers import Taps

# Vision towers have layers.N of the same names; only the language model's count.
LAYER = r"^(?:language_model\.)?model\.layers\.(\d+)\."
_NAMED = {
    Site.RESIDUAL: re.compile(LAYER + r"self_attn\.qkv_proj$"),
    Site.ATTENTION: re.compile(LAYER + r"self_attn\.o_proj$"),
}


@dataclass(frozen=True, slots=True)
class StateTap:
    """What a head reads of one layer: weight float32 [width of this rank]; score float32 [max_num_batched_tokens], of
    all layers of the head."""

    weight: torch.Tensor
    score: torch.Tensor


class States:
    """What is read of the input of one linear ``layer``, called ``prefix``, at ``site``: most often nothing."""

    def __init__(self, site: Site, prefix: str, layer: Any) -> None:
        self._sums: Accumulators | None = None
        self._tap: StateTap | None = None
        match = _NAMED[site].match(prefix)
        if match is None:
            return
        config = get_current_vllm_config()
        taps, collecting = buffers.current(config), activations.current(config)
        number, rank = int(match[1]), layer.tp_rank
        width = int(getattr(layer, "input_size_per_partition", layer.input_size))
        if collecting is not None and site in collecting.collecting.sites:
            self._sums = collecting.add(site, number, rank, width)
        elif taps is not None and number in taps.spec.heads.get(site, {}):
            self._tap = _tap_of(taps, site, number, rank, width)
        else:
            return
        # Activations are read, so act-and-quantise fusions must leave this layer's input alone.
        layer.requires_unquantized_input = True

    def read(self, x: torch.Tensor) -> None:
        """x: [tokens, width], or with further dimensions in front, in the model's dtype."""
        if self._sums is not None:
            torch.ops.hguard.collect_states(rows(x), self._sums.weight, self._sums.sums)
        elif self._tap is not None:
            called = torch.ops.hguard if x.is_cuda else ops
            called.head(rows(x), self._tap.weight, self._tap.score)


def _tap_of(taps: Taps, site: Site, layer: int, rank: int, width: int) -> StateTap:
    """A head's tap in one layer. Raises UnsupportedError for a head of another width than this model's states."""

    def own(weight: torch.Tensor) -> torch.Tensor:
        """This rank's part: of what all ranks have whole, one of them counts."""
        if site.sharded:
            return weight[rank * width : (rank + 1) * width]
        return weight if rank == 0 else torch.zeros_like(weight)

    weight = torch.from_numpy(taps.spec.heads[site][layer])
    whole = width * taps.ranks if site.sharded else width
    if len(weight) != whole:
        raise UnsupportedError(
            f"the probe's head on {site} is {len(weight)} wide, and this model's {site} is {whole} in layer {layer}: "
            "it was fit on another model"
        )
    score = taps.head_scores[site]
    # Not the model's dtype, which is vLLM's default while it loads.
    tap = StateTap(own(weight).to(score.device, torch.float32, copy=True), score)
    taps.add_head(site, layer, tap.weight, own)
    return tap


class GuardQKVParallelLinear(QKVParallelLinear):
    """A QKVParallelLinear whose input, the normed residual stream, may be read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hguard_states = States(Site.RESIDUAL, kwargs.get("prefix", ""), self)

    def forward(self, input_: torch.Tensor) -> Any:
        self.hguard_states.read(input_)
        return super().forward(input_)


def have_built(taps: Taps | Collector) -> None:
    """Before the model is built: where RESIDUAL is read, have vLLM build the QKVParallelLinear above.

    Raises UnsupportedError where another plugin replaces vLLM's already.
    """
    sites = taps.collecting.sites if isinstance(taps, Collector) else taps.spec.heads
    if Site.RESIDUAL not in sites:
        return  # vLLM's adapters (LoRA) know its own class only
    taken = op_registry_oot.setdefault("QKVParallelLinear", GuardQKVParallelLinear)
    if taken is not GuardQKVParallelLinear:
        raise UnsupportedError(
            f"another plugin ({taken.__module__}) replaces vLLM's QKVParallelLinear already; "
            "name the plugins to load in VLLM_PLUGINS"
        )


def rows(tensor: torch.Tensor) -> torch.Tensor:
    """[tokens, features]: models that vLLM runs through transformers' own code have a batch dimension of 1 in front."""
    return tensor if tensor.dim() == 2 else tensor.flatten(0, -2)
