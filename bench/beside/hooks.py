"""H-Neurons by Python hooks in vLLM's worker: what its ``worker_extension_cls`` mixes into it. Eager mode only.

As published servers do it, with one thing added without which their scores mean nothing under load: which row of a
step belongs to whom (``query_start_loc``).
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import torch

_DOWN_PROJ = re.compile(r"layers\.(\d+)\.mlp\.down_proj$")


class NeuronHooks:
    """Scores of the last row of each request in each step, by the name that its ``extra_args`` give it."""

    model_runner: Any

    def hook_neurons(self, neurons: dict[str, tuple[list[int], list[float]]]) -> int:
        """Hook the layers with these neurons; returns how many there are."""
        self._scores: dict[str, list[float]] = defaultdict(list)
        self._total: torch.Tensor | float = 0.0
        hooked = 0
        for name, module in self.model_runner.get_model().named_modules():
            found = _DOWN_PROJ.search(name)
            if found is not None and found[1] in neurons:
                index, weight = neurons[found[1]]
                module.register_forward_hook(self._hook(torch.tensor(index), torch.tensor(weight)))
                hooked += 1
        self._forward = self.model_runner._model_forward
        self.model_runner._model_forward = self._attributed
        return hooked

    def take_scores(self, name: str) -> list[float]:
        """Those of one request, which are forgotten."""
        return self._scores.pop(name)

    def _hook(self, index: torch.Tensor, weight: torch.Tensor) -> Any:
        def read(module: Any, given: tuple[torch.Tensor, ...], output: Any) -> None:
            from bench.beside.contenders import contribution

            h = output[0] if isinstance(output, tuple) else output
            self._total = self._total + contribution(given[0], h, index, weight)

        return read

    def _attributed(self, *args: Any, **named: Any) -> Any:
        self._total = 0.0
        hidden = self._forward(*args, **named)
        runner = self.model_runner
        for place, request in enumerate(runner.input_batch.req_ids):
            state = runner.requests.get(request)
            asked = (state.sampling_params.extra_args or {}).get("beside") if state is not None else None
            if asked is None or not isinstance(self._total, torch.Tensor):
                continue
            end = int(runner.query_start_loc.np[place + 1])
            computed = int(runner.input_batch.num_computed_tokens_cpu[place])
            scheduled = end - int(runner.query_start_loc.np[place])
            if computed + scheduled >= state.num_prompt_tokens:  # else more of the prompt is to come
                self._scores[asked].append(float(self._total[end - 1]))
        return hidden
