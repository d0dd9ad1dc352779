"""The tapped layers: an out-of-tree RowParallelLinear (vLLM 0.26 and 0.32, ``model_executor/layers/linear.py``), and a
QKVParallelLinear.

vLLM builds them in place of its own. Where a RowParallelLinear's prefix names the ``mlp.down_proj`` of a layer with
H-neurons, it scales their columns by alpha and adds their contribution to the step's score; elsewhere, and wherever
no probe is configured, it is the plain layer. An engine that collects reads both kinds, in every layer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.config import get_current_vllm_config
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear, UnquantizedLinearMethod

from guard.errors import TapError, UnsupportedError
from guard.ipc.collecting import Site
from guard.ipc.taps import LayerTap, TapSpec
from guard.worker import activations, buffers, ops
from guard.worker.activations import Accumulators, Collector
from guard.worker.buffers import Taps

# Vision towers have layers.N.mlp.down_proj too; only the language model's count.
_LAYER = r"^(?:language_model\.)?model\.layers\.(\d+)\."
DOWN_PROJ, O_PROJ, QKV_PROJ = (
    re.compile(_LAYER + rest) for rest in (r"mlp\.down_proj$", r"self_attn\.o_proj$", r"self_attn\.qkv_proj$")
)


class GuardRowParallelLinear(RowParallelLinear):
    """A RowParallelLinear that may be tapped."""

    hguard_neuron: torch.Tensor
    hguard_folded: torch.Tensor
    hguard_scaled: torch.Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tapped = False
        self.hguard_layer: int | None = None  # which layer of the model is read here
        self.hguard_collected: tuple[Accumulators, Accumulators] | None = None
        self.hguard_attention: Accumulators | None = None
        config = get_current_vllm_config()
        taps, collecting = buffers.current(config), activations.current(config)
        prefix = kwargs.get("prefix", "")
        self.hguard_attention = _collected(collecting, Site.ATTENTION, O_PROJ, prefix, self)
        match = DOWN_PROJ.match(prefix)
        if match is None:
            return
        layer, size = int(match[1]), self.input_size_per_partition
        if collecting is not None:
            self._require_readable(prefix)
            self.hguard_collected = (
                collecting.add(Site.NEURONS, layer, self.tp_rank, size),
                collecting.add(Site.OUTPUT, layer, self.tp_rank, self.output_size),
            )
            self.hguard_layer = layer
            return
        if taps is None or layer not in taps.spec.layers:
            return
        self._require_readable(prefix)
        self.add_tap(taps.spec.layers[layer].shard(self.tp_rank * size, size), taps)

    def add_tap(self, tap: LayerTap, taps: Taps) -> None:
        """Read ``tap``, which is this rank's part, from now on."""
        device = taps.score.device
        # Buffers, so that they are inputs of the compiled graph and layers stay alike; not part of the checkpoint.
        for name, values in _arrays(tap).items():
            self.register_buffer(f"hguard_{name}", torch.from_numpy(values).to(device), persistent=False)
        self.taps = taps
        self.tapped, self.hguard_layer = True, tap.layer
        taps.add_layer(tap.layer, self.hguard_folded, self._exchange)

    def _exchange(self, spec: TapSpec) -> None:
        """Read this layer's neurons of another probe, which has room in the buffers."""
        size = self.input_size_per_partition
        assert self.hguard_layer is not None
        tap = spec.layers[self.hguard_layer].shard(self.tp_rank * size, size)
        for name, values in _arrays(tap).items():
            self.get_buffer(f"hguard_{name}").copy_(torch.from_numpy(values))

    def _require_readable(self, prefix: str) -> None:
        """Raise UnsupportedError where activations would not be what they seem; have them kept as they are."""
        if not isinstance(self.quant_method, UnquantizedLinearMethod):
            raise UnsupportedError(
                f"{prefix} is quantised ({type(self.quant_method).__name__}), which is not supported yet; "
                "serve the unquantised model"
            )
        if self.tp_size > 1 and not self.reduce_results:
            raise UnsupportedError(f"{prefix} does not reduce its output over ranks, so it cannot be scored")
        # The tap reads activations, so act-and-quantise fusions must leave this layer's input alone.
        self.requires_unquantized_input = True

    def forward(self, input_: torch.Tensor) -> Any:
        if not self.tapped:
            _collect(input_, self.hguard_attention)
            output = super().forward(input_)
            if self.hguard_collected is not None:
                neurons, outputs = self.hguard_collected
                h = output[0] if isinstance(output, tuple) else output
                torch.ops.hguard.collect(_rows(input_), _rows(h), neurons.weight, neurons.sums)
                _collect(h, outputs)
            return output
        if torch.compiler.is_compiling() or input_.is_cuda:
            return self._in_graph(input_)
        taps, z = self.taps, _rows(input_)
        read = z.index_select(1, self.hguard_neuron)  # before scaling: switched-off neurons still tell
        if taps.scaling:
            ops.write_scaled(z, read, self.hguard_neuron, self.hguard_scaled, taps.alpha)
        output = super().forward(z.view(input_.shape))
        h = output[0] if isinstance(output, tuple) else output
        taps.read(read, _rows(h))
        return output

    def _in_graph(self, input_: torch.Tensor) -> Any:
        """The same for compilers and graphs: alpha is data, and a factor of 1 is exact."""
        called = torch.ops.hguard if input_.is_cuda else ops
        z = _rows(input_)
        contribution = called.scale(z, self.hguard_neuron, self.hguard_folded, self.hguard_scaled, self.taps.alpha)
        # Through z, not input_: where rows could only be had as a copy, it is the copy that is scaled.
        output = super().forward(z.view(input_.shape))
        h = output[0] if isinstance(output, tuple) else output
        called.tap(_rows(h), contribution, self.taps.score)  # h as the model goes on with it
        return output


class GuardQKVParallelLinear(QKVParallelLinear):
    """A QKVParallelLinear whose input, the normed residual stream, may be collected."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        collecting = activations.current(get_current_vllm_config())
        self.hguard_residual = _collected(collecting, Site.RESIDUAL, QKV_PROJ, kwargs.get("prefix", ""), self)

    def forward(self, input_: torch.Tensor) -> Any:
        _collect(input_, self.hguard_residual)
        return super().forward(input_)


def have_built(collecting: Collector) -> None:
    """Before the model is built: have vLLM build what is read of it beside RowParallelLinears. Raises UnsupportedError
    where another plugin replaces that."""
    if Site.RESIDUAL not in collecting.collecting.sites:
        return  # vLLM's adapters (LoRA) know its own class only
    taken = op_registry_oot.setdefault("QKVParallelLinear", GuardQKVParallelLinear)
    if taken is not GuardQKVParallelLinear:
        raise UnsupportedError(
            f"another plugin ({taken.__module__}) replaces vLLM's QKVParallelLinear already; "
            "name the plugins to load in VLLM_PLUGINS"
        )


def _collected(
    collecting: Collector | None, site: Site, named: re.Pattern[str], prefix: str, layer: Any
) -> Accumulators | None:
    """Accumulators for the input of a ``layer`` that is ``named`` so, where the site is wanted."""
    match = named.match(prefix)
    if match is None or collecting is None or site not in collecting.collecting.sites:
        return None
    width = getattr(layer, "input_size_per_partition", layer.input_size)
    return collecting.add(site, int(match[1]), layer.tp_rank, width)


def _collect(tensor: torch.Tensor, into: Accumulators | None) -> None:
    if into is not None:
        torch.ops.hguard.collect_states(_rows(tensor), into.weight, into.sums)


def _arrays(tap: LayerTap) -> dict[str, NDArray[Any]]:
    """A layer's buffers, by name."""
    # Padding, too, where it repeats a scaled neuron: entries of one neuron agree.
    return {"neuron": tap.neuron, "folded": tap.folded, "scaled": np.isin(tap.neuron, tap.scaled)}


def require_taps(model: torch.nn.Module, wanted: Collection[int], worker: int) -> None:
    """Raise TapError unless the loaded ``model`` has one tap at each of the ``wanted`` layers, and no other.

    Counted in what was loaded, not in what was built: vLLM may take another class, or build a layer twice.
    """
    tapped = (module.hguard_layer for module in model.modules() if isinstance(module, GuardRowParallelLinear))
    found = Counter(layer for layer in tapped if layer is not None)
    if missing := sorted(set(wanted) - set(found)):
        raise TapError(
            f"worker {worker} tapped {len(set(wanted) & set(found))} of {len(wanted)} layers: the model does not build "
            "them as RowParallelLinear named model.layers.N.mlp.down_proj, or takes layers from another registry "
            f"(VLLM_USE_HW_AGNOSTIC); without a tap: {', '.join(map(str, missing))}"
        )
    if more := sorted(layer for layer, count in found.items() if count > 1 or layer not in wanted):
        raise TapError(
            f"worker {worker} tapped layers {', '.join(map(str, more))} more often than the probe names them"
        )


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """[tokens, features]: models that vLLM runs through transformers' own code have a batch dimension of 1 in front."""
    return tensor if tensor.dim() == 2 else tensor.flatten(0, -2)
