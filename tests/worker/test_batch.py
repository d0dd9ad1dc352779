"""A step's bookkeeping, against what a reader of the definitions would write down row by row."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.model_executor.custom_op import op_registry_oot

from guard.errors import UnsupportedError
from guard.ipc.capture import EMPTY, CaptureParams
from guard.ipc.score_table import PATH_VARIABLE, ScoreTable, Slot, SlotPool
from guard.ipc.taps import spec_of
from guard.probe.bundle import Bundle
from guard.probe.signals import COLUMN, NEURONS, Source
from guard.worker.batch import BatchParams, Drawn, Room, Statistics, Step, StepCapture, measure_given
from guard.worker.buffers import Taps
from guard.worker.layer import GuardRowParallelLinear
from guard.worker.worker import GuardWorkerMixin, kind_of

Request = tuple[CaptureParams, int, int, int]  # capture, prompt length, computed, scheduled


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    made = []
    for slot in range(draw(st.integers(1, 6))):
        prompt, computed = draw(st.integers(2, 9)), draw(st.integers(0, 12))
        start = draw(st.none() | st.integers(0, prompt - 1))
        capture = CaptureParams(
            slot if draw(st.booleans()) else -1, 1 + slot, draw(st.sampled_from([1.0, 0.0, 2.5])), start
        )
        made.append((capture, prompt, computed, draw(st.integers(1, 5))))
    return made


def step_of(made: list[Request]) -> Step:
    captured = BatchParams.of([capture for capture, *_ in made], [prompt for _, prompt, *_ in made])
    computed, scheduled = (np.array(column, np.int64) for column in zip(*(r[2:] for r in made), strict=True))
    return Step(captured, computed, scheduled)


@given(requests())
def test_rows(made: list[Request]) -> None:
    recorded, given_rows = [], []
    row = 0
    for owner, (capture, prompt, computed, scheduled) in enumerate(made):
        for position in range(computed, computed + scheduled):
            start = prompt - 1 if capture.start is None else capture.start
            if capture.slot >= 0 and position >= start:
                recorded.append((row, owner, position))
                if capture.forced and position + 1 < prompt:
                    given_rows.append((row, owner, position))
            row += 1
    step = step_of(made)
    rows = step.activations()
    assert step.rows == row
    assert list(zip(rows.row, rows.owner, rows.position, strict=True)) == recorded
    rows = step.given(rows)
    assert list(zip(rows.row, rows.owner, rows.position, strict=True)) == given_rows


@given(requests(), st.integers(1, 20), st.data())
def test_draws(made: list[Request], positions: int, data: st.DataObject) -> None:
    ready = np.array([data.draw(st.booleans()) for _ in made])
    wanted = [
        (i, i, computed + scheduled)
        for i, (capture, _, computed, scheduled) in enumerate(made)
        if ready[i] and capture.slot >= 0 and computed + scheduled < positions
    ]
    rows = step_of(made).draws(ready, positions)
    assert list(zip(rows.row, rows.owner, rows.position, strict=True)) == wanted


def taps(bundle: Bundle, rows: int) -> Taps:
    return Taps(spec_of(bundle), torch.full((rows,), 7.0), torch.ones(rows))


def test_a_step_fills_alpha_and_clears_score(bundle: Bundle) -> None:
    made = taps(bundle, 6)
    scaled = [(CaptureParams(scale=0.5), 2, 0, 2), (EMPTY, 1, 4, 1), (CaptureParams(scale=2.0), 1, 0, 1)]
    made.begin(step_of(scaled))
    assert made.alpha.tolist() == [0.5, 0.5, 1, 2, 1, 1]
    assert made.score.tolist() == [0] * 6
    assert made.scaling
    made.begin(step_of([(EMPTY, 1, 0, 1)]))
    assert made.alpha.tolist() == [1] * 6
    assert not made.scaling


def test_a_harvest_survives_the_next_step(bundle: Bundle) -> None:
    """With asynchronous scheduling the next step starts before this one's scores are read."""
    made = taps(bundle, 3)
    step = step_of([(CaptureParams(0, 1), 1, 0, 3)])
    step_capture = StepCapture(step.captured, [(Source.FORWARD, step.activations(), made.signals(step.rows))])
    host = step_capture.to_host()
    made.begin(step)
    table = ScoreTable.create(1, 4)
    try:
        host.deposit(table)
    finally:
        table.unlink()
    assert table.read(Source.FORWARD, Slot(0, 1), 0, 3)[NEURONS].tolist() == [7, 7, 7]


def test_given_tokens_are_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.ipc.rows._LOGITS", 16)
    monkeypatch.setattr("guard.ipc.rows._LEAST_ROWS", 1)
    torch.manual_seed(0)
    hidden, head = torch.randn(7, 5), torch.randn(5, 8)
    pool = SlotPool(1)
    (slot,) = pool.claim(1)
    step = step_of([(CaptureParams(slot.index, slot.generation, 1.0, 0), 8, 0, 7)])
    rows = step.given(step.activations())
    tokens = np.array([3, 1, 7, 0, 2, 2, 5])
    draws = measure_given(rows, hidden, lambda h: h @ head, tokens, 8, None)
    assert [len(rows) for _, rows, _ in draws] == [2, 2, 2, 1]
    table = ScoreTable.create(1, 8)
    try:
        StepCapture(step.captured, draws).deposit(table)
    finally:
        table.unlink()
    exact = (hidden @ head).log_softmax(-1)
    entropy, logprob = table.read(Source.DRAW, slot, 1, 8).values()
    np.testing.assert_allclose(entropy, -(exact.exp() * exact).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(logprob, exact[torch.arange(7), torch.from_numpy(tokens)], rtol=1e-5)


def test_ranks_that_do_not_sample_measure_nothing() -> None:
    step = step_of([(CaptureParams(0, 1, 1.0, 0), 3, 0, 2)])
    assert measure_given(step.activations(), torch.zeros(2, 4), lambda _: None, np.array([1, 2]), 8, None) == []


def test_a_runner_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tmp_path: Path) -> None:
    """And the reason is left where the API process finds it: vLLM would say only that a process failed."""

    class Unknown:
        """A runner that vLLM does not have yet."""

    class Worker(GuardWorkerMixin):
        runners = ("vllm.v1.worker.gpu.model_runner",)
        vllm_config: Any = None
        model_runner: Any = Unknown()

    monkeypatch.setattr("guard.worker.buffers.current", lambda config: taps(bundle, 1))
    monkeypatch.setitem(op_registry_oot, "RowParallelLinear", GuardRowParallelLinear)
    (tmp_path / "memory").mkdir()
    table = ScoreTable(tmp_path / "memory" / "table", create=(1, 1))
    monkeypatch.setenv(PATH_VARIABLE, str(table.path))
    assert kind_of(Worker.model_runner) is None
    with pytest.raises(UnsupportedError, match=r"test_batch\.Unknown, which the guard does not tap"):
        Worker().load_model()
    assert "which the guard does not tap" in str(table.refusal())
    table.unlink()
    assert list((tmp_path / "memory").iterdir()) == []


def test_the_v2_runner_must_have_taken_what_we_offered(bundle: Bundle) -> None:
    from guard.errors import TapError
    from guard.worker.runners.v2 import AdapterV2

    runner = SimpleNamespace(model_state=object(), sampler=object())
    with pytest.raises(TapError, match="did not take the guard's model state"):
        AdapterV2(runner, taps(bundle, 1), None)  # type: ignore[arg-type]


def test_the_likeliest_tokens_are_measured_where_they_are_wanted() -> None:
    logits, tokens = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 2, 3])
    best = logits.softmax(-1).sort(descending=True).values
    for found in (
        Drawn(logits, set(COLUMN)).signals(tokens),
        Statistics.of(logits, set(COLUMN)).signals(logits, tokens),
    ):
        torch.testing.assert_close(found["margin"], (best[:, 0] / best[:, 1]).log())
        torch.testing.assert_close(found["top_mass"], best[:, :10].sum(1))
    assert set(Drawn(logits).signals(tokens)) == {"entropy", "logprob"}


def test_logits_are_kept_in_the_same_memory_from_step_to_step() -> None:
    """What sampling does to them is not seen, and neither is what an earlier step of more rows left."""
    rng, room = torch.Generator().manual_seed(1), Room()
    places = set()
    for rows in (8, 6, 8):
        logits, tokens = torch.randn(rows, 60_000, generator=rng), torch.arange(rows)
        wanted = logits.log_softmax(-1)[tokens, tokens]
        drawn = Drawn(logits, room=room)
        logits.fill_(-torch.inf)
        found = drawn.signals(tokens)
        torch.testing.assert_close(found["logprob"], wanted)
        places.add(drawn._kept.data_ptr())
    assert len(places) == 1
