"""From a risk to a decision. Pure: no I/O, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """How far the guard goes, from not at all to withholding the answer. Later members are stricter."""

    OFF = "off"
    SCORE = "score"
    FLAG = "flag"
    ABSTAIN = "abstain"

    @property
    def acts(self) -> bool:
        """Whether something is done about a risk that reaches the threshold, which callers must then not move."""
        return self not in (Mode.OFF, Mode.SCORE)


class Hold(StrEnum):
    """How much of a stream waits for its verdict in abstain mode. Later members are stricter.

    none: text flows, and may end in an abstention. window: a token leaves when every window that it lies in has been
    scored and has passed. answer: nothing leaves before the verdict on all of it.
    """

    NONE = "none"
    WINDOW = "window"
    ANSWER = "answer"


class Fail(StrEnum):
    """What becomes of an answer that could not be scored: it passes and is counted, or it is refused."""

    OPEN = "open"
    CLOSED = "closed"


class Action(StrEnum):
    """What the guard did with an answer."""

    PASS = "pass"
    FLAGGED = "flagged"
    ABSTAINED = "abstained"


class Fallback(StrEnum):
    """How an abstention looks to the client: a refusal, or a message in place of the answer."""

    REFUSAL = "refusal"
    MESSAGE = "message"


@dataclass(frozen=True, slots=True)
class Policy:
    """What one request asked of the guard, with every default filled in.

    prompt_threshold: in abstain mode, the risk before generation at which nothing is generated; None: prompts are not
    checked.
    retry_scale: in abstain mode, the neuron scale of a second try at what would be withheld; None tries once.
    token_bias: whether the request may favour and forbid tokens. Who may can ask which of some is likeliest, by whether
    the answer is withheld, and so for each token of what is.
    declines_pass: whether an answer that does nothing but decline passes whatever its risk. Where callers may choose no
    other mode it does not: by which of two such answers passes they could have any question answered, bit by bit.
    fail: None is closed in abstain mode and open in the others.
    """

    mode: Mode
    threshold: float
    scale: float = 1.0
    tokens: bool = False
    fallback: Fallback = Fallback.REFUSAL
    token_risk_in_stream: bool = False
    prompt_threshold: float | None = None
    hold: Hold = Hold.ANSWER
    retry_scale: float | None = None
    fail: Fail | None = None
    explain: bool = False
    explain_neurons: bool = False
    token_bias: bool = True
    declines_pass: bool = True

    @property
    def withholds(self) -> bool:
        """Whether a risk can end the answer."""
        return self.mode is Mode.ABSTAIN

    @property
    def fails_closed(self) -> bool:
        """Whether an answer without a score is refused."""
        if self.mode is Mode.OFF:
            return False
        return self.fail is Fail.CLOSED or (self.fail is None and self.withholds)


@dataclass(frozen=True, slots=True)
class Decision:
    """``flagged`` says that the risk reached the threshold; ``action`` what follows from it in this mode."""

    flagged: bool
    action: Action


PASSED = Decision(False, Action.PASS)


def decide(risk: float | None, policy: Policy, declined: bool = False) -> Decision:
    """Decide on one answer; ``risk`` is None when it could not be scored. ``declined``: it does nothing but decline.

    What was not scored has not passed: where the policy fails closed it is withheld.
    """
    if risk is None:
        return Decision(False, Action.ABSTAINED) if policy.fails_closed else PASSED
    if declined:
        return PASSED
    flagged = risk >= policy.threshold
    if not flagged or not policy.mode.acts:
        return Decision(flagged, Action.PASS)
    return Decision(True, Action.ABSTAINED if policy.withholds else Action.FLAGGED)
