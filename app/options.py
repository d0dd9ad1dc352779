"""The request's ``hallucination`` object, and the policy that follows from it and the operator's defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import from_validation
from guard.errors import RequestError
from guard.policy import Fallback, Mode, Policy
from guard.probe.bundle import Bundle

FIELD = "hallucination"

Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]


class Options(BaseModel):
    """What a caller may ask of the guard; every field is optional."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Mode | None = Field(None, description="off, score, flag or abstain")
    threshold: Unit | None = Field(None, description="flag at this risk")
    target_fpr: Annotated[float, Field(gt=0, lt=1, strict=True)] | None = Field(
        None, description="flag at the threshold that false alarms on right answers stay under, instead of `threshold`"
    )
    damp: Annotated[float, Field(ge=0, le=3, allow_inf_nan=False, strict=True)] = Field(
        1.0, description="scale the H-neurons: 0 switches them off, 1 leaves them alone"
    )
    tokens: Annotated[bool, Field(strict=True)] = Field(False, description="report the risk of each token")
    hold: Literal["answer"] | None = Field(
        None, description="how much of a stream waits for its verdict; abstain mode holds the whole answer"
    )
    fallback: Fallback = Field(Fallback.REFUSAL, description="how an abstention looks")
    preempt: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="in abstain mode: generate nothing when the prompt alone is as risky as the threshold says"
    )

    @model_validator(mode="after")
    def _one_threshold(self) -> Options:
        if self.threshold is not None and self.target_fpr is not None:
            raise ValueError("give threshold or target_fpr, not both")
        return self


@dataclass(frozen=True, slots=True)
class Defaults:
    """The operator's defaults, resolved against the bundle once, at start."""

    mode: Mode
    threshold: float
    foreseen: float | None = None  # the threshold of the risk before generation; None where the probe gives none
    preempt: bool = False

    @classmethod
    def resolve(
        cls, mode: Mode, threshold: float | None, target_fpr: float, bundle: Bundle, preempt: bool = False
    ) -> Defaults:
        """Raises RequestError when thresholds are asked for that the bundle cannot give."""
        if preempt and not bundle.foresees:
            raise _no_foresight()
        if threshold is not None:
            return cls(mode, threshold, threshold if bundle.foresees else None, preempt)
        foreseen = bundle.preemptive_threshold(target_fpr) if bundle.foresees else None
        return cls(mode, bundle.threshold(target_fpr), foreseen, preempt)

    @property
    def policy(self) -> Policy:
        preempts = self.preempt and self.mode is Mode.ABSTAIN
        return Policy(self.mode, self.threshold, preempt=self.foreseen if preempts else None)


def parse(raw: Any, defaults: Defaults, bundle: Bundle, token_risk_in_stream: bool = False) -> Policy:
    """The policy of one request. Raises RequestError naming the field that is wrong."""
    try:
        options = Options.model_validate({} if raw is None else raw)
    except ValidationError as error:
        raise from_validation(error, FIELD) from None
    foreseen: float | None
    if options.threshold is not None:
        threshold, foreseen = options.threshold, options.threshold
    elif options.target_fpr is not None:
        threshold = bundle.threshold(options.target_fpr)
        foreseen = bundle.preemptive_threshold(options.target_fpr) if bundle.foresees else None
    else:
        threshold, foreseen = defaults.threshold, defaults.foreseen
    mode = options.mode or defaults.mode
    if options.damp != 1 and bundle.h_neurons == 0:
        raise RequestError("this probe has no neurons that can be dampened", param=f"{FIELD}.damp")
    wanted = defaults.preempt if options.preempt is None else options.preempt
    if options.preempt and mode is not Mode.ABSTAIN:
        raise RequestError("only mode abstain can refuse before generation", param=f"{FIELD}.preempt")
    if options.preempt and not bundle.foresees:
        raise _no_foresight()
    preempt = foreseen if wanted and mode is Mode.ABSTAIN else None
    return Policy(mode, threshold, options.damp, options.tokens, options.fallback, token_risk_in_stream, preempt)


def _no_foresight() -> RequestError:
    text = "this probe gives no risk before generation; `hguard fit` makes one that does"
    return RequestError(text, param=f"{FIELD}.preempt")
