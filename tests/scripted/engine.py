"""A scripted stand-in for vLLM's engine process. Everything before it is real: AsyncLLM, GuardedEngine, the table.

It takes the place of ``AsyncMPClient``, and does to the table what a guarded worker does. Written against vLLM 0.32
(``v1/engine/core_client.py``, ``v1/engine/core.py``).
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.engine import (
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import LogprobsLists, LogprobsTensors
from vllm.v1.request import Request
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from guard.ipc import capture
from guard.ipc.score_table import PATH_VARIABLE, ScoreTable
from guard.ipc.taps import TapConfig
from guard.probe.bundle import load_bundle
from guard.probe.signals import DISTANCE, ENTROPY, LOGPROB, NEURONS, Source
from tests.scripted.script import Asked, Choose, Levels, Script, Signal, by_words

# Between two steps the loop goes round often enough for the output to reach the client: vLLM merges what waits.
ROUNDS = 32


@contextmanager
def scripted_engine(choose: Choose | None = None) -> Iterator[list[ScriptedCore]]:
    """Engines that are started inside are scripted; they are listed in what this yields."""
    made: list[ScriptedCore] = []

    def make(vllm_config: VllmConfig, executor_class: Any, log_stats: bool, **_: Any) -> ScriptedCore:
        made.append(ScriptedCore(vllm_config, log_stats, choose or by_words()))
        return made[-1]

    with patch.object(EngineCoreClient, "make_async_mp_client", make):
        yield made


@dataclass
class Part:
    """One request in the engine, and the role that it plays."""

    request: Request
    script: Script
    answer: list[int]
    captured: capture.CaptureParams
    choice: int
    self_test: bool

    @property
    def lead(self) -> int:
        """The position of the last prompt token, in given text of the one before the answer."""
        return self.request.num_prompt_tokens - 1 if self.captured.start is None else self.captured.start

    def due(self, step: int | None, now: int) -> bool:
        """Whether a fault of ``step`` happens now; given text has one step for all."""
        return step is not None and (step == now or self.captured.forced)

    def token(self, step: int) -> int:
        """What is drawn: the answer, then the end of the sequence; the answer again where it may not end."""
        params = self.request.sampling_params
        assert params is not None
        if step >= len(self.answer) and params.eos_token_id is not None and step >= params.min_tokens:
            return int(params.eos_token_id)
        return self.answer[step % len(self.answer)]


class ScriptedCore(EngineCoreClient):
    """The engine as AsyncLLM knows it. One task for each request; outputs go the way that they go from a process.

    seen: the requests, as vLLM named them. aborted: those that the client gave up. drawn: how many tokens.
    """

    def __init__(self, vllm_config: VllmConfig, log_stats: bool, choose: Choose) -> None:
        self.engine_ranks_managed = [0]
        self.resources = SimpleNamespace(engine_dead=False)
        self.seen: list[str] = []
        self.aborted: list[str] = []
        self.drawn = 0
        self._config, self._log_stats, self._choose = vllm_config, log_stats, choose
        self._tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._closing = self._closed = False
        taps = TapConfig.find(vllm_config.additional_config)
        assert taps is not None, "only guarded engines are scripted"
        self._layers, self._width = len(taps.layers), taps.width
        self._apart: dict[tuple[int, int], list[float]] = {}  # by slot and generation: the scores of its positions
        bundle = load_bundle(Path(taps.bundle))
        self._levels, self._reference = Levels(bundle.readout), bundle.reference
        self._counted: tuple[str | None, int | None] = (None, None)  # the signal and the layer that count alone
        self._table = ScoreTable(Path(os.environ[PATH_VARIABLE]))
        vllm_config.cache_config.num_gpu_blocks = 256
        self._loop = asyncio.get_running_loop()
        self._sent: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._arrived: asyncio.Queue[EngineCoreOutputs | Exception] = asyncio.Queue()
        self._socket = self._loop.create_task(self._receive())

    # -- what AsyncLLM calls -------------------------------------------------------------------------------------------

    async def get_output_async(self) -> EngineCoreOutputs:
        output = await self._arrived.get()
        if isinstance(output, Exception):
            raise EngineDeadError(suppress_context=True) if self.resources.engine_dead else output
        return output

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        if self.resources.engine_dead:
            raise EngineDeadError
        sent = MsgpackDecoder(EngineCoreRequest).decode(MsgpackEncoder().encode(request))
        self.seen.append(sent.request_id)
        if self._closing:
            self._send(EngineCoreOutput(sent.request_id, [], finish_reason=FinishReason.ABORT))
            return
        part = self._cast(sent)
        if part.script.rejected:
            raise RuntimeError("rejected, as the script says")
        self._running[sent.request_id] = self._loop.create_task(self._play(part))

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            if (task := self._running.pop(request_id, None)) is not None:
                task.cancel()
                self.aborted.append(request_id)

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def collective_rpc_async(self, method: str, *rest: Any) -> list[Any]:
        if method == "hguard_count":
            (_, self._counted, *_) = rest
            return [None]
        if method == "hguard_exchange":
            return [None]
        if method == "hguard_apart":
            (_, claimed, *_) = rest
            scores = self._apart.pop(claimed, [])
            sums = np.zeros((self._layers, self._width))
            sums[0, 0] = sum(scores)  # all of it is one neuron's
            return [(len(scores), sums.tolist())]
        if method != "hguard_report":
            raise NotImplementedError(method)
        return [{"tapped": self._layers, "expected": self._layers, "runner": "scripted", "probe": "scripted"}]

    async def reset_mm_cache_async(self) -> None:
        pass

    async def reset_encoder_cache_async(self) -> None:
        pass

    async def reset_prefix_cache_async(self, *_: bool) -> bool:
        return not self._running

    async def is_sleeping_async(self) -> bool:
        return False

    def dp_engines_running(self) -> bool:
        return bool(self._running)

    def shutdown(self, timeout: float | None = None) -> None:
        """Of another thread than the loop's: wait for requests in flight, so long; then end as a process does."""
        if self._closed:
            return
        self._closed = self._closing = True
        if asyncio._get_running_loop() is not self._loop:
            deadline = time.monotonic() + (timeout or 0)
            while self._running and time.monotonic() < deadline:
                time.sleep(0.01)
        self.resources.engine_dead = True
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end)

    # -- the engine ----------------------------------------------------------------------------------------------------

    def die(self) -> None:
        """Be killed, in the middle of whatever it does."""
        self.resources.engine_dead = True
        self._arrived.put_nowait(EngineDeadError())
        self._stop()

    def _end(self) -> None:
        self._socket.cancel()
        self._stop()

    def _stop(self) -> None:
        for task in self._running.values():
            task.cancel()
        self._running.clear()

    async def _receive(self) -> None:
        """As ``AsyncMPClient`` hands on what its socket receives."""
        try:
            while True:
                self._arrived.put_nowait(await self._sent.get())
        except asyncio.CancelledError:
            self._arrived.put_nowait(EngineDeadError())

    def _cast(self, sent: EngineCoreRequest) -> Part:
        """Give a request its part."""
        request = Request.from_engine_core_request(sent, None)
        params = request.sampling_params
        assert params is not None
        taken = capture.unpack(params.extra_args, sent.request_id)
        child = re.match(r"(\d+)_", sent.request_id)  # vLLM names the n sequences of a request so
        choice = int(child[1]) if child else 0
        asked = str(self._tokenizer.decode(sent.prompt_token_ids)).rpartition("<|user|>")[2]
        named = sent.external_req_id or sent.request_id
        script = Script()
        self_test = named.startswith(capture.SELF_TEST)
        if not self_test:
            script = self._choose(Asked(asked, named, choice, taken.scale, taken.forced))
        answer = script.tokens(lambda text: list(self._tokenizer.encode(text, add_special_tokens=False)))
        assert request.prefill_stats is not None
        request.prefill_stats.set(request.num_prompt_tokens, 0, 0)
        request.record_event(EngineCoreEventType.QUEUED)
        return Part(request, script, answer, taken, choice, self_test)

    async def _play(self, part: Part) -> None:
        request, script = part.request, part.script
        name = request.request_id
        request.record_event(EngineCoreEventType.SCHEDULED)
        for step in count():
            for _ in range(ROUNDS):
                await asyncio.sleep(0)
            if script.seconds:
                await asyncio.sleep(script.seconds)
            if part.due(script.hangs_at, step):
                await asyncio.Event().wait()
            if part.due(script.dies_at, step):
                self.die()
                return
            if part.due(script.fails_at, step):
                del self._running[name]
                self._send(EngineCoreOutput(name, [], finish_reason=FinishReason.ERROR))
                return
            self._measure(part, step)
            token = part.token(step)
            request.append_output_token_ids(token)
            self.drawn += 1
            stopped = check_stop(request, self._config.model_config.max_model_len)
            if stopped:
                del self._running[name]
            output = EngineCoreOutput(
                name,
                [token],
                finish_reason=request.get_finished_reason(),
                stop_reason=request.stop_reason,
                events=request.take_events(),
                prefill_stats=request.take_prefill_stats(),
            )
            self._report(part, output, step)
            self._send(output)
            if stopped:
                return

    def _measure(self, part: Part, step: int) -> None:
        """What the worker leaves in the table: a score for each position of this step, and the draw that follows it."""
        taken, prompt = part.captured, part.request.num_prompt_tokens
        if taken.slot < 0:
            return
        key = np.array([taken.slot]), np.array([taken.generation], np.uint32)
        fed = range(part.lead, prompt) if step == 0 else [prompt - 1 + step]
        for position in fed:
            own = position - part.lead - 1  # the token at this position; -1 for the last of the prompt
            if own < 0 or own != part.script.missing_at:
                value = np.nan if own >= 0 and own == part.script.nan_at else self._neurons(part, own)
                if taken.apart:
                    self._apart.setdefault((taken.slot, taken.generation), []).append(value)
                measured = {NEURONS: value, DISTANCE: self._distance(part, own)}
                forward = {name: np.array([one], np.float32) for name, one in measured.items()}
                self._table.write(Source.FORWARD, *key, np.array([position]), forward)
            if taken.draws and position + 1 < self._table.positions:
                drawn = self._signal(part, own + 1)
                drawn_as = {ENTROPY: drawn.entropy, LOGPROB: drawn.logprob}
                values = {name: np.array([value], np.float32) for name, value in drawn_as.items()}
                self._table.write(Source.DRAW, *key, np.array([position + 1]), values)

    def _neurons(self, part: Part, own: int) -> float:
        """To the self_test, what a reference says."""
        if self._reference is None or not part.self_test:
            return self._signal(part, own).neurons
        signal, layer = self._counted
        scores = self._reference.scores
        chosen = [scores[layer]] if signal == NEURONS and layer is not None else scores.values()
        return sum(one[own + 1] for one in chosen) * part.captured.scale

    def _distance(self, part: Part, own: int) -> float:
        told = None if self._reference is None or not part.self_test else self._reference.heads.get(DISTANCE)
        return part.script.distance if told is None else sum(one[own + 1] for one in told.values())

    def _signal(self, part: Part, token: int) -> Signal:
        return self._levels.at(part.script.risky(token, part.choice), part.captured.scale)

    def _report(self, part: Part, output: EngineCoreOutput, step: int) -> None:
        """Log-probabilities, where the request wants them."""
        params, prompt = part.request.sampling_params, part.request.prompt_token_ids
        assert params is not None
        assert prompt is not None
        if params.num_logprobs is not None:
            logprob = self._signal(part, step).logprob
            output.new_logprobs = LogprobsLists(*self._ranked(output.new_token_ids, logprob, params.num_logprobs))
        if params.prompt_logprobs is not None and step == 0:
            low = self._levels.low.logprob
            ranked = self._ranked(prompt[1:], low, params.prompt_logprobs)
            output.new_prompt_logprobs_tensors = LogprobsTensors(*map(torch.from_numpy, ranked))

    def _ranked(self, tokens: list[int], logprob: float, others: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids and log-probabilities [tokens, 1 + others], and the ranks [tokens] of the tokens themselves."""
        vocabulary = self._config.model_config.get_vocab_size()
        column = np.arange(1 + (vocabulary - 1 if others < 0 else others))
        ids = (np.array(tokens, np.int64)[:, None] + column) % vocabulary
        values = np.broadcast_to(np.where(column == 0, logprob, -5.0 - column), ids.shape)
        return ids, values.astype(np.float32), np.ones(len(tokens), np.int64)

    def _send(self, output: EngineCoreOutput) -> None:
        stats = SchedulerStats(num_running_reqs=len(self._running)) if self._log_stats else None
        self._sent.put_nowait(EngineCoreOutputs(outputs=[output], scheduler_stats=stats))
