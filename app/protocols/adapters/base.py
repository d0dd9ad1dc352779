"""What every adapter offers, and what it has to tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from app.protocols.wire import Writer
from guard.engine.context import RequestContext, Verdict
from guard.policy import Action, Fallback

BROKEN = "engine failed during generation; response is incomplete"


@dataclass(slots=True)
class ResponseContext:
    """One response's verdicts, and the texts that stand in for what is withheld."""

    call: RequestContext
    writer: Writer
    refusal: str
    fallback: str

    @property
    def verdicts(self) -> list[Verdict]:
        """Those that there are by now, by choice."""
        return [self.call.verdicts[index] for index in sorted(self.call.verdicts)]

    def block(self, verdicts: list[Verdict]) -> dict[str, Any]:
        """The ``hallucination`` object."""
        return self.writer.write(verdicts)

    def stand_in(self, verdict: Verdict) -> str:
        """The message in place of an answer, apart from what of it had been shown."""
        return f"\n\n{self.fallback}" if verdict.shown else self.fallback


def withheld(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.decision.action is Action.ABSTAINED


def refuses(verdict: Verdict) -> bool:
    """Whether a withheld answer is to look like a refusal; else like an answer, with a message in its place."""
    return verdict.policy.fallback is Fallback.REFUSAL


def keep_only(content: dict[str, Any], names: frozenset[str]) -> None:
    """Leave of a withheld answer what ``names`` lists; every other field there is, or will be, holds null."""
    for name in content:
        if name not in names:
            content[name] = None


def recount(
    usage: dict[str, Any] | None,
    call: RequestContext,
    generated: str,
    total: str | None = None,
    index: int | None = None,
) -> None:
    """Count in ``usage`` what was generated, which is not always what the outputs showed: of all answers, or of one."""
    if usage is None:
        return
    uncounted = call.uncounted.total() if index is None else call.uncounted[index]
    for name in (generated, total):
        if name is not None and isinstance(usage.get(name), int):
            usage[name] += uncounted


class Stream(Protocol):
    """Edits the frames of one stream."""

    def edit(self, content: dict[str, Any], event: str | None) -> Iterable[bytes]:
        """The frames in the place of this one."""
        ...

    def untouched(self, payload: bytes) -> bool:
        """Whether a frame with this JSON text passes as it is."""
        ...

    def error(self, message: str, status: int = 500) -> bytes:
        """Frames that end the stream with an error; ``status`` is what it would have been before the stream began."""
        ...


class Adapter(Protocol):
    """One API's way to ask and to answer. separates_thoughts: whether the thoughts of a model that thinks stand apart
    from its answer in it."""

    separates_thoughts: bool

    def prepare(self, body: dict[str, Any]) -> bool:
        """Mend what vLLM would fall over in a valid request; whether there was anything."""
        ...

    def wants_token_risk(self, body: dict[str, Any]) -> bool:
        """Whether a stream is to carry the risk of each token beside it."""
        ...

    def shows_nothing(self, body: dict[str, Any]) -> bool:
        """Whether the response will show the prompt alone: what the engine draws is no answer."""
        ...

    def write(self, content: dict[str, Any], context: ResponseContext) -> None:
        """Write the verdict into a whole response."""
        ...

    def stream(self, context: ResponseContext) -> Stream:
        """What edits the frames of a stream."""
        ...
