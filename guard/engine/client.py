"""GuardedEngine: the engine client that the API talks to.

It stands where vLLM's own ``AsyncLLM`` stood: what is not defined here is delegated, so tools, templates, logprobs,
streaming and n stay vLLM's. ``generate`` claims score slots, tells the worker, lets an ``OutputGate`` decide on outputs
as they arrive, and frees the slots whatever happens; a ``StepWatch`` ends what is withheld midway. Written against vLLM
0.32 (``v1/engine/async_llm.py``; the same in 0.26).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError

from guard import declines
from guard.compat import refused_for_load
from guard.engine.answer import Answer, unscored, verdict_on
from guard.engine.context import RequestContext, Unscored, Verdict, current_context, use_context
from guard.engine.gate import OutputGate
from guard.engine.outputs import with_completions
from guard.engine.prompt.reading import GivenText
from guard.engine.prompt.salts import Salts
from guard.engine.prompt.turn import Reasoning, Turns
from guard.engine.stages import STAGES, GenerateCall, tell_apart
from guard.engine.traffic import OwnRequests, Purpose, Traffic
from guard.engine.validation import require_no_bias, require_sendable, require_valid
from guard.engine.watch import StepWatch
from guard.errors import CapacityError
from guard.ipc import capture
from guard.ipc.score_table import ScoreTable, Slot, SlotPool
from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle
from guard.probe.readout import Readout
from guard.probe.signals import TokenSignals

log = logging.getLogger("hguard")
# Given text is scored or refused: there is no answer that could pass unscored.
_CLOSED = Policy(Mode.ABSTAIN, 1.0)
_OPEN = Policy(Mode.SCORE, 1.0)  # what is left out where there is no room
_NAME = 64  # characters of a caller's id


class GuardedEngine:
    """Wraps an AsyncLLM; give it to vLLM's ``init_app_state`` in its place."""

    def __init__(
        self,
        engine: Any,
        bundle: Bundle,
        table: ScoreTable,
        default: Policy,
        longest: int | None = None,
        template: str | None = None,
    ) -> None:
        """``longest``: no answer gets more tokens, whatever its request says or leaves unsaid. ``template``: the chat
        template, where it is not the tokenizer's own."""
        self._engine = engine
        self.bundle = bundle
        self.readout = bundle.readout
        self.table = table
        self.pool = SlotPool(table.slots)
        self.own = OwnRequests()
        self.default_policy = default
        self._longest = longest
        self.traffic = Traffic(lambda: self.bundle)
        self._started = itertools.count()
        self.salts = Salts(bundle.card.tensors_sha256)
        self._given_text = GivenText(engine, table, self.salts, self.own)
        self._watch = StepWatch(table)
        self._watch.attach(engine.output_processor)
        bare = engine.model_config.skip_tokenizer_init
        self.placeholder = 0 if bare else int(engine.get_tokenizer().eos_token_id or 0)
        self._ends = _ends_of(engine.model_config)
        self._turns = Turns() if bare else Turns.of(engine.get_tokenizer(), template, self._ends | {self.placeholder})
        self._reasoning = None if bare else Reasoning.of(engine)
        self._decode: Callable[[list[int]], str] | None = None if bare else engine.get_tokenizer().decode
        declines.declines("")  # makes its list, so that no answer waits for that

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def adopt(self, bundle: Bundle, default: Policy) -> None:
        """Go on with another calibration of the neurons that are tapped; requests that name theirs keep it."""
        assert bundle.reads_as(self.bundle)
        self.bundle, self.readout, self.default_policy = bundle, bundle.readout, default

    def readout_of(self, call: RequestContext) -> Readout:
        """What makes risks of the signals of a request's answers."""
        return self.readout if call.bundle is None else call.bundle.readout

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """vLLM asks before it starts a response, while a refusal can still be one."""
        policy = self._policy()
        if policy.mode is not Mode.OFF:
            self.pool.release(self._claim(n, policy), finished=True)
        self._engine.check_admission(n, request_id)

    def _policy(self) -> Policy:
        call = current_context()
        return self.default_policy if call is None else call.policy

    def _claim(self, count: int, policy: Policy) -> list[Slot]:
        """Claim slots. When none are free: nothing where the policy fails open, else vLLM's own refusal for load, which
        its routes pass on."""
        try:
            return self.pool.claim(count)
        except CapacityError as error:
            if not policy.fails_closed:
                return []
            raise refused_for_load(str(error)) from None

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """As ``AsyncLLM.generate``, guarded by the current call's policy (or the operator's default).

        A plain function: choice indices are reserved when it is called, not when its stream is first read.
        """
        require_sendable(sampling_params, kwargs)
        call = current_context() or RequestContext(self.default_policy)
        if not call.policy.token_bias:
            require_no_bias(sampling_params)
        params = require_valid(sampling_params, self._engine)
        first = call.reserve(params.n)
        stream = self._guarded(GenerateCall(call, first, prompt, params, request_id, kwargs))
        call.streams.append(stream)
        return stream

    async def _guarded(self, request: GenerateCall) -> AsyncGenerator[Any, None]:
        async with self.traffic.begun(request.call.bundle):
            call, first, params = request.call, request.first, request.params
            policy = call.policy
            for stage in STAGES:
                if (refusal := await stage.before(request, self)) is not None:
                    yield refusal
                    return
            whole: dict[int, Any] = {}  # completions of all tries, where one output has them
            output = None
            choices = list(range(params.n))
            tries = [policy.scale, *(scale for stage in STAGES if (scale := stage.again(policy)) is not None)]
            gathers = params.output_kind is RequestOutputKind.FINAL_ONLY and len(tries) > 1
            for number, scale in enumerate(tries):
                last = number == len(tries) - 1
                first_tries = {first + index: call.verdicts.pop(first + index) for index in choices if number}
                for choice in first_tries:
                    call.token_risks.pop(choice, None)  # of tokens that nobody is to see
                # No await since the slots of the first try were given back: the second always finds as many.
                slots = self._claim(len(choices), policy) if policy.mode is not Mode.OFF else []
                gate = self._gate(request, [first + index for index in choices], slots, retry_follows=not last)
                async with self._begun(gate, request, slots, scale) as outputs:
                    async for given in outputs:
                        released = gate.feed(given)
                        for answer in gate.decided:
                            for stage in STAGES:
                                await stage.after(request, answer, scale, self)
                        if first_tries:
                            _remember(call, first_tries)
                        for output in released:
                            output.request_id = request.request_id
                            for completion in output.outputs if number else ():
                                completion.index = choices[completion.index]
                            if gathers:
                                whole.update((completion.index, completion) for completion in output.outputs)
                            else:
                                yield output
                        if gate.decided and gate.done and not given.finished:
                            break
                call.usage_adjustment.update(gate.retryable_tokens)
                choices = [choices[answer.sequence] for answer in gate.retryable]
                if not choices:
                    break
            if gathers:
                yield with_completions(output, [whole[index] for index in sorted(whole)], True)

    def _gate(
        self, request: GenerateCall, choices: Sequence[int], slots: Sequence[Slot], retry_follows: bool
    ) -> OutputGate:
        call, params = request.call, request.params
        reason = Unscored.OFF if call.policy.mode is Mode.OFF else Unscored.NO_SLOT
        decode = self._decode if call.policy.declines_pass else None
        answers = [
            Answer(choice, slots[i] if slots else None, i, reason, decode=decode) for i, choice in enumerate(choices)
        ]
        return OutputGate(
            answers,
            call,
            self.table,
            self.readout_of(call),
            params.output_kind,
            self.placeholder,
            retry_follows,
            self._reasoning_of(call),
            request.kwargs,
            self._bound(params),
            self._ends,
            params,
        )

    def _reasoning_of(self, call: RequestContext) -> Reasoning | None:
        return None if call.as_one else self._reasoning

    def _bound(self, params: SamplingParams) -> int | None:
        """How many tokens an answer may have."""
        bounds = [bound for bound in (params.max_tokens, self._longest) if bound is not None]
        return min(bounds, default=None)

    @asynccontextmanager
    async def _begun(
        self, gate: OutputGate, request: GenerateCall, slots: list[Slot], scale: float
    ) -> AsyncIterator[AsyncGenerator[Any, None]]:
        """One engine request for the answers of ``gate``: vLLM's outputs. At the end nothing of it is left."""
        call, prompt, request_id = request.call, request.prompt, request.request_id
        name = self._name(request_id)
        try:
            params = request.params.clone()
            params.n = len(gate.answers)
            start = self._given(gate, request) if slots else None
            draws = self.readout_of(call).uses_draws
            if start is not None and not call.unshown:
                await self._given_text.read(prompt, start, slots, scale, self._name(request_id), Purpose.TURN, draws)
            params.max_tokens = self._bound(params)
            params.extra_args = {
                **(params.extra_args or {}),
                capture.KEY: capture.pack(slots, scale, draws=draws),
            }
            inner = self._engine.generate(self.salts.salted(prompt, scale), params, name, **request.kwargs)
            with self._watch.following(name, gate) if gate.followed else nullcontext():
                try:
                    yield inner
                finally:
                    await inner.aclose()  # aborts the engine's work if it is not done
        finally:
            # Of an answer that was ended midway the worker may still write a step.
            self.pool.release(slots, finished=gate.done and not gate.ended_midway)

    def _given(self, gate: OutputGate, request: GenerateCall) -> int | None:
        """Have what the prompt holds of the assistant's turn scored with the answers: the first position to read.

        None where there is nothing of it. Of a turn that begins with thoughts what follows them counts.
        """
        prompt = request.prompt
        ids = prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else None
        if ids is None:
            return None
        start = self._turns.start(ids)
        if start < len(ids) and (reasoning := self._reasoning_of(request.call)) is not None:
            start = reasoning.answer_start(ids, start, request.kwargs)
        for answer in gate.answers:
            answer.given = len(ids) - start
        return start - 1 if 0 < start < len(ids) else None

    def _name(self, request_id: str) -> str:
        """A name of its own for an engine request: callers choose ids, and may choose one twice (``X-Request-Id``).

        It begins with theirs, for logs and traces; each step's outputs carry it, so not with more than a little of it.
        """
        return f"{request_id[:_NAME]}-{next(self._started)}"

    @asynccontextmanager
    async def beside(
        self, request: GenerateCall, parameters: Callable[[Slot], SamplingParams], purpose: Purpose
    ) -> AsyncIterator[tuple[Any, Slot] | None]:
        """See ``guard.engine.stages.Engine.beside``."""
        policy = request.call.policy
        slots = self._claim(1, policy)
        if not slots:
            yield None
            return
        done = False
        try:
            salted, name = self.salts.salted(request.prompt, policy.scale), self._name(request.request_id)
            inner = self._engine.generate(salted, parameters(slots[0]), name, **request.kwargs)
            try:
                async for output in inner:
                    done = output.finished
            finally:
                await inner.aclose()
            self.own.count(purpose, len(output.prompt_token_ids))
            yield output, slots[0]
        finally:
            self.pool.release(slots, done)

    async def apart(
        self, prompt: Mapping[str, Any], start: int, scale: float, request_id: str, bundle: Bundle
    ) -> NDArray[np.float64] | None:
        """See ``guard.engine.stages.Engine.apart``."""
        name = self._name(request_id)
        try:
            with self._own_slot(_OPEN) as slots:
                found = await self._given_text.apart(prompt, start, slots[0], scale, name, bundle) if slots else None
        except EngineDeadError:
            raise
        except Exception:  # whatever it is, the answer is there, and has its risk
            log.exception("the neurons of an answer were not told apart")
            return None
        return found if found is None or bundle.usual is None else found - bundle.usual

    @contextmanager
    def _own_slot(self, policy: Policy) -> Iterator[list[Slot]]:
        """A slot for a request of the guard's own; none where no slot is free and the policy fails open."""
        slots, done = self._claim(1, policy), False
        try:
            yield slots
            done = True
        finally:
            self.pool.release(slots, done)

    async def measure(
        self,
        prompt_ids: Sequence[int],
        response_ids: Sequence[int],
        scale: float,
        request_id: str,
        purpose: Purpose = Purpose.RISK,
        draws: bool | None = None,
    ) -> TokenSignals:
        """Measure given text: one forward pass over prompt and response, nothing is generated.

        ``draws``: whether the distributions behind the tokens are measured; None: where the current readout uses them.
        """
        draws = self.readout.uses_draws if draws is None else draws
        prompt = {"type": "token", "prompt_token_ids": [*prompt_ids, *response_ids]}
        with self._own_slot(_CLOSED) as slots:
            await self._given_text.read(
                prompt, len(prompt_ids) - 1, slots, scale, self._name(request_id), purpose, draws
            )
            answer = Answer(0, slots[0], prompt_length=len(prompt_ids), token_ids=list(response_ids))
            return answer.signals(self.table, 0, len(response_ids))

    async def answer(self, prompt_ids: Sequence[int], longest: int, request_id: str, scale: float = 1.0) -> Verdict:
        """A greedy answer of at most ``longest`` tokens, and what is to be said of it."""
        params = SamplingParams(max_tokens=longest, temperature=0.0, output_kind=RequestOutputKind.FINAL_ONLY)
        prompt = {"type": "token", "prompt_token_ids": list(prompt_ids)}
        with use_context(RequestContext(Policy(Mode.SCORE, self.default_policy.threshold, scale))) as call:
            async for _ in self.generate(prompt, params, request_id):
                pass
        return call.verdicts[0]

    async def score(
        self,
        prompt_ids: Sequence[int],
        response_ids: Sequence[int],
        policy: Policy,
        request_id: str,
        index: int = 0,
        within: float | None = None,
        bundle: Bundle | None = None,
        text: str = "",
    ) -> Verdict:
        """The verdict on given text; see ``measure``. ``within``: after so many seconds it stays unscored, and after as
        many more its neurons unnamed. ``bundle``:
        the probe that judges, as of a ``RequestContext``. ``text``: the response's, which may be one that declines."""
        readout = self.readout if bundle is None else bundle.readout
        ids, verdict = list(response_ids), None
        try:
            async with asyncio.timeout(within) as limit, self.traffic.begun(bundle):
                signals = await self.measure(prompt_ids, ids, policy.scale, request_id, draws=readout.uses_draws)
                began = time.perf_counter()
                whole = self._turns.start(prompt_ids) == len(prompt_ids)
                if not whole:
                    signals = signals.without_question()
                declined = whole and policy.declines_pass and declines.declines(text)
                verdict = verdict_on(signals, readout, policy, index, ids, declined=declined)
                if (call := current_context()) is not None:
                    call.overhead_seconds += time.perf_counter() - began
                if within is not None:
                    limit.reschedule(asyncio.get_running_loop().time() + within)
                read = {"type": "token", "prompt_token_ids": [*prompt_ids, *ids]}
                probe = self.bundle if bundle is None else bundle
                await tell_apart(verdict, read, len(prompt_ids), policy.scale, request_id, self, probe)
        except TimeoutError:
            return verdict or unscored(index, policy, ids, Unscored.TIMEOUT)
        return verdict


def _ends_of(model_config: Any) -> frozenset[int]:
    """All tokens with which the model ends a sequence; vLLM treats those beside the tokenizer's as stop tokens."""
    named = model_config.try_get_generation_config().get("eos_token_id")
    return frozenset([named] if isinstance(named, int) else named or ())


def _remember(call: RequestContext, first_tries: Mapping[int, Verdict]) -> None:
    """Say in the verdicts on further tries what the risks of the very first ones were."""
    for choice, verdict in first_tries.items():
        if (second := call.verdicts.get(choice)) is not None:
            second.first_risk = verdict.risk if verdict.first_risk is None else verdict.first_risk
