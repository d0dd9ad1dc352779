"""The adapter for vLLM's V1 model runner (``v1/worker/gpu_model_runner.py``, 0.32), which the CPU backend uses.

Seams: ``_model_forward`` (documented as overridable), ``execute_model`` (its state holds the raw logits), ``_sample``.
Everything happens on the host, in step: what is measured is in the table before the step's output is returned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from guard.ipc.capture import CaptureParams, unpack
from guard.ipc.score_table import ScoreTable
from guard.probe.signals import Source
from guard.worker.batch import BatchParams, Drawn, Room, Step, StepCapture, measure_given
from guard.worker.buffers import NeuronSums, Taps


class AdapterV1:
    """Binds one runner, its taps and the table, which only the one rank that reports has."""

    def __init__(self, runner: Any, taps: Taps, table: ScoreTable | None) -> None:
        self._runner, self._taps, self._table = runner, taps, table
        self.neurons = NeuronSums(taps)
        self._captures: dict[str, CaptureParams] = {}
        self._batch: list[str] = []
        self._captured = BatchParams.of((), ())
        self._step: Step | None = None
        self._drawn: Drawn | None = None
        self._room = Room()
        self._live = False
        self._hidden: dict[int, torch.Generator] = {}
        self._model_forward, self._execute_model, self._sample = (
            runner._model_forward,
            runner.execute_model,
            runner._sample,
        )
        runner._model_forward = self._guarded_forward
        runner.execute_model = self._guarded_execute
        runner._sample = self._guarded_sample

    @staticmethod
    def prepare(vllm_config: Any) -> None:
        """Nothing needs to be there before this runner loads its model."""

    def _guarded_execute(self, scheduler_output: Any, intermediate_tensors: Any = None) -> Any:
        for request_id in scheduler_output.finished_req_ids:
            self._captures.pop(request_id, None)
        self._show_generators()
        self._live, self._step, self._drawn = True, None, None  # dummy and profile runs call the forward too
        try:
            output = self._execute_model(scheduler_output, intermediate_tensors)
        finally:
            self._live = False
        pending = self._runner.execute_model_state
        if self._table is not None and self._step is not None and self._step.drawn and pending is not None:
            # Before grammar masks and sampling options: the model's own distribution, as vLLM's raw logprobs.
            self._drawn = Drawn(pending.logits, self._table.measured, self._room)
        return output

    def _guarded_forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self._live:
            return self._model_forward(*args, **kwargs)
        step = self._step = self._next_step()
        self._taps.begin(step)
        hidden = self._model_forward(*args, **kwargs)
        if self._taps.scores and (self._taps.ranks > 1 or step.recorded):
            self._after_forward(step, hidden)
        return hidden

    def _next_step(self) -> Step:
        runner = self._runner
        batch = runner.input_batch
        count = len(batch.req_ids)
        if batch.req_ids != self._batch:
            self._batch = list(batch.req_ids)
            captures = [self._capture(request_id) for request_id in self._batch]
            self._captured = BatchParams.of(captures, batch.num_prompt_tokens[:count].tolist())
        bounds = runner.query_start_loc.np[: count + 1]
        return Step(self._captured, batch.num_computed_tokens_cpu[:count], bounds[1:] - bounds[:-1])

    def _after_forward(self, step: Step, hidden: torch.Tensor) -> None:
        rows = step.activations()
        given = step.given(rows)
        if step.captured.any_apart:
            self.neurons.add(step.captured, rows)
        step_capture = StepCapture(step.captured, [(Source.FORWARD, rows, self._taps.signals(step.rows))])
        if len(given):
            batch = self._runner.input_batch
            tokens = batch.token_ids_cpu[given.owner, given.position + 1].astype(np.int64)
            model = self._runner.model
            step_capture.measured += measure_given(
                given, hidden, model.compute_logits, tokens, batch.vocab_size, self._table
            )
        if self._table is not None:
            step_capture.deposit(self._table)

    def _guarded_sample(self, logits: Any, spec_decode_metadata: Any) -> Any:
        self._hide_generators()
        output = self._sample(logits, spec_decode_metadata)
        drawn, self._drawn = self._drawn, None
        step = self._step
        if drawn is not None and step is not None and self._table is not None:
            count = len(step.scheduled)
            ready = ~self._runner.discard_request_mask.np[:count].astype(bool)
            rows = step.draws(ready, self._table.positions)
            signals = drawn.signals(output.sampled_token_ids[:, 0].long())
            StepCapture(step.captured, [(Source.DRAW, rows, signals)]).deposit(self._table)
        return output

    def _hide_generators(self) -> None:
        """Take the generators of requests whose draw is discarded (their prompt goes on) out of this step.

        vLLM lets them draw and then sets them back, which a generator on the CPU cannot do: a seeded request with a
        prompt longer than a chunk would end the engine. One that draws nothing need not be set back.
        """
        batch = self._runner.input_batch
        if batch.generators:
            discarded = self._runner.discard_request_mask.np[: len(batch.req_ids)]
            self._hidden = {i: batch.generators.pop(i) for i in np.flatnonzero(discarded) if i in batch.generators}

    def _show_generators(self) -> None:
        self._runner.input_batch.generators.update(self._hidden)
        self._hidden = {}

    def _capture(self, request_id: str) -> CaptureParams:
        found = self._captures.get(request_id)
        if found is None:
            params = self._runner.requests[request_id].sampling_params
            found = self._captures[request_id] = unpack(params.extra_args if params else None, request_id)
        return found
