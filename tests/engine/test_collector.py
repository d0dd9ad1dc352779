"""What is collected: the arithmetic, over chunks and ranks, without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guard.engine.activations import new_means
from guard.errors import TapError
from guard.harness.activations import file_of
from guard.ipc.capture import EMPTY, CaptureParams
from guard.ipc.collecting import Collecting, Part, Site, Table
from guard.worker import ops
from guard.worker.activations import Accumulators, Collector
from guard.worker.batch import BatchParams, Step

TOKENS, NEURONS, HIDDEN = 6, 8, 4
MEANS, LEADS, OUTPUTS = (Site.NEURONS, Part.SPAN), (Site.NEURONS, Part.LAST_PROMPT), (Site.OUTPUT, Part.SPAN)


def collector_of(slots: int, layers: int = 1, ranks: int = 1, **more: Any) -> Collector:
    collecting = Collecting(slots, **more)
    return Collector(collecting, layers, torch.zeros(len(collecting.parts) * slots, 16), ranks)


def layer_of(made: Collector, layer: int, rank: int = 0, neurons: int = NEURONS) -> tuple[Accumulators, Accumulators]:
    return made.add(Site.NEURONS, layer, rank, neurons), made.add(Site.OUTPUT, layer, rank, HIDDEN)


def collect(z: torch.Tensor, h: torch.Tensor, neurons: Accumulators, outputs: Accumulators) -> None:
    ops.collect(z, h, neurons.weight, neurons.sums)
    ops.collect_states(h, outputs.weight, outputs.sums)


def targets(folder: Path, *tables: Table) -> list[tuple[Site, Part, str]]:
    return [(*table, str(folder / file_of(table))) for table in tables]


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
    ops.collect_states(h, weight, outputs)
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
    ops.collect_states(h, weight, outputs)
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
    collector = collector_of(2)
    torch.set_default_dtype(dtype)
    try:
        made = layer_of(collector, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    shapes = [(one.sums.dtype, one.sums.shape) for one in made]
    assert shapes == [(torch.float32, (4, NEURONS)), (torch.float32, (2, HIDDEN))]


def test_a_sequence_that_overflowed_is_told_at_the_write_and_leaves_nothing_behind(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = collector_of(3, 2)
    tapped = [layer_of(made, layer) for layer in range(2)]
    captured = BatchParams.of([CaptureParams(slot, 1, 1.0, 0) for slot in range(3)], [2, 2, 2])
    z, h = torch.randn(TOKENS, NEURONS), torch.randn(TOKENS, HIDDEN)

    def run(overflow: bool) -> None:
        made.begin(Step(captured, np.zeros(3, np.int64), np.array([2, 2, 2])))
        for layer, sites in enumerate(tapped):
            out = h.clone()
            if overflow:
                out[2] = torch.nan  # slot 1, in every layer
                out[5, 0] = torch.inf if layer == 1 else 0  # slot 2, in the second one
            collect(z, out, *sites)

    for name, width in (("means.npy", NEURONS), ("leads.npy", NEURONS), ("outputs.npy", HIDDEN)):
        new_means(tmp_path / name, 3, 2, width)
    wanted = targets(tmp_path, MEANS, OUTPUTS, LEADS)
    paths = [path for _, _, path in wanted]
    run(overflow=True)
    assert made.write([0, 1, 2], [0, 1, 2], wanted) == ([2, 2, 2], [-1, 0, 1])
    assert all(np.isfinite(np.load(path)[0]).all() for path in paths)
    run(overflow=False)
    assert made.write([0, 1, 2], [0, 1, 2], wanted) == ([2, 2, 2], [-1, -1, -1])
    shares = (z.abs() / h.norm(dim=-1, keepdim=True)).reshape(3, 2, NEURONS).numpy()
    for layer in range(2):
        np.testing.assert_allclose(np.load(paths[0])[:, layer], shares.mean(1), rtol=1e-5)
        np.testing.assert_allclose(np.load(paths[2])[:, layer], shares[:, 0], rtol=1e-5)


def test_what_a_sequence_left_that_was_given_up_is_not_the_next_ones(tmp_path: Path) -> None:
    """As many positions counted in all as the next one has: only whose they were tells them apart."""
    torch.manual_seed(0)
    z, h = torch.randn(TOKENS, NEURONS), torch.randn(TOKENS, HIDDEN)
    made = collector_of(1)
    neurons, _ = layer_of(made, 0)

    def run(generation: int, start: int, end: int, rows: slice) -> None:
        captured = BatchParams.of([EMPTY, CaptureParams(0, generation, 1.0, 2)], [1, TOKENS])
        made.begin(Step(captured, np.array([0, start]), np.array([1, end - start])))
        ops.collect(torch.cat([z[:1], z[rows]]), torch.cat([h[:1], h[rows]]), neurons.weight, neurons.sums)

    new_means(tmp_path / "means.npy", 1, 1, NEURONS)
    run(1, 0, 4, slice(1, 5))  # two positions count, and it is given up
    run(2, 0, 4, slice(0, 4))
    run(2, 4, TOKENS, slice(4, TOKENS))
    assert made.write([0], [0], targets(tmp_path, MEANS)) == ([4], [-1])
    shares = z[2:].abs() / h[2:].norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(np.load(tmp_path / "means.npy")[0, 0], shares.mean(0), rtol=1e-5)


def test_two_ranks_write_one_array_each_of_means_and_one_of_them_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    z, h = torch.randn(TOKENS, NEURONS), torch.randn(TOKENS, HIDDEN)
    ranks = [collector_of(2, ranks=2) for _ in range(2)]
    shard = NEURONS // 2
    for number, rank in enumerate(ranks):
        sites = layer_of(rank, 0, number, shard)
        # One sequence in slot 1 whose positions 2 to 5 count, in two chunks; another request is nobody's.
        captured = BatchParams.of([EMPTY, CaptureParams(1, 1, 1.0, 2)], [1, TOKENS])
        for start, end in ((0, 3), (3, TOKENS)):
            rank.begin(Step(captured, np.array([0, start]), np.array([1, end - start])))
            rows = torch.cat([torch.full((1, NEURONS), torch.nan), z[start:end]])
            hidden = torch.cat([torch.full((1, HIDDEN), torch.nan), h[start:end]])
            collect(rows[:, number * shard : (number + 1) * shard], hidden, *sites)
    new_means(tmp_path / "means.npy", 3, 1, NEURONS)
    new_means(tmp_path / "leads.npy", 3, 1, NEURONS)
    new_means(tmp_path / "outputs.npy", 3, 1, HIDDEN)
    wanted = targets(tmp_path, MEANS, OUTPUTS, LEADS)
    paths = [path for _, _, path in wanted]
    outputs = [rank.tables[Site.OUTPUT][0].sums for rank in ranks]
    outputs[0][0] = 7  # another slot, which is not asked for
    outputs[1] += 7  # nobody reads this rank's
    assert [rank.write([1], [2], wanted) for rank in ranks] == [([4], [-1])] * 2
    shares = z[2:].abs() / h[2:].norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(np.load(paths[0])[2, 0], shares.mean(0), rtol=1e-5)
    np.testing.assert_allclose(np.load(paths[2])[2, 0], shares[0], rtol=1e-5)
    np.testing.assert_allclose(np.load(paths[1])[2, 0], h[2:].mean(0), rtol=1e-5, atol=1e-6)
    assert not np.load(paths[0])[:2].any()
    assert not np.load(paths[1])[:2].any()
    for rank in ranks:
        assert not rank.tables[Site.NEURONS][0].sums[[1, 3]].any()
        assert not rank.tables[Site.OUTPUT][0].sums[1].any(), "cleared for the next sequence, on every rank"
    ranks[0].write([0], [0], wanted[:1])
    assert not np.load(paths[1])[0].any(), "outputs are written only where they are asked for"


def test_a_question_is_what_stands_between_the_template_and_the_answer(tmp_path: Path) -> None:
    """In chunks, and again after a preemption: each position counts once for its part."""
    torch.manual_seed(0)
    x = torch.randn(TOKENS, HIDDEN)
    made = collector_of(2, sites=(Site.RESIDUAL,), question=True)
    made.question_start = 1
    layer_of(made, 0)
    residual = made.add(Site.RESIDUAL, 0, 0, HIDDEN)
    captured = BatchParams.of([CaptureParams(1, 1)], [4])  # four tokens of prompt, two of an answer
    for start, end in ((0, 2), (2, 4), (4, 5), (0, 5), (5, TOKENS)):
        made.begin(Step(captured, np.array([start]), np.array([end - start])))
        ops.collect_states(x[start:end], residual.weight, residual.sums)
    tables: list[Table] = [(Site.RESIDUAL, part) for part in Part]
    for table in tables:
        new_means(tmp_path / file_of(table), 1, 1, HIDDEN)
    assert made.write([1], [0], targets(tmp_path, *tables)) == ([3], [-1])
    for table, rows in zip(tables, (x[3:], x[3:4], x[1:4]), strict=True):
        np.testing.assert_allclose(np.load(tmp_path / file_of(table))[0, 0], rows.mean(0), rtol=1e-5, atol=1e-6)
    assert not residual.sums.any()


def test_a_model_without_a_site_is_refused_by_name() -> None:
    made = collector_of(1, 2, sites=(Site.RESIDUAL, Site.ATTENTION))
    for layer in range(2):
        made.add(Site.RESIDUAL, layer, 0, HIDDEN)
    made.add(Site.ATTENTION, 1, 0, HIDDEN)
    with pytest.raises(TapError, match=r"attention cannot be .*self_attn\.o_proj in layers 0; leave attention out"):
        made.require_sites()
