"""One answer while it is produced: which tokens, where in the ring, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from guard.engine.call import Verdict
from guard.engine.ring import ScoreRing, Slot
from guard.policy import Policy, decide
from guard.probe.readout import Readout, Signals


@dataclass(slots=True)
class Answer:
    """Tokens of one sequence and the slot that holds their measurements."""

    index: int
    slot: Slot | None
    prompt_length: int = -1
    token_ids: list[int] = field(default_factory=list)

    def extend(self, tokens: Sequence[int], cumulative: bool) -> None:
        if cumulative:
            self.token_ids = list(tokens)
        else:
            self.token_ids.extend(tokens)

    def signals(self, ring: ScoreRing, count: int) -> Signals:
        """What was measured on the first ``count`` tokens."""
        assert self.slot is not None
        start = self.prompt_length
        entropy, logprob = ring.read_draws(self.slot, start, start + count)
        lead = ring.read_neurons(self.slot, start - 1, start)
        return Signals(float(lead[0]), ring.read_neurons(self.slot, start, start + count), entropy, logprob)

    def text_tokens(self, finish_reason: str | None, stop_reason: int | str | None) -> int:
        """How many tokens are the answer: all but the end-of-sequence or stop token that ended it."""
        ended = finish_reason == "stop" and not isinstance(stop_reason, str)
        return len(self.token_ids) - (1 if ended and self.token_ids else 0)


def judge(
    answer: Answer,
    ring: ScoreRing,
    readout: Readout,
    policy: Policy,
    finish_reason: str | None,
    stop_reason: int | str | None,
) -> Verdict:
    """The verdict on a finished answer."""
    count = answer.text_tokens(finish_reason, stop_reason)
    ids = answer.token_ids[:count]
    if answer.slot is None:
        return _unscored(answer.index, policy, ids, finish_reason, "the guard was off for this request")
    signals = answer.signals(ring, count)
    return verdict_on(signals, readout, policy, answer.index, ids, finish_reason)


def verdict_on(
    signals: Signals, readout: Readout, policy: Policy, index: int, ids: list[int], finish_reason: str | None
) -> Verdict:
    """The verdict on measured tokens."""
    flaw = signals.flaw(readout.uses_draws)
    if flaw is not None:
        return _unscored(index, policy, ids, finish_reason, flaw)
    risk, peak = readout.risk(signals)
    decision = decide(risk, policy)
    foreseen = readout.foreseen(signals.lead)
    return Verdict(index, policy, decision, risk, peak, ids, finish_reason, None, signals, readout, foreseen)


def _unscored(index: int, policy: Policy, ids: list[int], finish_reason: str | None, reason: str) -> Verdict:
    return Verdict(index, policy, decide(None, policy), None, None, ids, finish_reason, reason)


def risks_so_far(answer: Answer, ring: ScoreRing, readout: Readout, known: list[float | None], count: int) -> None:
    """Append to ``known`` the risks of tokens up to ``count``; a token without a score yet has None."""
    first = len(known)
    if answer.slot is None or first >= count:
        return
    start = answer.prompt_length
    entropy, logprob = ring.read_draws(answer.slot, start + first, start + count)
    neurons = ring.read_neurons(answer.slot, start + first, start + count)
    known.extend(readout.token_risks(Signals(float(np.nan), neurons, entropy, logprob)))
