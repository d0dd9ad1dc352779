"""The adapter for vLLM's V2 model runner (``v1/worker/gpu/model_runner.py``, 0.26 and 0.32), the default on CUDA.

Seams: a ``ModelState`` that vLLM asks the model for (``get_model_state_cls``) sees each request come and each batch
start; its ``custom_sampler`` wraps the sampler; ``sample_tokens`` hands out the step's output. Nothing here waits for
the device: what was measured travels to the host on the stream that carries the sampled ids, and enters the table when
vLLM, in its own thread, collects them. So asynchronous scheduling stays on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.model_executor.model_loader.utils import get_model_architecture
from vllm.v1.outputs import AsyncModelRunnerOutput
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from guard.errors import TapError, UnsupportedError
from guard.ipc.capture import EMPTY, unpack
from guard.ipc.score_table import ScoreTable
from guard.probe.signals import Source
from guard.worker.batch import BatchParams, Measured, Statistics, Step, StepCapture, measure_given
from guard.worker.buffers import NeuronSums, Taps


class GuardModelState(DefaultModelState):
    """vLLM's default model state; it also knows each request's capture, and marks the start of each step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        count = self.max_num_reqs
        self._captures = BatchParams.of([EMPTY] * count, [0] * count)
        self._prompts: dict[int, np.ndarray] = {}  # of given text only
        self.taps: Taps | None = None
        self.table: ScoreTable | None = None  # of the one rank that writes
        self.step: Step | None = None
        self.ready = np.empty(0, np.bool_)
        self.index = np.empty(0, np.intp)
        self.sampler: GuardSampler | None = None

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        """Called for new requests and for preempted ones that return."""
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        capture = unpack(params.extra_args if params else None, new_req_data.req_id)
        prompt = new_req_data.prompt_token_ids or ()
        self._captures.put(req_index, capture, len(prompt))
        self._prompts.pop(req_index, None)
        if capture.forced:
            self._prompts[req_index] = np.array(prompt, np.int64)

    def preprocess_state(self, input_batch: Any, *args: Any, **kwargs: Any) -> None:
        """Called for every real batch before its forward pass, never for dummy ones."""
        super().preprocess_state(input_batch, *args, **kwargs)
        if self.taps is None:
            raise TapError("the model runner started a step before the guard was bound to it")
        self.index = input_batch.idx_mapping_np
        computed = input_batch.num_computed_tokens_np.astype(np.int64)
        scheduled = input_batch.num_scheduled_tokens.astype(np.int64)
        self.step = Step(self._captures.take(self.index), computed, scheduled)
        self.ready = computed + scheduled >= input_batch.prefill_len_np
        self.taps.begin(self.step)

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any] | None:
        if super().custom_sampler(sampler) is not None:
            raise UnsupportedError("this model brings its own sampler, which the guard has no parity test for yet")
        self.sampler = GuardSampler(sampler, self)
        return self.sampler, None

    def given_tokens(self, owner: np.ndarray, position: np.ndarray) -> np.ndarray:
        """The given tokens at ``position`` of the batch's requests ``owner``: int64 [rows]."""
        tokens = np.empty(len(owner), np.int64)
        for one in np.unique(owner):
            mine = owner == one
            tokens[mine] = self._prompts[int(self.index[one])][position[mine]]
        return tokens


class GuardSampler:
    """vLLM's sampler; it also measures the distribution that each token was drawn from."""

    def __init__(self, sampler: Any, state: GuardModelState) -> None:
        self._sampler, self._state = sampler, state
        self._raw: Statistics | None = None
        self.measured: Measured | None = None

    def _wanted(self, logits: torch.Tensor) -> Statistics | None:
        """Those of ``logits`` that this step and the table have a place for; None where they have none."""
        table, step = self._state.table, self._state.step
        if table is None or step is None or not step.drawn:
            return None
        return Statistics.of(logits, table.measured)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def keep_raw(self, logits: torch.Tensor) -> None:
        """Measure ``logits`` before a grammar masks them in place."""
        self._raw = self._wanted(logits)

    def __call__(self, logits: torch.Tensor, input_batch: Any) -> Any:
        raw, self._raw, self.measured = self._raw, None, None
        if raw is None:
            raw = self._wanted(logits)
        output = self._sampler(logits, input_batch)
        if raw is not None:
            # A drawn token was never masked, so its logit is still the model's own.
            self.measured = raw.signals(logits, output.sampled_token_ids[:, 0])
        return output


class GuardOutput(AsyncModelRunnerOutput):
    """vLLM's output of a step, and what was measured in it, both on their way to the host."""

    def __init__(
        self, output: AsyncModelRunnerOutput, step_capture: StepCapture, table: ScoreTable, runner: Any
    ) -> None:
        self._output, self._table = output, table
        self._device = step_capture  # the tensors must outlive their copies
        self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        stream = runner.output_copy_stream
        stream.wait_stream(runner.main_stream)
        with torch.cuda.stream(stream):
            self._host = step_capture.to_host()
            self._copied.record(stream)

    def get_output(self) -> Any:
        """Waits for both. The table is written before the output leaves, so who has the output finds its scores."""
        output = self._output.get_output()
        self._copied.synchronize()
        self._host.deposit(self._table)
        return output


class AdapterV2:
    """Binds one runner, its taps and the table, which only the one rank that reports has."""

    def __init__(self, runner: Any, taps: Taps, table: ScoreTable | None) -> None:
        state = runner.model_state
        if not isinstance(state, GuardModelState) or state.sampler is None or runner.sampler is not state.sampler:
            raise TapError("vLLM's V2 model runner did not take the guard's model state and sampler")
        if getattr(runner, "batch_sharder", None) is not None or getattr(runner, "pcp_manager", None) is not None:
            raise UnsupportedError("sampling or prefill sharded over ranks is not supported: rows would be misplaced")
        self._runner, self._taps, self._table = runner, taps, table
        self.neurons = NeuronSums(taps)
        self._state, self._sampler = state, state.sampler
        state.taps, state.table = taps, table
        self._sample_tokens = runner.sample_tokens
        runner.sample_tokens = self._guarded_sample_tokens
        grammar = runner.structured_outputs_worker
        if grammar is not None:
            self._mask = grammar.apply_grammar_bitmask
            grammar.apply_grammar_bitmask = self._guarded_mask

    @staticmethod
    def prepare(vllm_config: Any) -> None:
        """Before the model is loaded: have vLLM ask its class for a ModelState, and get ours.

        Raises UnsupportedError where vLLM would choose another than the default one, which has no parity test.
        """
        config = vllm_config.model_config
        model_class, name = get_model_architecture(config)
        special = config.is_hybrid or config.is_encoder_decoder or config.is_attention_free
        if special or getattr(model_class, "get_model_state_cls", _ours) is not _ours:
            raise UnsupportedError(f"{name} keeps model state of its own kind, which has no parity test yet")
        model_class.get_model_state_cls = _ours

    def _guarded_mask(self, logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self._sampler.keep_raw(logits)
        return self._mask(logits, *args, **kwargs)

    @torch.inference_mode()
    def _guarded_sample_tokens(self, grammar_output: Any) -> Any:
        pending, step = self._runner.execute_model_state, self._state.step
        if pending is None or step is None:  # nothing was executed, or a dummy batch
            return self._sample_tokens(grammar_output)
        wanted = self._taps.scores and (self._taps.ranks > 1 or step.recorded)
        step_capture = self._capture_of_step(step, pending.hidden_states) if wanted else None
        output = self._sample_tokens(grammar_output)
        self._state.step = None
        if step_capture is None or self._table is None or not step.recorded:
            return output
        if self._sampler.measured is not None:
            rows = step.draws(self._state.ready, self._table.positions)
            step_capture.measured.append((Source.DRAW, rows, self._sampler.measured))
        return GuardOutput(output, step_capture, self._table, self._runner)

    def _capture_of_step(self, step: Step, hidden: torch.Tensor) -> StepCapture:
        rows = step.activations()
        step_capture = StepCapture(step.captured, [(Source.FORWARD, rows, self._taps.signals(step.rows))])
        given = step.given(rows)
        if step.captured.any_apart:
            self.neurons.add(step.captured, rows)
        if len(given):
            tokens = self._state.given_tokens(given.owner, given.position + 1)
            compute_logits = self._runner.model.compute_logits
            vocabulary = self._runner.vocab_size
            step_capture.measured += measure_given(given, hidden, compute_logits, tokens, vocabulary, self._table)
        return step_capture


def _ours(model: Any) -> type[DefaultModelState]:
    return GuardModelState
