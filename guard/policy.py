"""From a risk to a decision. Pure: no I/O, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """How far the guard goes, from not at all to withholding the answer."""

    OFF = "off"
    SCORE = "score"
    FLAG = "flag"
    ABSTAIN = "abstain"


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

    preempt: in abstain mode, the risk before generation at which nothing is generated; None generates in any case.
    """

    mode: Mode
    threshold: float
    damp: float = 1.0
    tokens: bool = False
    fallback: Fallback = Fallback.REFUSAL
    token_risk_in_stream: bool = False
    preempt: float | None = None

    @property
    def holds_answer(self) -> bool:
        """Whether no text may leave before the verdict."""
        return self.mode is Mode.ABSTAIN


@dataclass(frozen=True, slots=True)
class Decision:
    """``flagged`` says that the risk reached the threshold; ``action`` what follows from it in this mode."""

    flagged: bool
    action: Action


def decide(risk: float | None, policy: Policy) -> Decision:
    """Decide on one answer; ``risk`` is None when it could not be scored.

    An answer without a score is withheld in abstain mode: what was not scored has not passed.
    """
    if risk is None:
        return Decision(False, Action.ABSTAINED if policy.mode is Mode.ABSTAIN else Action.PASS)
    flagged = risk >= policy.threshold
    if not flagged or policy.mode in (Mode.OFF, Mode.SCORE):
        return Decision(flagged, Action.PASS)
    return Decision(True, Action.ABSTAINED if policy.mode is Mode.ABSTAIN else Action.FLAGGED)
