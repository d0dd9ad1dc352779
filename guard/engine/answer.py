"""One answer while it is produced: which tokens, where in the table, and what they say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from guard import declines
from guard.engine.context import Unscored, Verdict
from guard.engine.prompt.turn import ReasoningSpan
from guard.ipc.score_table import ScoreTable, Slot
from guard.policy import PASSED, Action, Decision, Policy, decide
from guard.probe.readout import Peak, Readout
from guard.probe.signals import DISTANCE, Source, TokenSignals, unmeasured_prompt

log = logging.getLogger("hguard")


@dataclass(slots=True)
class Answer:
    """Tokens of one sequence and the slot that holds their measurements.

    index: the choice that it is in the response. sequence: the sequence that it is in the engine's request.
    no_slot_reason: why it has no slot.
    reasoning: tells where thinking ends and the answer begins, None where the model answers at once. reasoning_open:
    whether it still thinks. reasoning_tokens: how many tokens are thinking.
    given: how many tokens of its turn stand in the prompt already, and are scored with it.
    windows_scored: how many windows of the turn have been scored, each starting a token later. unscorable: none of its
    windows will be any more.
    look_at: with how many tokens its next window may be looked at. midway: the verdict of a window that ends it, before
    the engine does. verdict: its last, once that is told.
    texts: the text that it has in the engine, in pieces; kept where its tokens are to be shown, and while it may be one
    that declines. decode: all that tokens spell, special ones too; None where answers that decline are not told apart.
    """

    index: int
    slot: Slot | None
    sequence: int = 0
    no_slot_reason: Unscored = Unscored.OFF
    reasoning: ReasoningSpan | None = None
    reasoning_open: bool = False
    prompt_length: int = -1
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    reasoning_tokens: int = 0
    given: int = 0
    windows_scored: int = 0
    unscorable: bool = False
    verdict: Verdict | None = None
    midway: Verdict | None = None
    look_at: int = 0
    decode: Callable[[list[int]], str] | None = None

    def extend(self, tokens: Sequence[int], cumulative: bool) -> None:
        further = tokens[len(self.token_ids) :] if cumulative else tokens
        if not self.reasoning_open:
            self.token_ids += further
            return
        for token in further:
            self.token_ids.append(token)
            if self.reasoning_open and self.reasoning is not None:
                self.reasoning_tokens += 1
                self.reasoning_open = not self.reasoning.ended_by(self.token_ids)

    def begin_reasoning(self, span: ReasoningSpan) -> None:
        """What is generated from here on is thinking, until it says that it has ended."""
        self.reasoning, self.reasoning_open = span, True

    @property
    def short(self) -> bool:
        """Whether all of its turn may be an answer that does nothing but decline."""
        near = len(self.token_ids) <= declines.LONGEST
        return near and self.decode is not None and self.given == 0 and self.reasoning is None

    def say(self, text: str, cumulative: bool) -> None:
        if cumulative:
            self.texts.clear()
        self.texts.append(text)

    def signals(self, table: ScoreTable, first: int, last: int) -> TokenSignals:
        """What was measured on tokens first..last-1 of the answer, those that were given having negative numbers; the
        last prompt token is the one before the turn's first."""
        assert self.slot is not None
        start = self.prompt_length + self.reasoning_tokens
        values, before = table.read(Source.DRAW, self.slot, start + first, start + last), unmeasured_prompt()
        if first == -self.given:
            forward = table.read(Source.FORWARD, self.slot, start + first - 1, start + last)
            before = {name: float(one[0]) for name, one in forward.items()}
            forward = {name: one[1:] for name, one in forward.items()}
            if self.reasoning_tokens:
                before.pop(DISTANCE, None)  # the last thought's: of no question, and of what may be withheld
        else:
            forward = table.read(Source.FORWARD, self.slot, start + first, start + last)
        return TokenSignals(before, {**forward, **values})

    def complete(self, window: int) -> int:
        """How many windows of the turn can be scored by now: a token's own score exists when it was fed back, one step
        after it was drawn."""
        known = len(self.token_ids) - self.reasoning_tokens - 1
        return self.given + known - window + 1 if known >= 0 else 0

    def next_windows(self, count: int) -> list[tuple[int, ...]]:
        """(slot, generation, first position, tokens of the turn before it) of so many windows, the next to score."""
        assert self.slot is not None
        slot, generation, scored = self.slot.index, self.slot.generation, self.windows_scored
        start = self.prompt_length + self.reasoning_tokens - self.given
        return [(slot, generation, start + place, place) for place in range(scored, scored + count)]

    def last_scored(self) -> tuple[int, int, int]:
        """(slot, generation, position) of its last token but one: the last that was fed back."""
        assert self.slot is not None
        return self.slot.index, self.slot.generation, self.prompt_length + len(self.token_ids) - 2

    def cleared(self, window: int) -> int:
        """How many generated tokens lie in no window that is still to be scored.

        Thoughts lie in none, and may hold what a later window is withheld for: they wait for all of the answer.
        """
        if self.verdict is not None or self.unscorable:
            return len(self.token_ids)
        return 0 if self.reasoning is not None else max(self.windows_scored - self.given, 0)

    def look(self, table: ScoreTable, readout: Readout, policy: Policy) -> Verdict | None:
        """Score the windows that are complete by now; the verdict, once one of them ends the answer.

        A window that reaches the threshold decides for the whole answer, whose risk is that of its worst window.
        """
        known = len(self.token_ids) - self.reasoning_tokens - 1
        complete = self.complete(readout.window)
        if self.slot is None or self.unscorable or complete <= self.windows_scored:
            return None
        scored = self.windows_scored
        part = self.signals(table, scored - self.given, known)
        fault, risk = part.fault_within(readout.used), float(np.nan)
        if fault is None:
            risk = _risk(part, readout, self.windows_scored)
        if np.isfinite(risk):
            self.windows_scored = complete
            if risk < policy.threshold:
                return None
            # By its tokens: text lags behind them, and leaves some out, while they may leave.
            if self.short and self.decode is not None and declines.may_decline(self.decode(self.token_ids)):
                self.windows_scored = scored
                return None  # its end, or the first word that it should not have, decides
            whole = self.signals(table, -self.given, known)
            return verdict_on(whole, readout, policy, self.index, self._text(known), self.given)
        if not policy.fails_closed:
            self.unscorable = True  # it passes, and its end says that it was not scored
            return None
        reason = Unscored.PROBE_ERROR if fault is None else Unscored(fault.value)
        return unscored(self.index, policy, self._text(known), reason)

    def judge(
        self,
        table: ScoreTable,
        readout: Readout,
        policy: Policy,
        ended: bool,
    ) -> Verdict:
        """The verdict when the engine has ended it. ``ended``: by the model's own end of the sequence, which is the
        last token, and no part of the answer. Whatever else stopped it (a length, a string, a token that the caller
        names), all its tokens were drawn to be said, and are scored.
        """
        count = max(len(self.token_ids) - self.reasoning_tokens - (1 if ended and self.token_ids else 0), 0)
        if self.slot is None:
            return unscored(self.index, policy, self._text(count), self.no_slot_reason)
        if self.reasoning is not None and (self.reasoning_open or not self.reasoning.followed_by(self._text(count))):
            return unscored(self.index, policy, [], Unscored.UNFINISHED_THINKING)
        if count == 0:
            return unscored(self.index, policy, [], Unscored.EMPTY)
        signals = self.signals(table, -self.given, count)
        if not ended:
            # Whether the last token was fed back before the engine stopped is a matter of its schedule.
            signals.forget_last()
        return verdict_on(
            signals, readout, policy, self.index, self._text(count), self.given, ended and self._declines(count)
        )

    def _declines(self, count: int) -> bool:
        """Whether its text does nothing but decline, and its tokens, of which text may leave out some, do neither."""
        if not self.short or self.decode is None or not declines.declines("".join(self.texts)):
            return False
        return declines.declines(self.decode(self._text(count)))

    def _text(self, count: int) -> list[int]:
        return self.token_ids[self.reasoning_tokens : self.reasoning_tokens + count]


def verdict_on(
    signals: TokenSignals,
    readout: Readout,
    policy: Policy,
    index: int,
    ids: list[int],
    given: int = 0,
    declined: bool = False,
) -> Verdict:
    """The verdict on measured tokens. A probe that fails on them leaves them unscored, never with a low risk.

    ``given``: so many of the first are no part of the answer, whose tokens are ``ids``, but of the turn that it ends.
    ``declined``: it does nothing but decline.
    """
    fault = signals.fault(readout.used)
    if fault is not None:
        return unscored(index, policy, ids, Unscored(fault.value))
    try:
        risk, peak = readout.risk(signals)
        prompt_risk = readout.prompt_risk(signals.prompt_score)
        explanation = readout.explain(signals) if policy.explain else None
    except Exception:  # whatever it is: an answer must not pass for it, nor a server fall
        log.exception("the probe failed on an answer")
        return unscored(index, policy, ids, Unscored.PROBE_ERROR)
    if not np.isfinite(risk):
        return unscored(index, policy, ids, Unscored.PROBE_ERROR)
    worst = Peak(max(peak.start - given, 0), peak.end - given) if peak.end > given else None
    own = signals.part(given, len(signals)) if given else signals
    return Verdict(
        index,
        policy,
        decide(risk, policy, declined),
        risk,
        worst,
        ids,
        signals=own,
        readout=readout,
        prompt_risk=prompt_risk,
        explanation=explanation,
        declined=declined,
    )


def _risk(signals: TokenSignals, readout: Readout, before: int) -> float:
    """The risk of a part of an answer, ``before`` tokens into it; NaN when the probe fails on it."""
    try:
        return readout.risk(signals, before)[0]
    except Exception:  # as above
        log.exception("the probe failed on an answer")
        return float(np.nan)


def unscored(index: int, policy: Policy, ids: list[int], reason: Unscored) -> Verdict:
    """The verdict on an answer without a risk: what the policy says of failures, if it is one."""
    decision = decide(None, policy) if reason.failed else PASSED
    return Verdict(index, policy, decision, None, None, ids, reason)


def refused(index: int, policy: Policy, risk: float, readout: Readout, signals: TokenSignals) -> Verdict:
    """The verdict on an answer that is not going to exist. ``signals``: of no token but the prompt's last."""
    return Verdict(
        index,
        policy,
        Decision(True, Action.ABSTAINED),
        risk,
        None,
        [],
        signals=signals,
        readout=readout,
        prompt_risk=risk,
        prompt_refused=True,
    )


def risks_so_far(answer: Answer, table: ScoreTable, readout: Readout, known: list[float | None], count: int) -> None:
    """Append to ``known`` the risks of generated tokens up to ``count``; thinking and what has no score have None."""
    known.extend([None] * (min(answer.reasoning_tokens, count) - len(known)))
    first = len(known)
    if answer.slot is None:
        known.extend([None] * (count - first))
    elif first < count:
        part = answer.signals(table, first - answer.reasoning_tokens, count - answer.reasoning_tokens)
        if answer.verdict is not None and count == len(answer.token_ids):
            part.forget_last()  # as in the verdict on an answer that was cut
        known.extend(readout.token_risks(part))
