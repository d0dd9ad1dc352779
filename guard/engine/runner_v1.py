"""The step adapter for vLLM's V1 model runner (``v1/worker/gpu_model_runner.py``, 0.32), which CPU uses.

Around each forward pass: fill alpha and clear score from the batch; after it, write the rows' scores to the ring;
around sampling, write entropy and log-probability of the drawn tokens. Seams: ``_model_forward`` (documented as
overridable), ``execute_model`` (its state holds the raw logits), ``_sample``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.engine.ring import ScoreRing
from guard.engine.seat import Seat, unpack
from guard.engine.state import Taps

_ROWS_OF_LOGITS = 256  # rows of given text whose logits are held at once


class StepAdapter:
    """Binds one runner, its taps and the ring; ``writes`` on the one rank that reports."""

    def __init__(self, runner: Any, taps: Taps, ring: ScoreRing, tp_size: int, writes: bool) -> None:
        self._runner, self._taps, self._ring = runner, taps, ring
        self._tp_size, self._writes = tp_size, writes
        self._seats: dict[str, Seat] = {}
        self._batch: list[str] = []
        self._slot = self._start = np.empty(0, np.int64)
        self._generation = np.empty(0, np.uint32)
        self._damp = np.empty(0, np.float32)
        self._log_probabilities: torch.Tensor | None = None
        self._model_forward, self._execute_model, self._sample = (
            runner._model_forward,
            runner.execute_model,
            runner._sample,
        )
        self._live = False
        runner._model_forward = self._guarded_forward
        runner.execute_model = self._guarded_execute
        runner._sample = self._guarded_sample

    # -- the seams -----------------------------------------------------------------------------------------------------

    def _guarded_execute(self, scheduler_output: Any, intermediate_tensors: Any = None) -> Any:
        for request_id in scheduler_output.finished_req_ids:
            self._seats.pop(request_id, None)
        self._live = True  # dummy and profile runs call the forward too, without a batch
        try:
            output = self._execute_model(scheduler_output, intermediate_tensors)
        finally:
            self._live = False
        pending = self._runner.execute_model_state
        wanted = self._writes and pending is not None and pending.logits is not None and bool((self._slot >= 0).any())
        # Before grammar masks and sampling options: the model's own distribution, as vLLM's raw logprobs.
        self._log_probabilities = pending.logits.float().log_softmax(-1) if wanted else None
        return output

    def _guarded_forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self._live:
            return self._model_forward(*args, **kwargs)
        rows = self._before_forward()
        hidden = self._model_forward(*args, **kwargs)
        self._after_forward(rows, hidden)
        return hidden

    def _guarded_sample(self, logits: Any, spec_decode_metadata: Any) -> Any:
        output = self._sample(logits, spec_decode_metadata)
        logp, self._log_probabilities = self._log_probabilities, None
        if logp is not None:
            runner, count = self._runner, len(self._batch)
            last = runner.query_start_loc.np[1 : count + 1] - runner.query_start_loc.np[:count]
            drawn_at = runner.input_batch.num_computed_tokens_cpu[:count] + last
            keep = np.flatnonzero(
                (self._slot >= 0)
                & ~runner.discard_request_mask.np[:count].astype(bool)
                & (drawn_at < self._ring.positions)
            )
            self._write_draws(keep, drawn_at[keep], logp[keep], output.sampled_token_ids[keep, 0])
        return output

    # -- one step ------------------------------------------------------------------------------------------------------

    def _before_forward(self) -> int:
        runner, taps = self._runner, self._taps
        batch = runner.input_batch
        if batch.req_ids != self._batch:
            self._batch = list(batch.req_ids)
            seats = [self._seat(request_id) for request_id in self._batch]
            self._slot = np.array([s.slot for s in seats], np.int64)
            self._generation = np.array([s.generation for s in seats], np.uint32)
            self._damp = np.array([s.damp for s in seats], np.float32)
            lengths = batch.num_prompt_tokens[: len(seats)]
            own = [int(n) - 1 if s.start is None else s.start for s, n in zip(seats, lengths, strict=True)]
            self._start = np.array(own, np.int64)
        bounds = runner.query_start_loc.np[: len(self._batch) + 1]
        rows = int(bounds[-1])
        damping = bool((self._damp != 1).any())
        if damping:
            taps.alpha[:rows] = torch.from_numpy(np.repeat(self._damp, np.diff(bounds)))
        elif taps.damping:
            taps.alpha.fill_(1)
        taps.damping = damping
        taps.score.zero_()
        return rows

    def _after_forward(self, rows: int, hidden: torch.Tensor) -> None:
        score = self._taps.score[:rows]
        if self._tp_size > 1:
            from vllm.distributed import tensor_model_parallel_all_reduce

            score = tensor_model_parallel_all_reduce(score)
        if not (self._slot >= 0).any():
            return
        runner, count = self._runner, len(self._batch)
        lengths = np.diff(runner.query_start_loc.np[: count + 1])
        of_row = np.repeat(np.arange(count), lengths)
        position = runner.input_batch.num_computed_tokens_cpu[of_row] + runner.query_pos.np[:rows]
        keep = (self._slot[of_row] >= 0) & (position >= self._start[of_row])
        if self._writes:
            chosen = of_row[keep]
            self._ring.write_activations(
                self._slot[chosen], self._generation[chosen], position[keep].astype(np.int64), score.cpu().numpy()[keep]
            )
        self._score_given_text(np.flatnonzero(keep), of_row, position, hidden)

    def _score_given_text(
        self, rows: NDArray[np.int64], of_row: NDArray[np.int64], position: NDArray[np.int64], hidden: torch.Tensor
    ) -> None:
        """Entropy and log-probability of the tokens of given text: each is known, and drawn one row before its own."""
        batch = self._runner.input_batch
        forced = np.array([self._seats[request_id].forced for request_id in self._batch])
        rows = rows[forced[of_row[rows]] & (position[rows] + 1 < batch.num_prompt_tokens[of_row[rows]])]
        for part in np.split(rows, range(_ROWS_OF_LOGITS, len(rows), _ROWS_OF_LOGITS)):
            if len(part) == 0:
                continue
            # Every rank takes part: compute_logits gathers the vocabulary over them.
            logits = self._runner.model.compute_logits(hidden[torch.from_numpy(part).to(hidden.device)])
            if self._writes and logits is not None:
                owner, next_position = of_row[part], position[part] + 1
                tokens = torch.from_numpy(batch.token_ids_cpu[owner, next_position].astype(np.int64))
                self._write_draws(owner, next_position, logits.float().log_softmax(-1), tokens)

    def _write_draws(
        self, owner: NDArray[np.int64], position: NDArray[np.int64], logp: torch.Tensor, tokens: torch.Tensor
    ) -> None:
        # 0 log 0 is 0 where the model rules a token out.
        entropy = -(logp.exp() * logp.clamp_min(torch.finfo(torch.float32).min)).sum(-1)
        chosen = logp.gather(1, tokens.to(logp.device, torch.int64)[:, None])[:, 0]
        self._ring.write_draws(
            self._slot[owner],
            self._generation[owner],
            position.astype(np.int64),
            entropy.cpu().numpy(),
            chosen.cpu().numpy(),
        )

    def _seat(self, request_id: str) -> Seat:
        found = self._seats.get(request_id)
        if found is None:
            params = self._runner.requests[request_id].sampling_params
            found = self._seats[request_id] = unpack(params.extra_args if params else None, request_id)
        return found
