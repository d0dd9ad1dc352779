"""Layers' states: what a head reads of them, or an engine that collects.

RESIDUAL is the input of a layer's ``qkv_proj``, which is built as the QKVParallelLinear below in place of vLLM's (0.26
and 0.32, ``model_executor/layers/linear.py``); ATTENTION that of its ``o_proj``, a RowParallelLinear
(``guard.worker.layer``); BLOCK what the layer itself returns, which it gets a way to tell once the model is loaded.
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
from guard.ipc.collecting import Site, site_of
from guard.probe.signals import DISTANCE, OF_STATES
from guard.worker import activations, buffers, ops
from guard.worker.activations import Accumulators, Collector
from guard.worker.buffers import Taps

# Vision towers have layers.N of the same names; only the language model's count.
LAYER = r"^(?:language_model\.)?model\.layers\.(\d+)\."
_NAMED = {
    Site.RESIDUAL: re.compile(LAYER + r"self_attn\.qkv_proj$"),
    Site.ATTENTION: re.compile(LAYER + r"self_attn\.o_proj$"),
    Site.BLOCK: re.compile(LAYER.removesuffix(r"\.") + "$"),
}


@dataclass(frozen=True, slots=True)
class StateTap:
    """What a head reads of one layer: weight float32 [width of this rank], or of DISTANCE [k, width + 1]; score float32
    [max_num_batched_tokens], of all layers of the head."""

    weight: torch.Tensor
    score: torch.Tensor


class States:
    """What is read at one site of one layer: most often nothing."""

    def __init__(self) -> None:
        self._sums: Accumulators | None = None
        self._taps: tuple[StateTap, ...] = ()

    @classmethod
    def of_input(cls, site: Site, prefix: str, layer: Any) -> States:
        """Of the input of a linear ``layer``, called ``prefix``, while it is built."""
        match = _NAMED[site].match(prefix)
        if match is None:
            return cls()
        config = get_current_vllm_config()
        width = int(getattr(layer, "input_size_per_partition", layer.input_size))
        found = cls.at(
            site, int(match[1]), layer.tp_rank, width, buffers.current(config) or activations.current(config)
        )
        if found.reads:
            # Activations are read, so act-and-quantise fusions must leave this layer's input alone.
            layer.requires_unquantized_input = True
        return found

    @classmethod
    def at(cls, site: Site, number: int, rank: int, width: int, wanted: Taps | Collector | None) -> States:
        """What is ``wanted`` at a site of layer ``number``, of which this ``rank`` has ``width`` columns."""
        found = cls()
        if isinstance(wanted, Collector):
            if site in wanted.collecting.sites:
                found._sums = wanted.add(site, number, rank, width)
        elif wanted is not None:
            read = [name for name in OF_STATES if site_of(name) is site and number in wanted.spec.heads.get(name, {})]
            found._taps = tuple(_tap_of(wanted, name, number, rank, width) for name in read)
        return found

    @property
    def reads(self) -> bool:
        return self._sums is not None or len(self._taps) > 0

    def read(self, x: torch.Tensor) -> None:
        """x: [tokens, width], or with further dimensions in front, in the model's dtype."""
        if self._sums is not None:
            torch.ops.hguard.collect_states(rows(x), self._sums.weight, self._sums.sums)
        called = torch.ops.hguard if x.is_cuda else ops
        for tap in self._taps:
            (called.head if tap.weight.dim() == 1 else called.distance)(rows(x), tap.weight, tap.score)


def _tap_of(taps: Taps, name: str, layer: int, rank: int, width: int) -> StateTap:
    """The tap in one layer of the head of this name. Raises UnsupportedError for one of another width than this model's
    states."""
    site = site_of(name)

    def own(weight: torch.Tensor) -> torch.Tensor:
        """This rank's part: of what all ranks have whole, one of them counts."""
        if site.sharded:
            return weight[rank * width : (rank + 1) * width]
        return weight if rank == 0 else torch.zeros_like(weight)

    weight = torch.from_numpy(taps.spec.heads[name][layer])
    whole = width * taps.ranks if site.sharded else width
    given = weight.shape[-1] - (name == DISTANCE)
    if given != whole:
        raise UnsupportedError(
            f"the probe's head on {name} is {given} wide, and this model's {site} is {whole} in layer {layer}: "
            "it was fit on another model"
        )
    score = taps.head_scores[name]
    # Not the model's dtype, which is vLLM's default while it loads.
    tap = StateTap(own(weight).to(score.device, torch.float32, copy=True), score)
    taps.add_head(name, layer, tap.weight, own)
    return tap


class GuardQKVParallelLinear(QKVParallelLinear):
    """A QKVParallelLinear whose input, the normed residual stream, may be read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hguard_states = States.of_input(Site.RESIDUAL, kwargs.get("prefix", ""), self)

    def forward(self, input_: torch.Tensor) -> Any:
        self.hguard_states.read(input_)
        return super().forward(input_)


def have_built(taps: Taps | Collector) -> None:
    """Before the model is built: where RESIDUAL is read, have vLLM build the QKVParallelLinear above.

    Raises UnsupportedError where another plugin replaces vLLM's already.
    """
    sites = taps.collecting.sites if isinstance(taps, Collector) else map(site_of, taps.spec.heads)
    if Site.RESIDUAL not in sites:
        return  # vLLM's adapters (LoRA) know its own class only
    taken = op_registry_oot.setdefault("QKVParallelLinear", GuardQKVParallelLinear)
    if taken is not GuardQKVParallelLinear:
        raise UnsupportedError(
            f"another plugin ({taken.__module__}) replaces vLLM's QKVParallelLinear already; "
            "name the plugins to load in VLLM_PLUGINS"
        )


class TellsBlock:
    """Before a decoder layer's own class among the bases of one: what it returns is read.

    vLLM's layers return their MLP's output beside the stream that it is to be added to, or the stream alone; a head is
    linear, and a mean is, so each is read by itself.
    """

    hguard_states: States

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)  # type: ignore[misc] # of the layer
        for part in output[:2] if isinstance(output, tuple) else (output,):
            if part is not None:
                self.hguard_states.read(part)
        return output


def attach_blocks(model: torch.nn.Module, wanted: Taps | Collector, rank: int, width: int) -> None:
    """Once the ``model`` is loaded, and before it is compiled: have its layers tell what they return, where that is
    ``wanted``. ``width``: of the stream, which every rank has whole."""
    told: dict[type, type] = {}
    for name, layer in model.named_modules():
        match = _NAMED[Site.BLOCK].match(name)
        states = States() if match is None else States.at(Site.BLOCK, int(match[1]), rank, width, wanted)
        if states.reads:
            own = type(layer)
            # Another class, and not another ``forward`` of this one object: to the compiler layers stay alike.
            layer.__class__ = told.setdefault(own, type(f"Telling{own.__name__}", (TellsBlock, own), {}))
            layer.hguard_states = states


def rows(tensor: torch.Tensor) -> torch.Tensor:
    """[tokens, features]: models that vLLM runs through transformers' own code have a batch dimension of 1 in front."""
    return tensor if tensor.dim() == 2 else tensor.flatten(0, -2)
