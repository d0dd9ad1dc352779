"""GuardedEngine: the engine client that the API talks to.

It stands where vLLM's own ``AsyncLLM`` stood: everything but ``generate`` is delegated, so tools, templates, logprobs,
streaming and n stay vLLM's. ``generate`` claims score slots, tells the worker, reads the ring as outputs arrive, lets
the policy decide, and frees the slots whatever happens. Written against vLLM 0.32 (``v1/engine/async_llm.py``).
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from http import HTTPStatus
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.engine import preempt, seat
from guard.engine.answer import Answer, judge, risks_so_far, verdict_on
from guard.engine.call import GuardCall, Verdict, current_call, use_call
from guard.engine.ring import ScoreRing, Slot, SlotPool
from guard.engine.vllm_api import RefusalError
from guard.errors import RequestError
from guard.policy import Action, Fallback, Mode, Policy
from guard.probe.bundle import Bundle
from guard.probe.readout import Signals

REFUSAL_FINISH = "content_filter"


def one_pass(packed: dict[str, Any]) -> SamplingParams:
    """Parameters of a request that reads given text: one forward pass, past the prefix cache, whose positions have no
    activations. ``packed`` is what the worker is told (``seat.pack``)."""
    return SamplingParams(
        max_tokens=1,  # the engine must draw something; it is thrown away
        temperature=0.0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_reading_prefix_cache=True,
        extra_args={seat.KEY: packed},
    )


class GuardedEngine:
    """Wraps an AsyncLLM; give it to vLLM's ``init_app_state`` in its place."""

    def __init__(self, engine: Any, bundle: Bundle, ring: ScoreRing, default: Policy, fallback_text: str) -> None:
        self._engine = engine
        self.bundle = bundle
        self.readout = bundle.readout
        self.ring = ring
        self.pool = SlotPool(ring.slots)
        self.default_policy = default
        self._fallback_text = fallback_text
        bare = engine.model_config.skip_tokenizer_init
        self._blank_token = 0 if bare else int(engine.get_tokenizer().eos_token_id or 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """vLLM asks before it starts a response, while a refusal can still carry an HTTP status."""
        call = current_call()
        scored = call is None or call.policy.mode is not Mode.OFF
        if scored:
            self.pool.release(self._claim(n), finished=True)
        self._engine.check_admission(n, request_id)

    def _claim(self, count: int) -> list[Slot]:
        """Claim slots; when none are free, as vLLM's own refusal for load, so that its routes answer 503."""
        try:
            return self.pool.claim(count)
        except RequestError as error:
            raise RefusalError(str(error), HTTPStatus(error.status)) from None

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """As ``AsyncLLM.generate``, guarded by the current call's policy (or the operator's default).

        Not itself a generator: choice indices are given out in the order of calls, not of first iteration.
        """
        call = current_call() or GuardCall(self.default_policy)
        first = call.reserve(sampling_params.n)
        return self._guarded(call, first, prompt, sampling_params, request_id, kwargs)

    async def _guarded(
        self,
        call: GuardCall,
        first: int,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        kwargs: dict[str, Any],
    ) -> AsyncGenerator[Any, None]:
        policy = call.policy
        scored = policy.mode is not Mode.OFF
        if policy.preempt is not None:
            refused = await self._preempted(call, first, prompt, params.n, request_id, kwargs)
            if refused is not None:
                yield refused
                return
        slots = self._claim(params.n) if scored else []
        finished = False
        try:
            params = params.clone()
            params.extra_args = {
                **(params.extra_args or {}),
                seat.KEY: seat.pack(slots, policy.damp, draws=self.readout.uses_draws),
            }
            prompt = self._salted(prompt, policy.damp)
            answers = [Answer(first + i, slots[i] if scored else None) for i in range(params.n)]
            inner = self._engine.generate(prompt, params, request_id, **kwargs)
            try:
                stream = self._decided(inner, answers, call, params.output_kind)
                async for output in stream:
                    finished = output.finished
                    yield output
            finally:
                await inner.aclose()  # aborts the engine's work if it is not done
        finally:
            self.pool.release(slots, finished)

    async def _preempted(
        self, call: GuardCall, first: int, prompt: Any, count: int, request_id: str, kwargs: dict[str, Any]
    ) -> Any | None:
        """The output that refuses all ``count`` answers, when the prompt alone is risky enough; else None."""
        policy = call.policy
        slots = self._claim(1)
        done = False
        try:
            looking = preempt.parameters(slots[0], policy.damp)
            inner = self._engine.generate(self._salted(prompt, policy.damp), looking, f"{request_id}-ahead", **kwargs)
            try:
                async for output in inner:
                    done = output.finished
            finally:
                await inner.aclose()
            risk = self.readout.foreseen(preempt.lead_of(output, slots[0], self.ring))
        finally:
            self.pool.release(slots, done)
        if risk is None or policy.preempt is None or risk < policy.preempt:
            return None
        refused = preempt.emptied(output, request_id, count)
        for completion in refused.outputs:
            verdict = preempt.refusal(risk, policy, first + completion.index)
            call.verdicts[verdict.index] = verdict
            self._withhold(completion, verdict, 1)
        return refused

    async def _decided(
        self, inner: Any, answers: list[Answer], call: GuardCall, kind: RequestOutputKind
    ) -> AsyncGenerator[Any, None]:
        """The engine's outputs, each as soon as the policy lets it go."""
        cumulative = kind is not RequestOutputKind.DELTA
        waits = call.policy.holds_answer or call.policy.token_risk_in_stream
        waiting: deque[tuple[Any, dict[int, int]]] = deque()
        async for output in inner:
            began = time.perf_counter()
            last: dict[int, int] = {}
            for completion in output.outputs:
                answer = answers[completion.index]
                answer.prompt_length = len(output.prompt_token_ids)
                answer.extend(completion.token_ids, cumulative)
                last[completion.index] = len(answer.token_ids)
                self._note(answer, completion, call)
            if not waits:
                call.overhead_seconds += time.perf_counter() - began
                yield output
                continue
            waiting.append((output, last))
            ready = []
            while waiting and (output.finished or self._may_go(waiting[0], answers, call)):
                ready.append(waiting.popleft())
            released = [out for out, _ in ready if self._enforce(out, answers, call)]
            call.overhead_seconds += time.perf_counter() - began
            for out in released:
                yield out

    def _note(self, answer: Answer, completion: Any, call: GuardCall) -> None:
        """Read what the ring has; decide when the answer is complete."""
        if call.policy.token_risk_in_stream and answer.slot is not None:
            known = call.token_risks.setdefault(answer.index, [])
            # A token's own score exists once it was fed back, one step after it was drawn.
            count = len(answer.token_ids) - (completion.finish_reason is None)
            risks_so_far(answer, self.ring, self.readout, known, count)
        if completion.finish_reason is None or answer.index in call.verdicts:
            return
        verdict = judge(answer, self.ring, self.readout, call.policy, completion.finish_reason, completion.stop_reason)
        call.verdicts[answer.index] = verdict

    def _may_go(self, item: tuple[Any, dict[int, int]], answers: list[Answer], call: GuardCall) -> bool:
        if call.policy.holds_answer:
            return False  # until all is decided: the caller releases everything with the last output
        if not call.policy.token_risk_in_stream:
            return True
        output, last = item
        return all(
            completion.finish_reason is not None or len(answers[completion.index].token_ids) > last[completion.index]
            for completion in output.outputs
        )

    def _enforce(self, output: Any, answers: list[Answer], call: GuardCall) -> bool:
        """Take withheld text out of ``output``; False when nothing of it is left to send."""
        if not call.policy.holds_answer:
            return True
        kept = []
        for completion in output.outputs:
            verdict = call.verdicts.get(answers[completion.index].index)
            if verdict is None or verdict.decision.action is not Action.ABSTAINED:
                kept.append(completion)
            elif completion.finish_reason is not None:
                self._withhold(completion, verdict, len(answers[completion.index].token_ids))
                kept.append(completion)
        output.outputs = kept
        return bool(kept) or output.finished

    def _withhold(self, completion: Any, verdict: Verdict, generated: int) -> None:
        refusal = verdict.policy.fallback is Fallback.REFUSAL
        completion.text = "" if refusal else self._fallback_text
        # As many tokens as were generated, so that usage counts them; which ones stays here.
        completion.token_ids = [self._blank_token] * generated
        completion.logprobs = None if completion.logprobs is None else [None] * generated
        completion.cumulative_logprob = None
        completion.finish_reason = REFUSAL_FINISH if refusal else "stop"
        completion.stop_reason = None

    def _salted(self, prompt: Any, damp: float) -> Any:
        """Keep dampened keys and values apart from plain ones in the prefix cache."""
        if damp == 1:
            return prompt
        if not isinstance(prompt, dict):
            raise TypeError("vLLM's routes pass rendered prompts; a dampened request needs one to salt its cache")
        own = prompt.get("cache_salt") or ""
        salt = hashlib.sha256(f"{own}|{self.bundle.card.tensors_sha256}|{damp!r}".encode()).hexdigest()
        return {**prompt, "cache_salt": salt}

    async def measure(
        self, prompt_ids: Sequence[int], response_ids: Sequence[int], damp: float, request_id: str
    ) -> Signals:
        """Measure given text: one forward pass over prompt and response, nothing is generated.

        The prefix cache is not read (cached positions have no activations); what is written to it is plain, or salted.
        """
        slots = self._claim(1)
        done = False
        try:
            params = one_pass(seat.pack(slots, damp, len(prompt_ids) - 1, self.readout.uses_draws))
            prompt = self._salted({"type": "token", "prompt_token_ids": [*prompt_ids, *response_ids]}, damp)
            async for output in self._engine.generate(prompt, params, request_id):
                done = output.finished
            answer = Answer(0, slots[0], len(prompt_ids), list(response_ids))
            return answer.signals(self.ring, len(response_ids))
        finally:
            self.pool.release(slots, done)

    async def answer(self, prompt_ids: Sequence[int], longest: int, request_id: str, damp: float = 1.0) -> Verdict:
        """A greedy answer of at most ``longest`` tokens, and what is to be said of it."""
        params = SamplingParams(max_tokens=longest, temperature=0.0, output_kind=RequestOutputKind.FINAL_ONLY)
        prompt = {"type": "token", "prompt_token_ids": list(prompt_ids)}
        with use_call(GuardCall(Policy(Mode.SCORE, self.default_policy.threshold, damp))) as call:
            async for _ in self.generate(prompt, params, request_id):
                pass
        return call.verdicts[0]

    async def score(
        self, prompt_ids: Sequence[int], response_ids: Sequence[int], policy: Policy, request_id: str, index: int = 0
    ) -> Verdict:
        """The verdict on given text; see ``measure``."""
        signals = await self.measure(prompt_ids, response_ids, policy.damp, request_id)
        return verdict_on(signals, self.readout, policy, index, list(response_ids), None)
