"""What every API's adapter is, and what it has to tell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ValidationError, model_validator
from starlette.responses import JSONResponse

from app.errors import from_validation
from app.ingress.body import as_object
from app.protocols.adapters.sse import Stream
from app.protocols.options import FIELD, HallucinationOptions
from app.protocols.wire import Hallucination, Writer
from guard.compat import ErrorResponse
from guard.engine.context import RequestContext, Verdict
from guard.errors import RequestError
from guard.policy import Action, Fallback

BROKEN = "engine failed during generation; response is incomplete"


def _options(raw: Any) -> HallucinationOptions | None:
    """The options; what is wrong with them is all that is said of a request, and names the field."""
    try:
        return None if raw is None else HallucinationOptions.model_validate(raw)
    except ValidationError as error:
        raise from_validation(error, FIELD) from None


class GuardedRequest(BaseModel):
    """A request of vLLM's, with what its caller asks of the guard."""

    hallucination: Annotated[HallucinationOptions | None, BeforeValidator(_options)] = None

    @model_validator(mode="before")
    @classmethod
    def _possible(cls, content: Any) -> dict[str, Any]:
        """Before vLLM's own checks, which fall over some of it."""
        asked = as_object(content)
        if asked.get("use_beam_search"):
            raise RequestError("beam search is not guarded; use n instead", param="use_beam_search")
        if asked.get("messages") == [] and "messages" in cls.model_fields:
            raise RequestError("messages must hold at least one message", param="messages")
        return asked


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

    def block(self, verdicts: list[Verdict]) -> Hallucination:
        """The ``hallucination`` object."""
        return self.writer.write(verdicts)

    def stand_in(self, verdict: Verdict) -> str:
        """The message in place of an answer, apart from what of it had been shown."""
        return f"\n\n{self.fallback}" if verdict.sent_tokens else self.fallback


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
    more = call.usage_adjustment.total() if index is None else call.usage_adjustment[index]
    for name in (generated, total):
        if name is not None and isinstance(usage.get(name), int):
            usage[name] += more


class Adapter(ABC):
    """One API: how it asks vLLM, and how a verdict looks in what it answers.

    path: of its route. serving, method: which object in the app's state answers there, and its method that does.
    request, response: the bodies. turns: the field that holds the conversation, None where there is none. lengths:
    those that say how long an answer may get. counts: those that say how many there are. prompts: the one that may hold
    several prompts, each answered. separates_thoughts: whether the thoughts of a model that thinks stand apart from its
    answer.
    """

    path: ClassVar[str]
    serving: ClassVar[str]
    method: ClassVar[str]
    request: ClassVar[type[GuardedRequest]]
    response: ClassVar[type[BaseModel]]
    turns: ClassVar[str | None]
    lengths: ClassVar[tuple[str, ...]]
    counts: ClassVar[tuple[str, ...]] = ()
    prompts: ClassVar[str | None] = None
    separates_thoughts: ClassVar[bool] = True

    async def ask(self, asked: GuardedRequest, request: Request) -> Any:
        """What vLLM answers: a response, an error, or a stream of frames, or of events that become some."""
        serving = getattr(request.app.state, self.serving)
        if serving is None:
            # As vLLM's own routes, whose handler answers 501.
            raise NotImplementedError(f"this model cannot be asked by {self.path}")
        return await getattr(serving, self.method)(asked, request)

    def wants_token_risk(self, asked: Any) -> bool:
        """Whether a stream is to carry the risk of each token beside it."""
        return False

    def shows_nothing(self, asked: Any) -> bool:
        """Whether the response will show the prompt alone: what the engine draws is no answer."""
        return False

    def content(self, response: BaseModel) -> dict[str, Any]:
        """A response of vLLM's as it is to be written."""
        return response.model_dump()

    def error(self, error: ErrorResponse) -> JSONResponse:
        """An error of vLLM's."""
        return JSONResponse(error.model_dump(), error.error.code)

    @abstractmethod
    def write(self, content: dict[str, Any], context: ResponseContext) -> None:
        """Write the verdict into a whole response."""

    @abstractmethod
    def stream(self, context: ResponseContext) -> Stream:
        """What edits the frames of a stream."""
