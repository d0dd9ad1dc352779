"""What a response says of the guard: the ``hallucination`` object. A missing score is never reported as 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from guard.engine.context import Verdict
from guard.policy import Action
from guard.probe.bundle import Bundle

Token = tuple[str, int, int]  # text, start, end: character offsets into the answer


class Writer:
    """Writes verdicts for one bundle; ``spell`` gives the text and offsets of an answer's tokens."""

    def __init__(self, bundle: Bundle, spell: Callable[[Verdict], list[Token]]) -> None:
        self._probe = {"id": bundle.card.id, "revision": bundle.revision}
        self._spell = spell

    def write(self, verdicts: Sequence[Verdict], spelled: Sequence[Token] | None = None) -> dict[str, Any]:
        """The ``hallucination`` object for these answers; ``spelled`` replaces the tokens' own text and offsets."""
        if not verdicts:
            return {"type": "error", "code": "no_verdict", "message": "the engine ended before an answer was complete"}
        mode = verdicts[0].policy.mode.value
        if all(verdict.risk is None for verdict in verdicts):
            first = verdicts[0]
            assert first.reason is not None
            return {
                "type": "not_scored",
                "reason": first.reason.value,
                "message": first.reason.sentence,
                "mode": mode,
                "action": first.decision.action.value,
            }
        return {
            "type": "hallucination_results",
            "probe": self._probe,
            "mode": mode,
            "results": [self._result(verdict, spelled) for verdict in verdicts],
        }

    def _result(self, verdict: Verdict, spelled: Sequence[Token] | None) -> dict[str, Any]:
        # Of a withheld answer, no more than that it is one; a given text its sender has.
        given = spelled is not None
        withheld = verdict.decision.action is Action.ABSTAINED and not given
        threshold = verdict.policy.prompt_threshold if verdict.prompt_refused else verdict.policy.threshold
        result: dict[str, Any] = {
            "index": verdict.index,
            "risk": coarse(verdict.risk, threshold) if withheld else verdict.risk,
            "flagged": verdict.decision.flagged,
            "action": verdict.decision.action.value,
            "threshold": threshold,
            "scored_tokens": min(verdict.scored_tokens, 1) * verdict.told if withheld else verdict.scored_tokens,
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
        if verdict.reason is not None:
            result["reason"] = verdict.reason.value
        elif verdict.peak is not None and not withheld:
            result["peak"] = {"start": verdict.peak.start, "end": verdict.peak.end, "risk": verdict.risk}
        if verdict.policy.tokens and not withheld:
            tokens = self._spell(verdict) if spelled is None else spelled
            result["tokens"] = [
                {"token": text, "start": start, "end": end, "risk": risk}
                for (text, start, end), risk in zip(tokens, verdict.token_risks, strict=True)
            ]
        return result


def coarse(risk: float | None, threshold: float | None) -> float | None:
    """The risk of a withheld answer to two decimals, rounded up where it would else lie below its threshold.

    To four it would tell the answer from others, since ``/risk`` gives anyone the risk of a guess.
    """
    if risk is None:
        return None
    rounded = round(risk, 2)
    return rounded if threshold is None or rounded >= threshold else min(1.0, math.ceil(threshold * 100) / 100)
