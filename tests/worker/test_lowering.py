"""What the compiler makes of a tap: z is scaled where it lies, and h is read before vLLM's fused norm, lowered to work
in place, writes over it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from guard.worker import ops

ROWS, HIDDEN, NEURONS = 4, 64, 128


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    ops.register()


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """vLLM's lowering of the norm, as on CUDA, and what is then called: a list for each graph."""
    from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass
    from vllm.config import VllmConfig
    from vllm.config.vllm import set_current_vllm_config

    graphs: list[list[str]] = []
    with set_current_vllm_config(VllmConfig()):
        fix = FixFunctionalizationPass(VllmConfig())

    class Pass(torch._inductor.custom_graph_pass.CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            # The whole pass looks for ops that the CPU's library lacks: this is its part for the norm.
            fix.nodes_to_remove = []
            for node in graph.nodes:
                if "auto_functionalized" in str(node.target) and "fused_add_rms_norm" in str(node.args[0]):
                    fix.defunctionalize(graph, node, {1: "input", 2: "residual"})
            for node in fix.nodes_to_remove:
                graph.erase_node(node)
            called = (node for node in graph.nodes if node.op == "call_function")
            graphs.append([str(n.args[0] if "auto_functionalized" in str(n.target) else n.target) for n in called])

        def uuid(self) -> Any:
            return None  # never from a cache: the pass must run

    changed = {"enable_auto_functionalized_v2": False, "post_grad_custom_post_pass": Pass()}
    with torch._inductor.config.patch(**changed, force_disable_caches=True):
        torch._dynamo.reset()
        yield graphs


def mlp(called: Any) -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """An MLP and the norm of the layer after it, as vLLM's decoders have them."""

    def forward(
        up: torch.Tensor,
        weight: torch.Tensor,
        residual: torch.Tensor,
        gain: torch.Tensor,
        probe: tuple[torch.Tensor, ...],
        score: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        z = torch.nn.functional.silu(up[:, :NEURONS]) * up[:, NEURONS:]
        contribution = called.scale(z, *probe)
        h = z @ weight
        called.tap(h, contribution, score)
        torch.ops._C.fused_add_rms_norm(h, residual, gain, 1e-6)
        return h, residual, score

    return forward


def given(dtype: torch.dtype) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
    """What an MLP is given but its score, and its probe: of eight neurons four are scaled, in the odd rows."""
    torch.manual_seed(0)
    parts = [
        torch.randn(ROWS, 2 * NEURONS),
        torch.randn(NEURONS, HIDDEN),
        torch.randn(ROWS, HIDDEN),
        torch.rand(HIDDEN),
    ]
    alpha = torch.tensor([1, 0.3] * (ROWS // 2) + [9.0])
    return [one.to(dtype) for one in parts], (torch.arange(8), torch.rand(8), torch.arange(8) < 4, alpha)


def run(forward: Callable[..., Any], dtype: torch.dtype) -> list[torch.Tensor]:
    parts, probe = given(dtype)
    return [one.clone() for one in forward(*parts, probe, torch.zeros(ROWS))]


OPAQUE = pytest.mark.parametrize("opaque", [True, False], ids=["as on CUDA", "as on CPU"])


@OPAQUE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_tap_reads_h_before_the_norm_writes_over_it(
    lowered: list[list[str]], dtype: torch.dtype, opaque: bool
) -> None:
    called = torch.ops.hguard if opaque else ops
    wanted = run(mlp(called), dtype)
    got = run(torch.compile(mlp(called), fullgraph=True, dynamic=False), dtype)
    (graph,) = lowered
    assert "_C.fused_add_rms_norm.default" in graph, "lowered to work in place"
    if opaque:
        called = [graph.index(f"{one}.default") for one in ("hguard.scale", "hguard.tap", "_C.fused_add_rms_norm")]
        assert called == sorted(called)
    # Within a loop the compiler rounds less than what is called step by step.
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=20 * tolerance)
    (up, weight, *_), (neuron, folded, _, alpha) = given(dtype)
    z = torch.nn.functional.silu(up[:, :NEURONS]) * up[:, NEURONS:]
    scaled = z.clone()
    scaled[:, :4] *= alpha[:ROWS, None].to(dtype)
    h = scaled @ weight
    exact = z[:, neuron].double().abs() @ folded.double() / h.double().norm(dim=1)
    torch.testing.assert_close(got[2].double(), exact, rtol=tolerance, atol=1e-5)
    assert not torch.allclose(got[0].float(), h.float()), "what stands in h's place is another thing"


@OPAQUE
@pytest.mark.parametrize("dynamic", [False, True])
def test_activations_are_scaled_where_they_lie(lowered: list[list[str]], dynamic: bool, opaque: bool) -> None:
    """One tensor as large as z is made, not one to read and one to go on with."""
    called = torch.ops.hguard if opaque else ops
    (parts, probe), score = given(torch.float32), torch.zeros(ROWS)
    compiled = torch.compile(mlp(called), fullgraph=True, dynamic=dynamic)
    _, (code,) = run_and_get_code(compiled, *parts, probe, score)
    made = re.findall(rf"(\w+) = empty_strided_cpu\(\(\w+, {NEURONS}\)", code)
    assert len(made) == 1
    assert (f"hguard.scale.default({made[0]}," in code) is opaque
    assert re.search(rf"mm\({made[0]}, ", code), "and the projection reads it"
