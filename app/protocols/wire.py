"""What a response says of the guard: the ``hallucination`` object. A missing score is never reported as 0.

Its shape stands in the types, which the OpenAPI document shows and the type checker holds the writer to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # typing's own, before 3.12, hides from pydantic what is not required

from guard.engine.context import Unscored, Verdict
from guard.policy import Action, Mode
from guard.probe.bundle import Bundle

Token = tuple[str, int, int]  # text, start, end: character offsets into the answer

_EXACT = ConfigDict(extra="forbid")
Risk = Annotated[float, Field(ge=0, le=1)]
Offset = Annotated[int, Field(ge=0)]


@with_config(_EXACT)
class ProbeName(TypedDict):
    """The probe that was read."""

    id: str
    revision: str


@with_config(_EXACT)
class Peak(TypedDict):
    """The worst window: the tokens from ``start`` to before ``end``."""

    start: Offset
    end: Offset
    risk: Risk


@with_config(_EXACT)
class TokenRisk(TypedDict):
    """One token, its place in the text in characters, and its risk; null where it has no score."""

    token: str
    start: Offset
    end: Offset
    risk: Risk | None


@with_config(_EXACT)
class NeuronShare(TypedDict):
    """One neuron of the probe, and what it adds to the logit beyond what it usually does."""

    layer: Offset
    neuron: Offset
    adds: float


@with_config(_EXACT)
class RiskExplanation(TypedDict):
    """What raised the risk, or lowered it: the logit of the worst window is ``base`` and the sum of ``signals``."""

    logit: Annotated[float, Field(description="of the worst window, before calibration makes a risk of it")]
    base: Annotated[float, Field(description="what a window would have whose signals are all at their means")]
    signals: Annotated[dict[str, float], Field(description="what each adds beyond its mean; the neurons', `neurons`")]
    neurons: NotRequired[
        Annotated[list[NeuronShare], Field(description="those that add or take most, where asked for")]
    ]
    other_neurons: NotRequired[Annotated[float, Field(description="what all others of the probe add")]]


@with_config(_EXACT)
class AnswerRisk(TypedDict):
    """The guard's word on one answer."""

    index: Offset
    risk: Annotated[Risk | None, Field(description="null where this answer was not scored; then `reason` says why")]
    flagged: Annotated[
        bool, Field(description="whether the risk reached the threshold, and the answer is not `declined`")
    ]
    action: Action
    threshold: Annotated[float, Field(ge=0)]
    scored_tokens: Offset
    prompt_risk: NotRequired[Annotated[Risk, Field(description="the risk before any text existed")]]
    prompt_refused: NotRequired[Annotated[Literal[True], Field(description="nothing was generated")]]
    first_risk: NotRequired[Annotated[Risk, Field(description="that of the first try; `risk` is the second one's")]]
    beyond_calibration: NotRequired[
        Annotated[Literal[True], Field(description="longer than any answer that stands behind the probe's thresholds")]
    ]
    in_domain: NotRequired[
        Annotated[
            bool,
            Field(
                description="whether the question is of a kind that the probe's thresholds come from; where it is not, "
                "right answers may be flagged far more often. Left out where the probe does not tell"
            ),
        ]
    ]
    declined: NotRequired[
        Annotated[
            Literal[True],
            Field(description="it only says that it does not know, and passes whatever its risk"),
        ]
    ]
    reason: NotRequired[Unscored]
    peak: NotRequired[Peak]
    explanation: NotRequired[RiskExplanation]
    tokens: NotRequired[list[TokenRisk]]


@with_config(_EXACT)
class HallucinationResults(TypedDict):
    """What the guard found, answer by answer."""

    type: Literal["hallucination_results"]
    probe: ProbeName
    mode: Mode
    results: Annotated[list[AnswerRisk], Field(min_length=1)]


@with_config(_EXACT)
class NotScored(TypedDict):
    """No answer has a risk. It is never reported as 0."""

    type: Literal["not_scored"]
    reason: Unscored
    message: str
    mode: Mode
    action: Action


@with_config(_EXACT)
class NoVerdict(TypedDict):
    """The engine ended before an answer was complete."""

    type: Literal["error"]
    code: Literal["no_verdict"]
    message: str


Hallucination = Annotated[HallucinationResults | NotScored | NoVerdict, Field(discriminator="type")]


class Writer:
    """Writes verdicts for one bundle; ``spell`` gives the text and offsets of an answer's tokens."""

    def __init__(self, bundle: Bundle, spell: Callable[[Verdict], list[Token]]) -> None:
        self._probe: ProbeName = {"id": bundle.card.id, "revision": bundle.revision}
        self._spell = spell

    def write(self, verdicts: Sequence[Verdict], spelled: Sequence[Token] | None = None) -> Hallucination:
        """The ``hallucination`` object for these answers; ``spelled`` replaces the tokens' own text and offsets."""
        if not verdicts:
            return {"type": "error", "code": "no_verdict", "message": "the engine ended before an answer was complete"}
        mode = verdicts[0].policy.mode
        if all(verdict.risk is None for verdict in verdicts):
            first = verdicts[0]
            assert first.reason is not None
            return {
                "type": "not_scored",
                "reason": first.reason,
                "message": first.reason.sentence,
                "mode": mode,
                "action": first.decision.action,
            }
        return {
            "type": "hallucination_results",
            "probe": self._probe,
            "mode": mode,
            "results": [self._result(verdict, spelled) for verdict in verdicts],
        }

    def _result(self, verdict: Verdict, spelled: Sequence[Token] | None) -> AnswerRisk:
        # Of a withheld answer, no more than that it is one; a given text its sender has.
        given = spelled is not None
        withheld = verdict.decision.action is Action.ABSTAINED and not given
        threshold, risk = verdict.policy.threshold, verdict.risk
        if verdict.prompt_refused and verdict.policy.prompt_threshold is not None:
            threshold = verdict.policy.prompt_threshold
        scored = verdict.scored_tokens
        if withheld and scored:
            scored = verdict.counted_tokens
        result: AnswerRisk = {
            "index": verdict.index,
            "risk": coarse(risk, threshold) if withheld and risk is not None else risk,
            "flagged": verdict.decision.flagged,
            "action": verdict.decision.action,
            "threshold": threshold,
            "scored_tokens": scored,
        }
        if verdict.prompt_risk is not None:
            floor = threshold if verdict.prompt_refused else None  # else it may lie anywhere
            result["prompt_risk"] = coarse(verdict.prompt_risk, floor) if withheld else verdict.prompt_risk
        if verdict.prompt_refused:
            result["prompt_refused"] = True
        if verdict.first_risk is not None:
            result["first_risk"] = coarse(verdict.first_risk, threshold)  # of an answer that was withheld
        if verdict.beyond_calibration and not withheld:
            result["beyond_calibration"] = True
        if (known := verdict.in_domain) is not None:
            result["in_domain"] = known  # a function of the prompt alone, so of one that is withheld, too
        if verdict.declined:
            result["declined"] = True
        if verdict.reason is not None:
            result["reason"] = verdict.reason
        elif verdict.peak is not None and risk is not None and not withheld:
            result["peak"] = {"start": verdict.peak.start, "end": verdict.peak.end, "risk": risk}
        if verdict.explanation is not None and not withheld:
            why = verdict.explanation
            told = result["explanation"] = {"logit": why.logit, "base": why.base, "signals": dict(why.signals)}
            if why.neurons:
                told["neurons"] = [{"layer": one.layer, "neuron": one.neuron, "adds": one.adds} for one in why.neurons]
                told["other_neurons"] = why.other_neurons
        if verdict.policy.tokens and not withheld:
            tokens = self._spell(verdict) if spelled is None else spelled
            result["tokens"] = [
                {"token": text, "start": start, "end": end, "risk": one}
                for (text, start, end), one in zip(tokens, verdict.token_risks, strict=True)
            ]
        return result


def coarse(risk: float, threshold: float | None) -> float:
    """The risk of a withheld answer to two decimals, rounded up where it would else lie below its threshold.

    To four it would tell the answer from others, since ``/risk`` gives anyone the risk of a guess.
    """
    rounded = round(risk, 2)
    return rounded if threshold is None or rounded >= threshold else min(1.0, math.ceil(threshold * 100) / 100)
