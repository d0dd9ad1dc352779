"""CETT against its definition: mask all neurons but one."""

from __future__ import annotations

import numpy as np
import torch

from guard.ipc.taps import TapSpec
from guard.probe import cett
from tests.conftest import make_tensors


def test_contribution_is_the_norm_of_the_neuron_alone() -> None:
    torch.manual_seed(0)
    z, down = torch.randn(5, 16, dtype=torch.float64), torch.randn(8, 16, dtype=torch.float64)
    h = z @ down.T
    expected = torch.stack([(z * torch.eye(16)[j]).mm(down.T).norm(dim=-1) / h.norm(dim=-1) for j in range(16)], -1)
    got = cett.contributions(z, h, cett.column_norms(down))
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-7)


def make_spec() -> TapSpec:
    t = make_tensors()
    return TapSpec.from_arrays(t["layer"], t["neuron"], t["folded"], t["coefficient"])


def test_layers_are_padded_to_one_width() -> None:
    spec = make_spec()
    assert sorted(spec.layers) == [0, 1, 3]
    assert spec.width == 2
    assert spec.layers[1].folded.tolist() == [4.0, 0.0]
    assert spec.layers[0].scaled.tolist() == [3]  # only the positive one
    assert all(len(tap.neuron) == 2 for tap in spec.layers.values())


def test_shards_together_weigh_what_the_whole_does() -> None:
    z = np.random.default_rng(0).normal(size=64)
    for tap in make_spec().layers.values():
        whole = np.abs(z[tap.neuron]) @ tap.folded
        parts = 0.0
        scaled = []
        for start in (0, 32):
            shard = tap.shard(start, 32)
            parts += np.abs(z[start : start + 32][shard.neuron]) @ shard.folded
            scaled += (shard.scaled + start).tolist()
        np.testing.assert_allclose(parts, whole)
        assert sorted(scaled) == sorted(tap.scaled.tolist())
