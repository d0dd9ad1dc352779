"""Over several ranks vLLM may fuse a layer's all-reduce with the norm after it: what becomes of that under a tap."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor.pattern_matcher import PatternMatcherPass, fwd_only, register_replacement
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from guard.worker import ops

ROWS, HIDDEN = 5, 16
# Kernels that vLLM's modules of passes name when they are imported, and that its CPU library lacks. None is called.
ABSENT = (
    "rms_norm_static_fp8_quant",
    "fused_add_rms_norm_static_fp8_quant",
    "rms_norm_dynamic_per_token_quant",
)
PASSES = "vllm.compilation.passes.fusion"


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    ops.register()


@pytest.fixture
def fusing(monkeypatch: pytest.MonkeyPatch) -> PatternMatcherPass:
    """vLLM's pattern of an all-reduce, a residual and a norm, as its pass registers it; what it makes of it is ours."""
    for name in ("allreduce_rms_fusion", "rms_quant_fusion"):  # as they are imported here they serve nobody else
        monkeypatch.delitem(sys.modules, f"{PASSES}.{name}", raising=False)
    for name in ABSENT:
        if not hasattr(torch.ops._C, name):
            monkeypatch.setattr(torch.ops._C, name, SimpleNamespace(default=None), raising=False)
    fusion = importlib.import_module(f"{PASSES}.allreduce_rms_fusion")
    monkeypatch.delitem(sys.modules, f"{PASSES}.allreduce_rms_fusion")
    monkeypatch.delitem(sys.modules, f"{PASSES}.rms_quant_fusion")
    from vllm.config import VllmConfig
    from vllm.config.vllm import set_current_vllm_config
    from vllm.distributed import parallel_state

    # Its all-reduce wants a group when it is traced; of what it gives back the pattern sees the shape.
    rank = SimpleNamespace(_all_reduce_out_place=torch.clone)
    monkeypatch.setitem(parallel_state._groups, "tp:0", lambda: rank)
    seen: list[Callable[..., Any]] = []
    monkeypatch.setattr(fusion, "tensor_model_parallel_all_reduce", all_reduce)
    monkeypatch.setattr(fusion.pm, "register_replacement", lambda pattern, *rest, **more: seen.append(pattern))
    made = fusion.AllReduceFusedAddRMSNormPattern.__new__(fusion.AllReduceFusedAddRMSNormPattern)
    made.epsilon, made.dtype, made.device = 1e-6, torch.float32, "cpu"
    found = PatternMatcherPass()
    with set_current_vllm_config(VllmConfig()):
        made.register(found)
        register_replacement(seen[0], fused, made.get_inputs(), fwd_only, found)
    return found


def all_reduce(x: torch.Tensor) -> torch.Tensor:
    """As it stands in the graph of any rank."""
    reduced: torch.Tensor = torch.ops.vllm.all_reduce(x, group_name="tp:0")
    return reduced


def fused(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x * weight, x + residual


def layer(tapped: bool) -> Callable[..., tuple[torch.Tensor, ...]]:
    """A decoder's: attention's projection, a norm, the MLP's projection, the next layer's norm."""
    from vllm.ir.ops import fused_add_rms_norm

    def forward(
        attended: torch.Tensor,
        z: torch.Tensor,
        residual: torch.Tensor,
        gain: torch.Tensor,
        contribution: torch.Tensor,
        score: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        x, residual = fused_add_rms_norm(all_reduce(attended), residual, gain, 1e-6)
        h = all_reduce(z * x)
        if tapped:
            torch.ops.hguard.tap(h, contribution, score)
        return *fused_add_rms_norm(h, residual, gain, 1e-6), score

    return forward


@pytest.mark.parametrize(("tapped", "fuses"), [(False, 2), (True, 1)], ids=["plain", "tapped"])
def test_a_tapped_layer_s_all_reduce_stays_by_itself(fusing: PatternMatcherPass, tapped: bool, fuses: int) -> None:
    """h is read before the norm; attention's is fused as before. docs/deployment.md says what that costs and why."""
    given = [torch.rand(ROWS, HIDDEN) for _ in range(3)]
    given += [torch.rand(HIDDEN), torch.rand(ROWS), torch.zeros(ROWS)]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        graph = make_fx(layer(tapped), tracing_mode="fake")(*[mode.from_tensor(one) for one in given]).graph
    assert fusing.apply(graph) == fuses
    left = [node for node in graph.nodes if "all_reduce" in str(node.target)]
    assert len(left) == 2 - fuses
