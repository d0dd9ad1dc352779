"""An engine without a model, for measuring the API process alone: vLLM's scheduler, its engine process and its sockets
are real, a step takes a fixed time, and tokens, log-probabilities and scores are made up.

``vllm serve`` and ``hguard serve`` take it alike, by ``--distributed-executor-backend`` (vLLM 0.26 and 0.32,
``v1/executor/abstract.py``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.executor import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.worker.worker_base import CompilationTimes

from guard.bench.models.synthetic import STEP_VARIABLE
from guard.ipc import capture
from guard.ipc.score_table import PATH_VARIABLE, ScoreTable
from guard.ipc.taps import TapConfig
from guard.probe.bundle import Bundle, load_bundle
from guard.probe.signals import COLUMN, NEURONS, SIGNALS, Source

_TEXT = " the river of many old stones under a light that was seen by all who came there in those days"
_CACHE_BYTES = 1 << 30
_LOGPROB = -0.1


@dataclass(slots=True)
class Sequence:
    """One sequence in the engine. computed: how many of its tokens have gone through the model. drawn: how many tokens
    it was given."""

    prompt: int
    computed: int
    captured: capture.CaptureParams
    self_test: bool
    logprobs: int | None
    drawn: int = 0


class ModellessExecutor(Executor):
    """Stands where workers would be. In a guarded engine it leaves in the score table what the taps would."""

    def _init_executor(self) -> None:
        self._base, self._each = (1e-6 * float(part) for part in os.environ[STEP_VARIABLE].split(","))
        self._sequences: dict[str, Sequence] = {}
        tokenizer = cached_tokenizer_from_config(self.model_config)
        self._text: list[int] = tokenizer.encode(_TEXT, add_special_tokens=False)
        taps = TapConfig.find(self.vllm_config.additional_config)
        self._guarded = None if taps is None else _Guarded(load_bundle(Path(taps.bundle)), len(taps.layers))

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> Any:
        """What vLLM asks of workers. Raises NotImplementedError for what it does not ask while it serves text."""
        result = [self._answer(str(method), args)]
        return _done(result) if non_block else result

    def _answer(self, method: str, args: tuple[Any, ...]) -> Any:
        match method:
            case "get_supported_tasks":
                return ("generate",)
            case "determine_available_memory":
                return _CACHE_BYTES
            case "get_supported_kv_cache_layouts":
                return ["LBNHC"]
            case "get_kv_cache_spec":
                cache = self.cache_config
                spec = FullAttentionSpec(
                    block_size=cache.block_size, num_kv_heads=1, head_size=1, dtype=self.model_config.dtype
                )
                return {"model.layers.0.self_attn.attn": spec}
            case "compile_or_warm_up_model":
                return CompilationTimes(0.0, 0.0)
            case "set_kv_cache_layout":
                self.cache_config.kv_cache_layout = args[0]
                return None
            case "initialize_from_config" | "shutdown" | "reset_mm_cache" | "reset_encoder_cache":
                return None
            case "supports_draft_weight_updates":
                return False
        if self._guarded is not None and method.startswith("hguard_"):
            return self._guarded.answer(method, args)
        raise NotImplementedError(f"an engine without a model has no {method}")

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:
        """One step: each sequence whose prompt is through gets a token."""
        output = self._step(scheduler_output)
        return _done(output) if non_block else output

    def check_health(self) -> None:
        """It has nothing that could fail."""

    def _step(self, scheduled: SchedulerOutput) -> ModelRunnerOutput:
        began = time.perf_counter()
        for name in scheduled.finished_req_ids:
            self._sequences.pop(name, None)
        for new in scheduled.scheduled_new_reqs:
            self._sequences[new.req_id] = _sequence(new)
        names = list(scheduled.num_scheduled_tokens)
        sampled: list[list[int]] = []
        rows: list[tuple[Sequence, int, int]] = []  # with the positions that go through the model now
        for name in names:
            sequence = self._sequences[name]
            first = sequence.computed
            sequence.computed += scheduled.num_scheduled_tokens[name]
            rows.append((sequence, first, sequence.computed))
            if sequence.computed < sequence.prompt + sequence.drawn:
                sampled.append([])
                continue
            sampled.append([self._text[sequence.drawn % len(self._text)]])
            sequence.drawn += 1
        if self._guarded is not None:
            self._guarded.write(rows)
        output = ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled)
        output.logprobs = self._logprobs(names, sampled)
        rest = self._base + self._each * len(names) - (time.perf_counter() - began)
        if names and rest > 0:
            time.sleep(rest)
        return output

    def _logprobs(self, names: list[str], sampled: list[list[int]]) -> LogprobsLists | None:
        """vLLM gives each row as many as the one that wants most."""
        wanted = [self._sequences[name].logprobs for name in names]
        most = max((count for count in wanted if count is not None), default=None)
        if most is None:
            return None
        drawn = [tokens[0] for tokens in sampled if tokens]
        ids = np.tile(np.array(self._text[: most + 1], np.int32), (len(drawn), 1))
        ids[:, 0] = drawn
        values = np.full(ids.shape, _LOGPROB, np.float32)
        values[:, 1:] -= np.arange(1, most + 1, dtype=np.float32)
        counts = np.cumsum([0, *(len(tokens) for tokens in sampled)])
        return LogprobsLists(ids, values, np.ones(len(drawn), np.int32), counts.tolist())


class _Guarded:
    """What a guarded worker does beside."""

    def __init__(self, bundle: Bundle, layers: int) -> None:
        self._table = ScoreTable(Path(os.environ[PATH_VARIABLE]))
        self._layers = layers
        reference = bundle.reference
        self._scores = {} if reference is None else {NEURONS: reference.scores, **reference.heads}
        self._counted: tuple[str | None, int | None] = (None, None)
        # A usual token: each signal at its mean over the calibration's windows.
        stack = bundle.readout.answer
        self._usual = {
            signal.name: np.float32(signal.sign * stack.mean[COLUMN[signal.name]])
            for signal in SIGNALS
            if signal.name in self._table.measured
        }

    def answer(self, method: str, args: tuple[Any, ...]) -> Any:
        if method == "hguard_count":
            self._counted = args[0], args[1]
            return None
        if method == "hguard_report":
            return {"tapped": self._layers, "expected": self._layers, "runner": "none", "probe": "modelless"}
        raise NotImplementedError(f"an engine without a model has no {method}")

    def write(self, rows: list[tuple[Sequence, int, int]]) -> None:
        """Scores of the positions that went through, and measurements of the tokens that were drawn behind them."""
        forward: list[tuple[int, int, int]] = []
        draws: list[tuple[int, int, int]] = []
        for sequence, first, last in rows:
            taken = sequence.captured
            if taken.slot < 0:
                continue
            start = sequence.prompt - 1 if taken.start is None else taken.start
            if sequence.self_test:
                self._write_reference(taken, max(first, start), last, start)
                continue
            for position in range(max(first, start), last):
                forward.append((taken.slot, taken.generation, position))
                if taken.draws and position + 1 < self._table.positions:
                    draws.append((taken.slot, taken.generation, position + 1))
        self._put(Source.FORWARD, forward)
        self._put(Source.DRAW, draws)

    def _put(self, source: Source, where: list[tuple[int, int, int]]) -> None:
        if where:
            keys = np.array(where, np.int64)
            values = {name: np.full(len(keys), value) for name, value in self._usual.items()}
            self._table.write(source, keys[:, 0], keys[:, 1].astype(np.uint32), keys[:, 2], values)

    def _write_reference(self, taken: capture.CaptureParams, first: int, last: int, start: int) -> None:
        """To the self-test, what the bundle's reference says of its prompt, or something that reacts to scaling."""
        where = np.arange(first, last)
        key = np.full(len(where), taken.slot), np.full(len(where), taken.generation, np.uint32)
        values = {name: np.full(len(where), value) for name, value in self._usual.items()}
        values[NEURONS] = np.full(len(where), np.float32(taken.scale))
        signal, layer = self._counted
        for name, layers in self._scores.items():
            counted = [layers[layer]] if signal == name and layer is not None else list(layers.values())
            values[name] = _summed(counted, where - start) * np.float32(taken.scale)
        self._table.write(Source.FORWARD, *key, where, values)
        self._table.write(Source.DRAW, *key, where + 1, values)


def _summed(layers: list[list[float]], where: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.array(layers, np.float32)[:, where].sum(0)


def _sequence(new: NewRequestData) -> Sequence:
    params = new.sampling_params
    assert params is not None
    assert new.prompt_token_ids is not None
    return Sequence(
        len(new.prompt_token_ids),
        new.num_computed_tokens,
        capture.unpack(params.extra_args, new.req_id),
        new.req_id.startswith(capture.SELF_TEST),
        params.num_logprobs,
    )


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future
