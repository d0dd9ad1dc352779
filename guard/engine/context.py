"""One HTTP request's guard state, carried from the API layer to the engine client in a context variable."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from guard.policy import Decision, Policy
from guard.probe.bundle import Bundle
from guard.probe.readout import Explanation, Peak, Readout
from guard.probe.signals import SignalFault, TokenSignals


class Unscored(StrEnum):
    """Why an answer has no risk. ``off`` and ``empty`` are no failures of the guard; the others are."""

    OFF = "off"
    EMPTY = SignalFault.EMPTY.value
    MISSING = SignalFault.MISSING.value
    NOT_FINITE = SignalFault.NOT_FINITE.value
    UNFINISHED_THINKING = "unfinished_thinking"
    NO_SLOT = "no_slot"
    PROBE_ERROR = "probe_error"
    TIMEOUT = "timeout"

    @property
    def failed(self) -> bool:
        """Whether the guard failed to score what it should have scored."""
        return self not in (Unscored.OFF, Unscored.EMPTY)

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]


_SENTENCES = {
    Unscored.OFF: "the guard was off for this request",
    Unscored.EMPTY: "the answer has no tokens",
    Unscored.MISSING: "a token's score did not come in time",
    Unscored.NOT_FINITE: "a token's score is not a finite number",
    Unscored.UNFINISHED_THINKING: "the model stopped before its answer began: there is nothing to score but thoughts",
    Unscored.NO_SLOT: "all score slots were in use",
    Unscored.PROBE_ERROR: "the probe failed on this answer; the server's log has the error",
    Unscored.TIMEOUT: "the engine did not score the text in time",
}


@dataclass(frozen=True, slots=True)
class Generated:
    """What the engine generated for one answer, and how its text is made of it.

    token_ids: all of them, with ``start`` thoughts before the answer, and what ended it. params: the request's sampling
    parameters. text: what left of the whole, thoughts included; a stop string can end it within a token.
    """

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    start: int
    params: Any
    text: str


@dataclass(slots=True)
class Verdict:
    """The guard's word on one answer. ``reason`` says why it could not be scored; then risk and peak are None.

    token_ids: those of the answer, without thinking before it and the end-of-sequence token after it.
    prompt_risk: the risk before any text existed, where the probe gives one. prompt_refused: nothing was generated, and
    ``risk`` is what was prompt_risk. first_risk: that of the first try, where this is the verdict on a second one.
    sent_tokens: how many tokens had left before the decision. counted_tokens: of a withheld answer, how many usage
    counts.
    declined: it does nothing but say that it does not know, so that its risk ends nothing.
    generated: what the text of its tokens is worked out from, where the policy wants them. explanation: of the risk,
    where the policy wants it.
    """

    index: int
    policy: Policy
    decision: Decision
    risk: float | None
    peak: Peak | None
    token_ids: list[int]
    reason: Unscored | None = None
    signals: TokenSignals | None = None
    readout: Readout | None = None
    prompt_risk: float | None = None
    prompt_refused: bool = False
    first_risk: float | None = None
    sent_tokens: int = 0
    counted_tokens: int = 0
    generated: Generated | None = None
    explanation: Explanation | None = None
    declined: bool = False

    @property
    def token_risks(self) -> list[float | None]:
        """The risk of each token, None where it has no score; worked out when somebody asks."""
        if self.readout is None or self.signals is None:
            return [None] * len(self.token_ids)
        return self.readout.token_risks(self.signals)

    @property
    def beyond_calibration(self) -> bool:
        """Whether it is longer than any answer that stands behind its threshold: false alarms may then be more."""
        most = None if self.readout is None else self.readout.calibrated_tokens
        return most is not None and len(self.token_ids) > most

    @property
    def in_domain(self) -> bool | None:
        """Whether its question is of a kind that stands behind its threshold; None where that is not known, as where
        scaled neurons moved what is told by."""
        if self.readout is None or self.signals is None or self.policy.scale != 1.0 or self.first_risk is not None:
            return None
        return self.readout.in_domain(self.signals)

    @property
    def scored_tokens(self) -> int:
        """How many tokens the risk was worked out from; the last may have no score of its own."""
        return 0 if self.signals is None else len(self.signals)


@dataclass(slots=True)
class RequestContext:
    """Filled by the engine client while an answer is produced, read by the API layer when it writes the response.

    verdicts: by choice index, once decided. token_risks: by choice index, one for each generated token (thinking has
    None), as far as known, for streams. usage_adjustment: by choice index, tokens that were generated but that the
    outputs do not show (a first try), less those shown that were not generated (what stands in for a refused answer).
    unshown: the response shows nothing of what is generated, since its caller wants to see the prompt alone.
    as_one: the response shows thoughts and answer as one text, so all of it is scored.
    streams: what the engine client was asked for. hung_up: the caller did not wait for the end of the response.
    bundle: the probe that the policy was made for, which judges the answers to the end, whatever the engine client
    goes on with; None: that of the engine client.
    """

    policy: Policy
    choices: int = 0
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    token_risks: dict[int, list[float | None]] = field(default_factory=dict)
    usage_adjustment: Counter[int] = field(default_factory=Counter)
    overhead_seconds: float = 0.0
    unshown: bool = False
    as_one: bool = False
    streams: list[AsyncGenerator[Any, None]] = field(default_factory=list)
    hung_up: bool = False
    bundle: Bundle | None = None

    @property
    def left(self) -> bool:
        """Whether the caller hung up before there was a verdict on each answer."""
        return self.hung_up and len(self.verdicts) < self.choices

    async def aclose(self) -> None:
        """End what the engine still does for this request, which gives its slots back.

        A route of vLLM's may drop a stream halfway, and then it would go on until it is collected as garbage.
        """
        for stream in self.streams:
            with suppress(RuntimeError):  # it runs: whoever reads it ends it
                await stream.aclose()

    def reserve(self, count: int) -> int:
        """The choice index of the first of ``count`` further answers."""
        first, self.choices = self.choices, self.choices + count
        return first


_current: ContextVar[RequestContext | None] = ContextVar("hguard_call", default=None)


def current_context() -> RequestContext | None:
    return _current.get()


@contextmanager
def use_context(call: RequestContext) -> Iterator[RequestContext]:
    """Make ``call`` the current one for everything that runs inside."""
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)
