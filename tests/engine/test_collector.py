"""What is collected: the arithmetic, over chunks and ranks, without an engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from guard.engine.activations import new_means
from guard.ipc.capture import EMPTY, CaptureParams
from guard.worker import ops
from guard.worker.activations import Collector
from guard.worker.batch import BatchParams, Step

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
    ops.collect(z, h, weight, sums)
    ops.collect_outputs(h, weight, outputs)
    shares = z[:4].float().abs() / h[:4].float().norm(dim=-1, keepdim=True)
    torch.testing.assert_close(sums, 1 + torch.stack([shares[1:3].sum(0), shares[0] * 0, shares[3]]))
    torch.testing.assert_close(outputs, 1 + torch.stack([h[1:3].float().sum(0), h[0].float() * 0, h[3].float()]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_a_row_that_overflows_marks_its_own_sequence_only(dtype: torch.dtype) -> None:
    """0 times infinity is NaN: in one product with the others such a row would take all sequences along."""
    torch.manual_seed(0)
    z, h = torch.randn(TOKENS, NEURONS).to(dtype), torch.randn(TOKENS, HIDDEN).to(dtype)
    z[0, 3], h[0, 1], h[2, 0] = torch.inf, torch.inf, torch.nan
    weight = torch.zeros(4, TOKENS)
    weight[0, :2] = weight[1, 2] = weight[2, 3:5] = 1
    sums, outputs = torch.zeros(4, NEURONS), torch.zeros(4, HIDDEN)
    ops.collect(z, h, weight, sums)
    ops.collect_outputs(h, weight, outputs)
    for made in (sums, outputs):
        assert made[:, 0].isnan().tolist() == [True, True, False, False]
        ops.collect(z, h, torch.zeros(4, TOKENS), sums)
        assert made[0, 0].isnan(), "later steps do not clear the mark"
    shares = z[3:5].float().abs() / h[3:5].float().norm(dim=-1, keepdim=True)
    torch.testing.assert_close(sums[2], shares.sum(0))
    torch.testing.assert_close(outputs[2], h[3:5].float().sum(0))
    assert not sums[3].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_accumulators_are_float32_while_a_model_of_half_precision_loads(dtype: torch.dtype) -> None:
    """vLLM makes the model's precision torch's default meanwhile."""
    collector = Collector(2, 1, torch.zeros(4, 16), 1)
    torch.set_default_dtype(dtype)
    try:
        made = collector.add_layer(0, 0, NEURONS, HIDDEN)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [(one.dtype, one.shape) for one in made] == [(torch.float32, (4, NEURONS)), (torch.float32, (2, HIDDEN))]


def test_a_sequence_that_overflowed_is_told_at_the_write_and_leaves_nothing_behind(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = Collector(3, 2, torch.zeros(6, 16), 1)
    tapped = [made.add_layer(layer, 0, NEURONS, HIDDEN) for layer in range(2)]
    captured = BatchParams.of([CaptureParams(slot, 1, 1.0, 0) for slot in range(3)], [2, 2, 2])
    z, h = torch.randn(TOKENS, NEURONS), torch.randn(TOKENS, HIDDEN)

    def run(overflow: bool) -> None:
        made.begin(Step(captured, np.zeros(3, np.int64), np.array([2, 2, 2])))
        for layer, (sums, outputs) in enumerate(tapped):
            out = h.clone()
            if overflow:
                out[2] = torch.nan  # slot 1, in every layer
                out[5, 0] = torch.inf if layer == 1 else 0  # slot 2, in the second one
            ops.collect(z, out, made.weight, sums)
            ops.collect_outputs(out, made.weight[:3], outputs)

    for name, width in (("means.npy", NEURONS), ("leads.npy", NEURONS), ("outputs.npy", HIDDEN)):
        new_means(tmp_path / name, 3, 2, width)
    paths = [str(tmp_path / name) for name in ("means.npy", "outputs.npy", "leads.npy")]
    run(overflow=True)
    assert made.write(paths[0], [0, 1, 2], [0, 1, 2], *paths[1:]) == ([2, 2, 2], [-1, 0, 1])
    assert all(np.isfinite(np.load(path)[0]).all() for path in paths)
    run(overflow=False)
    assert made.write(paths[0], [0, 1, 2], [0, 1, 2], *paths[1:]) == ([2, 2, 2], [-1, -1, -1])
    shares = (z.abs() / h.norm(dim=-1, keepdim=True)).reshape(3, 2, NEURONS).numpy()
    for layer in range(2):
        np.testing.assert_allclose(np.load(paths[0])[:, layer], shares.mean(1), rtol=1e-5)
        np.testing.assert_allclose(np.load(paths[2])[:, layer], shares[:, 0], rtol=1e-5)


def test_what_a_sequence_left_that_was_given_up_is_not_the_next_ones(tmp_path: Path) -> None:
    """As many positions counted in all as the next one has: only whose they were tells them apart."""
    torch.manual_seed(0)
    z, h = torch.randn(TOKENS, NEURONS), torch.randn(TOKENS, HIDDEN)
    made = Collector(1, 1, torch.zeros(2, 16), 1)
    sums, _ = made.add_layer(0, 0, NEURONS, HIDDEN)

    def run(generation: int, start: int, end: int, rows: slice) -> None:
        captured = BatchParams.of([EMPTY, CaptureParams(0, generation, 1.0, 2)], [1, TOKENS])
        made.begin(Step(captured, np.array([0, start]), np.array([1, end - start])))
        ops.collect(torch.cat([z[:1], z[rows]]), torch.cat([h[:1], h[rows]]), made.weight, sums)

    new_means(tmp_path / "means.npy", 1, 1, NEURONS)
    run(1, 0, 4, slice(1, 5))  # two positions count, and it is given up
    run(2, 0, 4, slice(0, 4))
    run(2, 4, TOKENS, slice(4, TOKENS))
    assert made.write(str(tmp_path / "means.npy"), [0], [0]) == ([4], [-1])
    shares = z[2:].abs() / h[2:].norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(np.load(tmp_path / "means.npy")[0, 0], shares.mean(0), rtol=1e-5)


def test_two_ranks_write_one_array_each_of_means_and_one_of_them_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    z, h = torch.randn(TOKENS, NEURONS), torch.randn(TOKENS, HIDDEN)
    ranks = [Collector(2, 1, torch.zeros(4, 16), 2) for _ in range(2)]
    shard = NEURONS // 2
    for number, rank in enumerate(ranks):
        sums, outputs = rank.add_layer(0, number * shard, shard, HIDDEN)
        # One sequence in slot 1 whose positions 2 to 5 count, in two chunks; another request is nobody's.
        captured = BatchParams.of([EMPTY, CaptureParams(1, 1, 1.0, 2)], [1, TOKENS])
        for start, end in ((0, 3), (3, TOKENS)):
            rank.begin(Step(captured, np.array([0, start]), np.array([1, end - start])))
            rows = torch.cat([torch.full((1, NEURONS), torch.nan), z[start:end]])
            hidden = torch.cat([torch.full((1, HIDDEN), torch.nan), h[start:end]])
            ops.collect(rows[:, number * shard : (number + 1) * shard], hidden, rank.weight, sums)
            ops.collect_outputs(hidden, rank.weight[:2], outputs)
    new_means(tmp_path / "means.npy", 3, 1, NEURONS)
    new_means(tmp_path / "leads.npy", 3, 1, NEURONS)
    new_means(tmp_path / "outputs.npy", 3, 1, HIDDEN)
    paths = str(tmp_path / "means.npy"), str(tmp_path / "outputs.npy")
    ranks[0].outputs[0][0] = 7  # another slot, which is not asked for
    ranks[1].outputs[0] += 7  # nobody reads this rank's
    leads = str(tmp_path / "leads.npy")
    assert [rank.write(paths[0], [1], [2], paths[1], leads) for rank in ranks] == [([4], [-1])] * 2
    shares = z[2:].abs() / h[2:].norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(np.load(paths[0])[2, 0], shares.mean(0), rtol=1e-5)
    np.testing.assert_allclose(np.load(leads)[2, 0], shares[0], rtol=1e-5)
    np.testing.assert_allclose(np.load(paths[1])[2, 0], h[2:].mean(0), rtol=1e-5, atol=1e-6)
    assert not np.load(paths[0])[:2].any()
    assert not np.load(paths[1])[:2].any()
    for rank in ranks:
        assert not rank.sums[0][[1, 3]].any()
        assert not rank.outputs[0][1].any(), "cleared for the next sequence, on every rank"
    ranks[0].write(paths[0], [0], [0])
    assert not np.load(paths[1])[0].any(), "outputs are written only where they are asked for"
