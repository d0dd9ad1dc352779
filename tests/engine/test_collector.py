"""What is collected: the arithmetic, over chunks and ranks, without an engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from guard.engine import op
from guard.engine.collecting import new_means
from guard.engine.collector import Collector
from guard.engine.seat import EMPTY, Seat
from guard.engine.step import Roster, Step

TOKENS, NEURONS, HIDDEN = 6, 8, 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_rows_that_do_not_count_may_hold_anything(dtype: torch.dtype) -> None:
    """Rows that pad a CUDA graph are never written: what is in them must not reach the sums."""
    torch.manual_seed(0)
    z, h = torch.randn(TOKENS, NEURONS).to(dtype), torch.randn(TOKENS, HIDDEN).to(dtype)
    z[4:], h[4:] = torch.nan, torch.inf
    weight = torch.zeros(3, TOKENS + 2)
    weight[0, 1:3] = weight[2, 3] = 1
    sums, outputs = torch.ones(3, NEURONS), torch.ones(3, HIDDEN)
    op.collect(z, h, weight, sums)
    op.collect_outputs(h, weight, outputs)
    shares = z[:4].float().abs() / h[:4].float().norm(dim=-1, keepdim=True)
    torch.testing.assert_close(sums, 1 + torch.stack([shares[1:3].sum(0), shares[0] * 0, shares[3]]))
    torch.testing.assert_close(outputs, 1 + torch.stack([h[1:3].float().sum(0), h[0].float() * 0, h[3].float()]))


def test_two_ranks_write_one_array_each_of_means_and_one_of_them_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    z, h = torch.randn(TOKENS, NEURONS), torch.randn(TOKENS, HIDDEN)
    ranks = [Collector(2, 1, torch.zeros(2, 16), 2) for _ in range(2)]
    shard = NEURONS // 2
    for number, rank in enumerate(ranks):
        sums, outputs = rank.add_layer(0, number * shard, shard, HIDDEN)
        # One sequence in slot 1 whose positions 2 to 5 count, in two chunks; another request is nobody's.
        roster = Roster.of([EMPTY, Seat(1, 1, 1.0, 2)], [1, TOKENS])
        for start, end in ((0, 3), (3, TOKENS)):
            rank.begin(Step(roster, np.array([0, start]), np.array([1, end - start])))
            rows = torch.cat([torch.full((1, NEURONS), torch.nan), z[start:end]])
            hidden = torch.cat([torch.full((1, HIDDEN), torch.nan), h[start:end]])
            op.collect(rows[:, number * shard : (number + 1) * shard], hidden, rank.weight, sums)
            op.collect_outputs(hidden, rank.weight, outputs)
    new_means(tmp_path / "means.npy", 3, 1, NEURONS)
    new_means(tmp_path / "outputs.npy", 3, 1, HIDDEN)
    paths = str(tmp_path / "means.npy"), str(tmp_path / "outputs.npy")
    ranks[0].outputs[0][0] = 7  # another slot, which is not asked for
    ranks[1].outputs[0] += 7  # nobody reads this rank's
    assert [rank.write(paths[0], [1], [2], paths[1]) for rank in ranks] == [4, 4]
    shares = z[2:].abs() / h[2:].norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(np.load(paths[0])[2, 0], shares.mean(0), rtol=1e-5)
    np.testing.assert_allclose(np.load(paths[1])[2, 0], h[2:].mean(0), rtol=1e-5, atol=1e-6)
    assert not np.load(paths[0])[:2].any()
    assert not np.load(paths[1])[:2].any()
    for rank in ranks:
        assert not rank.sums[0][1].any()
        assert not rank.outputs[0][1].any(), "cleared for the next sequence, on every rank"
    ranks[0].write(paths[0], [0], [0])
    assert not np.load(paths[1])[0].any(), "outputs are written only where they are asked for"
