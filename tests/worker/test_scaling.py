"""The tapped layer by itself: what it scales, what it scores, and on what shapes of input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm.config import VllmConfig
from vllm.config.vllm import set_current_vllm_config
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from app.settings import ATLAS
from guard.errors import TapError
from guard.ipc import taps as configuration
from guard.ipc.capture import EMPTY, CaptureParams
from guard.ipc.taps import TapConfig, TapSpec, spec_of
from guard.probe.bundle import Bundle, load_bundle
from guard.worker import ops
from guard.worker.batch import BatchParams, Step
from guard.worker.buffers import Taps
from guard.worker.layer import GuardRowParallelLinear
from tests.measured import with_heads

NEURONS, HIDDEN, ROWS = 48, 32, 6
# Two layers, so that the second is padded: with neuron 0, which is a scaled one of its own.
LAYER = np.array([0] * 4 + [1] * 2, np.int32)
NEURON = np.array([3, 5, 8, 13, 0, 7], np.int32)
COEFFICIENT = np.array([1, -1, 0.5, -0.5, 2, -2], np.float32)
FOLDED = np.array([4, -6, 4.5, -7, 2, -16], np.float32)
STEP = Step(
    BatchParams.of([CaptureParams(scale=0.3), EMPTY, CaptureParams(scale=0.0)], [2] * 3),
    np.zeros(3, np.int64),
    np.full(3, 2),
)
ALPHA = torch.tensor([0.3, 0.3, 1, 1, 0, 0])
PLAIN = Step(BatchParams.of([EMPTY], [ROWS]), np.zeros(1, np.int64), np.full(1, ROWS))


@pytest.fixture
def headed(tmp_path: Path) -> Bundle:
    return with_heads(load_bundle(ATLAS / "probe"), tmp_path, 256)


def shapes() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Ways to hand over rows [tokens, neurons], none of which may be left unscaled."""
    return {
        "rows": lambda rows: rows.clone(),
        "a batch of one": lambda rows: rows.clone()[None],
        "a batch": lambda rows: rows.clone().view(2, 3, -1),
        "a batch that has no rows": lambda rows: rows.view(2, 3, -1).transpose(0, 1).contiguous().transpose(0, 1),
        "part of another": lambda rows: torch.cat((rows, rows), 1)[:, :NEURONS],
    }


def tapped(layer: int, dtype: torch.dtype) -> tuple[GuardRowParallelLinear, Taps, torch.Tensor]:
    """A real layer whose engine is left out, the buffers of a step, and the layer's weights, which it packs."""
    torch.manual_seed(layer)
    spec = TapSpec.from_arrays(LAYER, NEURON, FOLDED, COEFFICIENT)
    taps = Taps(spec, torch.zeros(ROWS + 2), torch.ones(ROWS + 2))
    made = GuardRowParallelLinear.__new__(GuardRowParallelLinear)
    torch.nn.Module.__init__(made)
    weight = torch.randn(HIDDEN, NEURONS).to(dtype)
    made.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    made.input_is_parallel, made.reduce_results, made.skip_bias_add, made.return_bias = True, True, False, True
    made.tp_size, made.tp_rank, made.bias = 1, 0, None
    made.collected = False
    with set_current_vllm_config(VllmConfig()):
        made.quant_method = UnquantizedLinearMethod()
        made.quant_method.process_weights_after_loading(made)
    made.add_tap(spec.layers[layer], taps)
    return made, taps, weight.double()


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("way", ["eager", "graph", "compiled"])
@pytest.mark.parametrize("shape", shapes())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scaled_neurons_are_scaled_and_all_are_scored(layer: int, way: str, shape: str, dtype: torch.dtype) -> None:
    one, taps, weight = tapped(layer, dtype)
    rows = torch.randn(ROWS, NEURONS).to(dtype)
    torch._dynamo.reset()
    forward: Any = {"eager": one, "graph": one._in_graph, "compiled": torch.compile(one, fullgraph=True)}[way]
    own = layer == LAYER
    for step, alpha in ((STEP, ALPHA), (PLAIN, torch.ones(ROWS))):
        given = shapes()[shape](rows)
        scaled = rows.clone()
        columns = torch.from_numpy(NEURON[own & (COEFFICIENT > 0)]).long()
        scaled[:, columns] = (rows[:, columns].double() * alpha.double()[:, None]).to(dtype)
        taps.begin(step)
        with torch.inference_mode():
            h, _ = forward(given)
        assert h.shape == (*given.shape[:-1], HIDDEN)
        h = h.reshape(ROWS, HIDDEN).double()
        exact = scaled.double() @ weight.T
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(h, exact, rtol=tolerance, atol=10 * tolerance)
        folded = torch.from_numpy(FOLDED[own]).double()
        score = rows[:, NEURON[own]].double().abs() @ folded / exact.norm(dim=1)
        torch.testing.assert_close(taps.signals(ROWS)["neurons"].double(), score, rtol=tolerance, atol=tolerance)


def test_a_compile_cache_knows_the_ops(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    ops.register()
    tensors = "Tensor neuron, Tensor folded, Tensor scaled, Tensor alpha"
    assert [str(getattr(torch.ops.hguard, name).default._schema) for name in ("scale", "tap")] == [
        f"hguard::scale(Tensor(a0!) z, {tensors}) -> Tensor",
        "hguard::tap(Tensor h, Tensor contribution, Tensor(a2!) score) -> ()",
    ], "raise OPS in guard/ipc/taps.py when this changes"
    given = TapConfig.of(bundle)
    assert given.ops == configuration.OPS
    keys = {
        VllmConfig(
            additional_config={configuration.KEY: {**given.additional_config()[configuration.KEY], "ops": number}}
        ).compute_hash()
        for number in (configuration.OPS - 1, configuration.OPS)
    }
    assert len(keys) == 2


def test_what_a_model_lacks_for_a_head_is_named(headed: Bundle) -> None:
    taps = Taps(spec_of(headed), torch.zeros(4), torch.ones(4))
    taps.add_head("residual", 0, torch.zeros(256), lambda weight: weight)
    says = (
        r"reads residual, and the model builds no QKVParallelLinear named .*qkv_proj in layers 3: serve a probe without"
    )
    with pytest.raises(TapError, match=says):
        taps.require_sites()
    taps.add_head("residual", 3, torch.zeros(256), lambda weight: weight)
    with pytest.raises(TapError, match=r"reads attention, and the model builds no RowParallelLinear .* in layers 1, 3"):
        taps.require_sites()


def test_a_configuration_that_was_json_on_its_way_is_the_same(headed: Bundle) -> None:
    """Layers are keys, and JSON makes strings of those."""
    config = TapConfig.of(headed)
    linear = {"residual": {0: 256, 3: 256}, "attention": {1: 256, 3: 256}, "block": {0: 256, 3: 256}}
    assert config.heads == {**linear, "distance": {2: 64 * 257}}
    assert TapConfig.find(json.loads(json.dumps(config.additional_config()))) == config
