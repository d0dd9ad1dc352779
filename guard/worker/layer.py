"""The tapped layer: an out-of-tree RowParallelLinear (vLLM 0.26 and 0.32, ``model_executor/layers/linear.py``).

vLLM builds them in place of its own. Where a RowParallelLinear's prefix names the ``mlp.down_proj`` of a layer with
H-neurons, it scales their columns by alpha and adds their contribution to the step's score; elsewhere, and wherever
no probe is configured, it is the plain layer. An engine that collects reads every layer. ``guard.worker.states`` reads
what goes into the attention's.
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
from vllm.model_executor.layers.linear import RowParallelLinear

from guard.errors import TapError, UnsupportedError
from guard.ipc.collecting import Site
from guard.ipc.taps import LayerTap, TapSpec
from guard.worker import activations, buffers, ops
from guard.worker.activations import Accumulators
from guard.worker.buffers import Taps
from guard.worker.states import LAYER, States, rows

DOWN_PROJ = re.compile(LAYER + r"mlp\.down_proj$")


class GuardRowParallelLinear(RowParallelLinear):
    """A RowParallelLinear that may be tapped."""

    hguard_neuron: torch.Tensor
    hguard_folded: torch.Tensor
    hguard_scaled: torch.Tensor
    hguard_apart: torch.Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tapped = False
        self.hguard_layer: int | None = None  # which layer of the model is read here
        self.hguard_collected: tuple[Accumulators, Accumulators] | None = None
        config = get_current_vllm_config()
        taps, collecting = buffers.current(config), activations.current(config)
        prefix = kwargs.get("prefix", "")
        self.hguard_states = States.of_input(Site.ATTENTION, prefix, self)
        match = DOWN_PROJ.match(prefix)
        if match is None:
            return
        layer, size = int(match[1]), self.input_size_per_partition
        if collecting is not None and not collecting.collecting.neurons:
            return
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
        self.register_buffer(
            "hguard_apart", taps.add_layer(tap.layer, self.hguard_folded, self._exchange), persistent=False
        )

    def _exchange(self, spec: TapSpec) -> None:
        """Read this layer's neurons of another probe, which has room in the buffers."""
        size = self.input_size_per_partition
        assert self.hguard_layer is not None
        tap = spec.layers[self.hguard_layer].shard(self.tp_rank * size, size)
        for name, values in _arrays(tap).items():
            self.get_buffer(f"hguard_{name}").copy_(torch.from_numpy(values))

    def _require_readable(self, prefix: str) -> None:
        """Raise UnsupportedError where activations would not be what they seem; have them kept as they are."""
        if self.tp_size > 1 and not self.reduce_results:
            raise UnsupportedError(f"{prefix} does not reduce its output over ranks, so it cannot be scored")
        # The tap reads activations, so act-and-quantise fusions must leave this layer's input alone.
        self.requires_unquantized_input = True

    def forward(self, input_: torch.Tensor) -> Any:
        if not self.tapped:
            self.hguard_states.read(input_)
            output = super().forward(input_)
            if self.hguard_collected is not None:
                neurons, outputs = self.hguard_collected
                h = rows(output[0] if isinstance(output, tuple) else output)
                torch.ops.hguard.collect(rows(input_), h, neurons.weight, neurons.sums)
                torch.ops.hguard.collect_states(h, outputs.weight, outputs.sums)
            return output
        if torch.compiler.is_compiling() or input_.is_cuda:
            return self._in_graph(input_)
        taps, z = self.taps, rows(input_)
        read = z.index_select(1, self.hguard_neuron)  # before scaling: switched-off neurons still tell
        if taps.scaling:
            ops.write_scaled(z, read, self.hguard_neuron, self.hguard_scaled, taps.alpha)
        output = super().forward(z.view(input_.shape))
        h = output[0] if isinstance(output, tuple) else output
        taps.read(read, rows(h))
        return output

    def _in_graph(self, input_: torch.Tensor) -> Any:
        """The same for compilers and graphs: alpha is data, and a factor of 1 is exact."""
        called = torch.ops.hguard if input_.is_cuda else ops
        z, apart = rows(input_), self.hguard_apart
        if apart is not None:
            called.spread(z, self.hguard_neuron, self.hguard_folded, apart)
        contribution = called.scale(z, self.hguard_neuron, self.hguard_folded, self.hguard_scaled, self.taps.alpha)
        # Through z, not input_: where rows could only be had as a copy, it is the copy that is scaled.
        output = super().forward(z.view(input_.shape))
        h = output[0] if isinstance(output, tuple) else output
        called.tap(rows(h), contribution, self.taps.score)  # h as the model goes on with it
        if apart is not None:
            called.share(rows(h), apart)
        return output


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
