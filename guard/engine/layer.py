"""The tapped layer: an out-of-tree RowParallelLinear (vLLM 0.26 and 0.32, ``model_executor/layers/linear.py``).

vLLM builds it in place of every RowParallelLinear. Where its prefix names the ``mlp.down_proj`` of a layer with
H-neurons, it scales their columns by alpha and adds their contribution to the step's score; elsewhere, and wherever
no probe is configured, it is the plain layer.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import RowParallelLinear, UnquantizedLinearMethod

from guard.engine import op, state
from guard.errors import UnsupportedError

# Vision towers have layers.N.mlp.down_proj too; only the language model's count.
DOWN_PROJ = re.compile(r"^(?:language_model\.)?model\.layers\.(\d+)\.mlp\.down_proj$")


class GuardRowParallelLinear(RowParallelLinear):
    """A RowParallelLinear that may be tapped."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tapped = False
        taps = state.current(get_current_vllm_config())
        match = DOWN_PROJ.match(kwargs.get("prefix", ""))
        if taps is None or match is None or int(match[1]) not in taps.spec.layers:
            return
        if not isinstance(self.quant_method, UnquantizedLinearMethod):
            raise UnsupportedError(
                f"{kwargs['prefix']} is quantised ({type(self.quant_method).__name__}), which is not supported yet; "
                "serve the unquantised model"
            )
        if self.tp_size > 1 and not self.reduce_results:
            raise UnsupportedError(f"{kwargs['prefix']} does not reduce its output over ranks, so it cannot be scored")
        size = self.input_size_per_partition
        tap = taps.spec.layers[int(match[1])].shard(self.tp_rank * size, size)
        mask = torch.zeros(size)
        mask[torch.from_numpy(tap.damped)] = 1
        # Buffers, so that they are inputs of the compiled graph and layers stay alike; not part of the checkpoint.
        self.register_buffer("hguard_neuron", torch.from_numpy(tap.neuron).to(taps.score.device), persistent=False)
        self.register_buffer("hguard_folded", torch.from_numpy(tap.folded).to(taps.score.device), persistent=False)
        self.register_buffer("hguard_mask", mask.to(taps.score.device, self.params_dtype), persistent=False)
        self.taps = taps
        self.tapped = True
        # The tap reads activations, so act-and-quantise fusions must leave this layer's input alone.
        self.requires_unquantized_input = True
        taps.tapped_layers += 1

    def forward(self, input_: torch.Tensor) -> Any:
        if not self.tapped:
            return super().forward(input_)
        # Models that vLLM runs through transformers' own code keep a batch dimension of 1 in front of the tokens.
        z = input_.flatten(0, -2)
        # In eager mode the pass over the input is spared when nothing is dampened; compiled, alpha is data, and a
        # factor of 1 is exact.
        if torch.compiler.is_compiling() or self.taps.damping:
            strength = self.taps.alpha[: z.shape[0], None].to(z.dtype)
            dampened = (z * (1 + (strength - 1) * self.hguard_mask)).view(input_.shape)
        else:
            dampened = input_
        output = super().forward(dampened)
        h = output[0] if isinstance(output, tuple) else output
        # |z| before damping: switched-off neurons still tell. h as the model went on with it.
        # In eager mode the function itself: what torch does for an op that mutates costs as much as the tap.
        tap = torch.ops.hguard.tap if torch.compiler.is_compiling() else op.tap
        tap(z, h.flatten(0, -2), self.hguard_neuron, self.hguard_folded, self.taps.score)
        return output
