"""What may become of a request, how to bring it about, and what a program saw of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.contract.house import KEY, TEXT, House, opened


@dataclass(frozen=True, eq=False)
class Outcome:
    """A question and options that lead to it. action: what the guard then does; None where there is no verdict."""

    name: str
    question: str
    options: dict[str, Any] | None
    action: str | None = None
    scored: bool = True
    key: str = KEY
    deadly: bool = False


PASS = Outcome("pass", "Is it safe?", {"mode": "abstain"}, "pass")
FLAGGED = Outcome("flagged", "Is it risky?", {"mode": "flag"}, "flagged")
REFUSED = Outcome("abstained", "Is it risky?", {"mode": "abstain"}, "abstained")
REPLACED = Outcome(
    "abstained, with `fallback: message`", "Is it risky?", {"mode": "abstain", "fallback": "message"}, "abstained"
)
OFF = Outcome("not scored: off", "Is it risky?", {"mode": "off"}, "pass", scored=False)
UNSCORED = Outcome("not scored", "Is it nan?", None, "pass", scored=False)
WITHHELD = Outcome("not scored, abstained", "Is it nan?", {"mode": "abstain"}, "abstained", scored=False)
INVALID = Outcome("invalid option", "Is it safe?", {"mode": "panic"})
STRANGER = Outcome("wrong key", "Is it safe?", None, key="another-key")
DEATH = Outcome("the engine dies", "Where dies it?", None, deadly=True)

OUTCOMES = (PASS, FLAGGED, REFUSED, REPLACED, OFF, UNSCORED, WITHHELD, INVALID, STRANGER, DEATH)
ANSWERED = (PASS, FLAGGED, OFF, UNSCORED)
ABSTAINED = (REFUSED, REPLACED, WITHHELD)
ERRORS = (INVALID, STRANGER, DEATH)


@dataclass
class Seen:
    """What a program saw. text: what it would show. facts: what told it how the answer ended. verdict, where: the
    ``hallucination`` object and the attribute that held it. usage: input and output tokens. dumps: all that it was
    given. asked: requests that reached the engine."""

    text: str = ""
    facts: list[str] = field(default_factory=list)
    verdict: dict[str, Any] | None = None
    where: str = ""
    usage: tuple[int, int] | None = None
    error: Exception | None = None
    dumps: list[str] = field(default_factory=list)
    asked: int = 0

    def got(self, thing: Any) -> None:
        """Note something that the client handed over."""
        self.dumps.append(thing.model_dump_json(warnings=False) if hasattr(thing, "model_dump_json") else repr(thing))

    def found(self, where: str, holder: Any) -> None:
        """Note the verdict, if it is in ``holder``."""
        block = (holder or {}).get("hallucination")
        if block is not None:
            self.verdict, self.where = block, where

    def ended(self, **facts: Any) -> None:
        """Note the attributes that say how it ended, those that say something; ``__`` is a dot."""
        for name, value in facts.items():
            if value is not None:
                self.facts.append(f"`{name.replace('__', '.')}` {value}")

    @property
    def shows_the_answer(self) -> bool:
        """Whether any of the scripted answer was in what the client handed over."""
        everything = " ".join([*self.dumps, self.text, repr(self.error)])
        return any(word in everything for word in ("Lanka", "Sri", "Kandy"))

    @property
    def cell(self) -> str:
        """The whole of it, in a few words."""
        told = list(self.facts)
        if self.error is not None:
            told.append(f"raises `{type(self.error).__name__}`")
        if self.where:
            told.append(f"verdict in {self.where}")
        return "; ".join(told)


@dataclass(frozen=True)
class Ask:
    """What a caller is to ask of which server, and how often it may try again (None: as the client does)."""

    url: str
    outcome: Outcome
    question: str
    retries: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The extra fields of the request's body."""
        return {} if self.outcome.options is None else {"hallucination": self.outcome.options}

    @property
    def messages(self) -> list[Any]:
        return [{"role": "user", "content": self.question}]

    @property
    def patience(self) -> dict[str, int]:
        """The argument of most clients."""
        return {} if self.retries is None else {"max_retries": self.retries}


@dataclass(frozen=True, eq=False)
class Caller:
    """One way to call one client. structured: the word of TEXTS for what it wants instead of prose. asks: how often it
    asks, where that is not once."""

    client: str
    call: str
    make: Callable[[Ask, bool, Seen], None]
    streams: tuple[bool, ...] = (False, True)
    structured: str = ""
    asks: dict[Outcome, int] = field(default_factory=dict)


def observe(house: House, caller: Caller, outcome: Outcome, stream: bool) -> Seen:
    """Make the call, on a server of its own where it kills the engine."""
    if outcome.deadly:
        with opened() as doomed:
            return _observe(doomed, caller, outcome, stream, retries=0)
    return _observe(house, caller, outcome, stream)


def _observe(house: House, caller: Caller, outcome: Outcome, stream: bool, retries: int | None = None) -> Seen:
    question = outcome.question + (f" As {caller.structured}." if caller.structured else "")
    seen, before = Seen(), house.asked
    try:
        caller.make(Ask(house.url, outcome, question, retries), stream, seen)
    except Exception as error:
        seen.error = error
    seen.asked = house.asked - before
    return seen


def as_dict(model: Any) -> dict[str, Any]:
    """A client's object as JSON has it."""
    content: dict[str, Any] = json.loads(model.model_dump_json(warnings=False))
    return content


__all__ = ["TEXT", "Ask", "Caller", "Outcome", "Seen", "as_dict", "observe"]
