"""The gate of one engine request: its answers as they grow, and what may leave.

An output of the engine goes in, what the policy lets go comes out: where answers can be withheld, no more of it than
``guard.engine.outputs`` copies, and which of them end midway ``guard.engine.watch`` has found out by then. Where
nothing is withheld an output passes as it is. Nothing here waits or talks to the engine.
"""

from __future__ import annotations

import operator
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.sampling_params import RequestOutputKind

from guard.engine.answer import Answer, risks_so_far, unscored
from guard.engine.context import Generated, RequestContext, Unscored, Verdict
from guard.engine.outputs import blank, counted_length, emptied, own, own_output, with_completions
from guard.engine.prompt.turn import Reasoning
from guard.errors import TapError
from guard.ipc.score_table import ScoreTable
from guard.policy import Action, Hold, Mode
from guard.probe.readout import Readout


@dataclass(slots=True)
class HeldOutput:
    """A piece of an answer that may not leave yet, and the output that it came with, which may hold more than pieces
    (the first has what is known of the prompt). reach: how many tokens the answer had with it."""

    completion: Any
    reach: int
    output: Any


class OutputGate:
    """Follows ``answers``, one for each sequence of the request; ``kind`` is what the caller wants to be given."""

    def __init__(
        self,
        answers: Sequence[Answer],
        call: RequestContext,
        table: ScoreTable,
        readout: Readout,
        kind: RequestOutputKind,
        placeholder: int,
        retry_follows: bool = False,
        reasoning: Reasoning | None = None,
        request: Mapping[str, Any] | None = None,
        longest: int | None = None,
        ends: frozenset[int] = frozenset(),
        params: Any = None,
    ) -> None:
        """The windows of answers are looked at midway by ``guard.engine.watch`` where ``followed`` says so.

        ``retry_follows``: say nothing of answers that are to be withheld; they get a second try. ``longest``: how
        many tokens an answer may have. ``ends``: further tokens with which the model itself ends a sequence.
        ``params``: the request's sampling parameters, which say how tokens become text."""
        self.answers, self.call, self.readout = answers, call, readout
        self.decided: list[Answer] = []  # that got their verdict with the last output
        self.fault: Exception | None = None  # what the watch fell over
        self._table, self._kind, self._placeholder = table, kind, placeholder
        self._repeats = kind is not RequestOutputKind.DELTA  # whether an output repeats what came before
        self._longest, self._ends, self._params = longest, ends, params
        self._retry_follows = retry_follows
        policy = call.policy
        # Where nothing can be withheld or has to wait, outputs pass as they are.
        self.withholds = policy.withholds
        self._passes_through = not (self.withholds or policy.fails_closed or policy.token_risk_in_stream)
        scored = any(answer.slot is not None for answer in answers)
        whole = kind is RequestOutputKind.FINAL_ONLY
        self.holds_all = whole or policy.hold is Hold.ANSWER
        self.tells_tokens = policy.token_risk_in_stream and not whole
        self.followed = (self.withholds or self.tells_tokens) and scored and not call.unshown
        self._reasoning, self._request = reasoning, request or {}
        self._held: list[deque[HeldOutput]] = [deque() for _ in answers]
        self._reached = [0] * len(answers)  # tokens that have come
        self._sent = [0] * len(answers)  # tokens that have left
        self._whole: dict[int, Any] = {}  # for FINAL_ONLY: the last completion of each answer

    @property
    def done(self) -> bool:
        return all(answer.verdict is not None for answer in self.answers)

    @property
    def retryable(self) -> list[Answer]:
        """Answers of which nothing was said, since they are to have a second try."""
        return [answer for answer in self.answers if self._retryable(answer)]

    @property
    def retryable_tokens(self) -> dict[int, int]:
        """How many tokens usage is to count of each, by choice index."""
        return {answer.index: counted_length(len(answer.token_ids), self._longest) for answer in self.retryable}

    @property
    def ended_midway(self) -> bool:
        """Whether an answer was ended before the engine was done with it."""
        return any(answer.midway is not None for answer in self.answers)

    def _retryable(self, answer: Answer) -> bool:
        if not self._retry_follows or answer.verdict is None or answer.verdict.risk is None:
            return False
        return self._abstained(answer) and self._sent[answer.sequence] == 0

    def feed(self, output: Any) -> Sequence[Any]:
        """Take an output; what may leave by now, as outputs. Raises what looking at the answers midway has raised."""
        if self.fault is not None:
            raise self.fault
        self.decided = []
        if self._passes_through:
            for completion in output.outputs:
                self._take(completion, output)
            return (output,)
        began = time.perf_counter()
        for completion in output.outputs:
            if (answer := self.answers[completion.index]).verdict is not None:
                continue  # what the engine still says of an answer that was ended
            self._take(completion, output)
            self._note_risks(answer)
            self._held[completion.index].append(HeldOutput(completion, self._reached[completion.index], output))
        left = self._gathered(output) if self._kind is RequestOutputKind.FINAL_ONLY else self._released(output)
        self.call.overhead_seconds += time.perf_counter() - began
        return left

    def begin(self, sequence: int, prompt_ids: Sequence[int]) -> Answer:
        """The answer of one of the request's sequences, which goes on after this prompt."""
        answer = self.answers[sequence]
        answer.prompt_length = len(prompt_ids)
        if self._reasoning is not None and answer.slot is not None:
            span = self._reasoning.begin(prompt_ids, self._request)
            if span is not None:
                answer.begin_reasoning(span)
        return answer

    def _take(self, completion: Any, output: Any) -> None:
        """What a completion adds to its answer, and the verdict, if that is one by now."""
        sequence, tokens = completion.index, completion.token_ids
        answer = self.answers[sequence]
        self._reached[sequence] = len(tokens) if self._repeats else self._reached[sequence] + len(tokens)
        if not self.followed:
            if answer.prompt_length < 0:
                self.begin(sequence, output.prompt_token_ids)
            answer.extend(tokens, self._repeats)
        elif self._reached[sequence] > len(answer.token_ids):
            raise TapError("an output of the engine came past the watch, so nothing of this answer was looked at")
        if self.call.policy.tokens or answer.short:
            answer.say(completion.text, self._repeats)
        if completion.finish_reason is None and answer.midway is None:
            return
        began = time.perf_counter()
        verdict = answer.verdict = self._decide(answer, completion)
        self.decided.append(answer)
        self.call.verdicts[answer.index] = verdict
        if self.call.policy.tokens:
            verdict.generated = self._generated(answer, output.prompt_token_ids)
        if self._passes_through:
            self.call.overhead_seconds += time.perf_counter() - began

    def _generated(self, answer: Answer, prompt_ids: Sequence[int]) -> Generated:
        return Generated(prompt_ids, answer.token_ids, answer.reasoning_tokens, self._params, "".join(answer.texts))

    def _decide(self, answer: Answer, completion: Any) -> Verdict:
        """The verdict on an answer that has ended: by a window, or in the engine."""
        policy = self.call.policy
        if answer.midway is not None:
            return answer.midway
        if self.call.unshown and policy.mode is not Mode.OFF:
            return unscored(answer.index, policy, [], Unscored.EMPTY)
        stop = completion.stop_reason
        ended = completion.finish_reason == "stop" and (stop is None or stop in self._ends)
        return answer.judge(self._table, self.readout, policy, ended)

    def known_risks(self, answer: Answer) -> list[float | None]:
        """Of its tokens so far."""
        return self.call.token_risks.setdefault(answer.index, [])

    def _note_risks(self, answer: Answer) -> None:
        if not self.call.policy.token_risk_in_stream:
            return
        known = self.known_risks(answer)
        # A token's own score exists once it was fed back, one step after it was drawn.
        count = len(answer.token_ids) - (answer.verdict is None)
        risks_so_far(answer, self._table, self.readout, known, count)

    def _released(self, output: Any) -> list[Any]:
        """What may leave, one piece an output; or the engine's own output, where it may leave as it is."""
        pieces = [piece for answer in self.answers for piece in self._pieces(answer, self._held[answer.sequence])]
        if pieces and _holds(output, [completion for completion, _ in pieces]):
            return [output]
        last = len(pieces) - 1 if self.done else -1
        return [self._holding(source, [piece], i == last) for i, (piece, source) in enumerate(pieces)]

    def _holding(self, output: Any, completions: list[Any], finished: bool) -> Any:
        """An output with these completions, and with no more than may leave."""
        if self.withholds:
            return own_output(output, completions, finished)
        if output.finished == finished and _holds(output, completions):
            return output
        return with_completions(output, completions, finished)

    def _passing(self, answer: Answer, completion: Any) -> Any:
        """A completion that may leave, and no more of it than that."""
        if not self.withholds:
            return completion
        empty = answer.verdict is not None and answer.verdict.reason is Unscored.EMPTY
        if empty or self.call.unshown:
            return blank(completion, len(completion.token_ids), self._placeholder)
        return own(completion)

    def _pieces(self, answer: Answer, held: deque[HeldOutput]) -> Iterator[tuple[Any, Any]]:
        """Completions that may leave, each with its output."""
        if self._abstained(answer):
            if held:
                first, last = held[0].output, held[-1].completion
                held.clear()
                yield from ((piece, first) for piece in self._ended(answer, last))
            return
        while held and self._may_go(answer, held[0]):
            piece = held.popleft()
            self._sent[answer.sequence] = piece.reach
            yield self._passing(answer, piece.completion), piece.output

    def _abstained(self, answer: Answer) -> bool:
        return answer.verdict is not None and answer.verdict.decision.action is Action.ABSTAINED

    def _ended(self, answer: Answer, last: Any) -> Iterator[Any]:
        """What is said of an answer that is withheld from here on."""
        assert answer.verdict is not None
        if not self._retryable(answer):
            sent = answer.verdict.sent_tokens = self._sent[answer.sequence]
            repeated = self._kind is RequestOutputKind.CUMULATIVE
            yield self._withheld(answer, last, 0 if repeated else sent)

    def _withheld(self, answer: Answer, last: Any, sent: int) -> Any:
        """The stand-in for a withheld answer, of which ``sent`` tokens have been counted."""
        assert answer.verdict is not None
        told = answer.verdict.counted_tokens = counted_length(len(answer.token_ids), self._longest)
        return emptied(last, told - sent, self._placeholder)

    def _may_go(self, answer: Answer, piece: HeldOutput) -> bool:
        policy = self.call.policy
        if answer.verdict is not None:
            return True
        if policy.token_risk_in_stream and len(answer.token_ids) <= piece.reach:
            return False
        if not self.withholds or policy.hold is Hold.NONE or answer.slot is None:
            return True
        return policy.hold is Hold.WINDOW and answer.cleared(self.readout.window) >= piece.reach

    def _gathered(self, output: Any) -> list[Any]:
        """Keep each answer's last word; all of them together once all are decided."""
        for answer, held in zip(self.answers, self._held, strict=True):
            if held and answer.verdict is not None and not self._retryable(answer):
                last = held[-1].completion
                withheld = self._abstained(answer)
                self._whole[answer.sequence] = (
                    self._withheld(answer, last, 0) if withheld else self._passing(answer, last)
                )
            held.clear()
        if not self.done:
            return []
        return [self._holding(output, [self._whole[sequence] for sequence in sorted(self._whole)], True)]


def _holds(output: Any, completions: list[Any]) -> bool:
    """Whether an output of the engine holds these and no others."""
    return len(output.outputs) == len(completions) and all(map(operator.is_, completions, output.outputs))
