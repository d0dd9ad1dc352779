"""What the compiler makes of a tap: h is read before vLLM's fused norm, lowered to work in place, writes over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

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


def down(tap: Callable[..., Any]) -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The end of an MLP and the norm of the layer after it, as vLLM's decoders have them."""

    def forward(
        z: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, gain: torch.Tensor, score: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h = z @ weight
        tap(z, h, score)
        torch.ops._C.fused_add_rms_norm(h, residual, gain, 1e-6)
        return h, residual, score

    return forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_tap_reads_h_before_the_norm_writes_over_it(lowered: list[list[str]], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    neuron, folded = torch.arange(8), torch.rand(8)
    given = [torch.randn(ROWS, NEURONS), torch.randn(NEURONS, HIDDEN), torch.randn(ROWS, HIDDEN), torch.rand(HIDDEN)]
    given = [one.to(dtype) for one in given]

    def tap(z: torch.Tensor, h: torch.Tensor, score: torch.Tensor) -> None:
        torch.ops.hguard.tap(z, h, neuron, folded, score)

    def run(forward: Callable[..., Any]) -> tuple[torch.Tensor, ...]:
        z, weight, residual, gain = (one.clone() for one in given)
        return tuple(one.clone() for one in forward(z, weight, residual, gain, torch.zeros(ROWS)))

    wanted = run(down(tap))
    got = run(torch.compile(down(tap), fullgraph=True, dynamic=False))
    (graph,) = lowered
    assert "_C.fused_add_rms_norm.default" in graph, "lowered to work in place"
    assert graph.index("hguard.tap.default") < graph.index("_C.fused_add_rms_norm.default")
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)
    h = given[0] @ given[1]
    exact = torch.zeros(ROWS)
    ops.tap(given[0], h, neuron, folded, exact)
    torch.testing.assert_close(got[2], exact, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)
    assert not torch.allclose(got[0].float(), h.float()), "what stands in h's place is another thing"
