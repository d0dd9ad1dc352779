"""Stages around a request's answers: what is done before there are any, what is tried where they would be withheld, and
what is found out about those that are not.

A further technique, such as a third try, is a ``Stage`` here, a place in ``STAGES``, and its option: a field of
``GuardOptions`` and of ``Policy``, and how the one becomes the other (``app/protocols/options.py`` and
``guard/policy.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.engine.answer import Answer, refused
from guard.engine.context import RequestContext, Verdict
from guard.engine.outputs import emptied, own_output
from guard.engine.traffic import Purpose
from guard.ipc import capture
from guard.ipc.score_table import ScoreTable, Slot
from guard.policy import Action, Policy
from guard.probe.bundle import Bundle
from guard.probe.readout import Readout


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """One call of ``generate``, and the request that it belongs to. first: the choice index of its first answer."""

    call: RequestContext
    first: int
    prompt: Any
    params: SamplingParams
    request_id: str
    kwargs: dict[str, Any]


class Engine(Protocol):
    """What a stage has of the engine client."""

    table: ScoreTable
    placeholder: int
    bundle: Bundle

    def readout_of(self, call: RequestContext) -> Readout:
        """What makes risks of the signals of a request's answers."""
        ...

    def beside(
        self, request: GenerateCall, parameters: Callable[[Slot], SamplingParams], purpose: Purpose
    ) -> AbstractAsyncContextManager[tuple[Any, Slot] | None]:
        """A request of the guard's own on the same prompt: its last output, and the slot that holds what it measured.

        None where no slot is free and the policy fails open.
        """
        ...

    async def apart(
        self, prompt: Mapping[str, Any], start: int, scale: float, request_id: str, bundle: Bundle
    ) -> NDArray[np.float64] | None:
        """What each of the probe's neurons contributes over the prompt's tokens from position ``start`` on, beyond
        what it usually does: float64 [k]. None where it cannot be had."""
        ...


class Stage:
    """One technique; what it leaves out does nothing."""

    async def before(self, request: GenerateCall, engine: Engine) -> Any | None:
        """Before anything is generated: the output in place of all answers, or None to go on."""

    def again(self, policy: Policy) -> float | None:
        """The neuron scale of a further try at answers that would be withheld, or None."""

    async def after(self, request: GenerateCall, answer: Answer, scale: float, engine: Engine) -> None:
        """Once an answer, of neurons at ``scale``, has its verdict, and before that leaves."""


class PromptCheck(Stage):
    """The risk of the last prompt token alone, and the refusal that may follow from it.

    One token is drawn and thrown away; the answer, if there is to be one, finds its prompt in the prefix cache.
    """

    async def before(self, request: GenerateCall, engine: Engine) -> Any | None:
        call, policy = request.call, request.call.policy
        if policy.prompt_threshold is None or call.unshown:
            return None

        def parameters(slot: Slot) -> SamplingParams:
            # A prompt's last token is computed anew even where the cache has the others. The route expects the
            # log-probabilities that were asked for of a refusal, too.
            return SamplingParams(
                max_tokens=1,
                temperature=0.0,
                logprobs=request.params.logprobs,
                prompt_logprobs=request.params.prompt_logprobs,
                output_kind=RequestOutputKind.FINAL_ONLY,
                extra_args={capture.KEY: capture.pack([slot], policy.scale, draws=False)},
            )

        async with engine.beside(request, parameters, Purpose.PROMPT_CHECK) as looked:
            if looked is None:
                return None
            output, slot = looked
            answer = Answer(0, slot, prompt_length=len(output.prompt_token_ids))
            readout, signals = engine.readout_of(call), answer.signals(engine.table, 0, 0)
            risk = readout.prompt_risk(signals.prompt_score)
        first, count = request.first, request.params.n
        call.usage_adjustment[first] += 1
        if risk is None or risk < policy.prompt_threshold:
            return None
        for index in range(first, first + count):
            call.verdicts[index] = refused(index, policy, risk, readout, signals)
        call.usage_adjustment.subtract(range(first, first + count))  # each answer's stand-in counts as a token
        return _refusal(output, request.request_id, count, engine.placeholder)


def _refusal(output: Any, request_id: str, count: int, placeholder: int) -> Any:
    """The prompt check's output as that of the request that asked: ``count`` answers, none of which exists."""
    completions = []
    for index in range(count):
        completion = emptied(output.outputs[0], 1, placeholder)
        completion.index = index
        completions.append(completion)
    whole = own_output(output, completions, output.finished)
    whole.request_id = request_id
    return whole


class Retry(Stage):
    """A second try with scaled neurons."""

    def again(self, policy: Policy) -> float | None:
        return policy.retry_scale if policy.withholds else None


class NeuronExplanation(Stage):
    """Which neurons raised a risk: one more forward pass, as far as the end of the answer's worst window."""

    async def after(self, request: GenerateCall, answer: Answer, scale: float, engine: Engine) -> None:
        prompt = request.prompt
        if answer.verdict is None or not isinstance(prompt, Mapping) or "prompt_token_ids" not in prompt:
            return
        if answer.verdict.decision.action is Action.ABSTAINED:
            return  # nothing is said of why
        ids = [*prompt["prompt_token_ids"], *answer.token_ids]
        first = answer.prompt_length + answer.reasoning_tokens - answer.given
        text, bundle = {**prompt, "prompt_token_ids": ids}, request.call.bundle or engine.bundle
        await tell_apart(answer.verdict, text, first, scale, request.request_id, engine, bundle)


async def tell_apart(
    verdict: Verdict,
    text: Mapping[str, Any],
    first: int,
    scale: float,
    request_id: str,
    engine: Engine,
    bundle: Bundle,
) -> None:
    """Have the explanation of a verdict name neurons, where its policy wants them.

    text: prompt and answer as one prompt. first: the position of the first token that was scored. bundle: the probe
    that judged.
    """
    why = verdict.explanation
    if why is None or not verdict.policy.explain_neurons or not bundle.told_by_neurons:
        return
    start, end = (first + place for place in why.span)
    read = {**text, "prompt_token_ids": text["prompt_token_ids"][:end]}
    beyond = await engine.apart(read, start, scale, request_id, bundle)
    if beyond is not None:
        verdict.explanation = why.told_apart(bundle.layer, bundle.neuron, beyond)


STAGES: tuple[Stage, ...] = (PromptCheck(), Retry(), NeuronExplanation())
