"""The request's ``hallucination`` object, and the policy that follows from it, the operator's defaults and ceilings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import from_validation
from guard.errors import GuardError, RequestError
from guard.policy import Fail, Fallback, Hold, Mode, Policy
from guard.probe.bundle import Bundle

FIELD = "hallucination"

Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
STRONGEST = 3.0
Strength = Annotated[float, Field(ge=0, le=STRONGEST, allow_inf_nan=False, strict=True)]


class Options(BaseModel):
    """What a caller may ask of the guard; every field is optional."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="HallucinationOptions")

    mode: Mode | None = Field(None, description="off, score, flag or abstain")
    threshold: Unit | None = Field(None, description="flag at this risk")
    target_fpr: Annotated[float, Field(gt=0, lt=1, strict=True)] | None = Field(
        None, description="flag at the threshold that false alarms on right answers stay under, instead of `threshold`"
    )
    damp: Strength = Field(1.0, description="scale the H-neurons: 0 switches them off, 1 leaves them alone")
    tokens: Annotated[bool, Field(strict=True)] = Field(False, description="report the risk of each token")
    hold: Hold | None = Field(
        None,
        description="how much of a stream waits for its verdict in abstain mode, the only one that withholds: "
        "none of it, each window, or the whole answer",
    )
    fallback: Fallback | None = Field(None, description="how an abstention looks")
    preempt: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="in abstain mode: generate nothing when the prompt alone is as risky as the threshold says"
    )
    retry: Strength | None = Field(
        None,
        description="in abstain mode: before an answer is withheld of which nothing has left, generate it once more "
        "with H-neurons of this strength, and answer if that risk passes",
    )

    @model_validator(mode="after")
    def _one_threshold(self) -> Options:
        if self.threshold is not None and self.target_fpr is not None:
            raise ValueError("give threshold or target_fpr, not both")
        return self


@dataclass(frozen=True, slots=True)
class Defaults:
    """The operator's defaults and ceilings, resolved against the bundle once, at start.

    foreseen: the threshold of the risk before generation; None where the probe gives none. loosest_mode,
    highest_threshold, loosest_hold, highest_damp, lowest_damp: how far a caller may go below the defaults; stricter is
    always allowed. Neurons that are scaled, up or down, move answers and their scores away from what the probe was
    calibrated on.
    """

    mode: Mode
    threshold: float
    foreseen: float | None = None
    preempt: bool = False
    hold: Hold = Hold.ANSWER
    fallback: Fallback = Fallback.REFUSAL
    fail: Fail | None = None
    loosest_mode: Mode = Mode.OFF
    highest_threshold: float = 1.0
    loosest_hold: Hold = Hold.NONE
    highest_damp: float = STRONGEST
    lowest_damp: float = 0.0

    @property
    def policy(self) -> Policy:
        preempts = self.preempt and self.mode is Mode.ABSTAIN
        return Policy(
            self.mode,
            self.threshold,
            fallback=self.fallback,
            preempt=self.foreseen if preempts else None,
            hold=self.hold,
            fail=self.fail,
        )

    @property
    def must_look(self) -> bool:
        """Whether answers that are withheld are foreseen, whatever a caller asks."""
        return self.preempt and self.loosest_mode is Mode.ABSTAIN

    def at_threshold(self, bundle: Bundle, threshold: float | None, target_fpr: float) -> Defaults:
        """With the thresholds that these make for ``bundle``."""
        if threshold is not None:
            return replace(self, threshold=threshold, foreseen=threshold if bundle.foresees else None)
        foreseen = bundle.preemptive_threshold(target_fpr) if bundle.foresees else None
        return replace(self, threshold=bundle.threshold(target_fpr), foreseen=foreseen)


def parse(raw: Any, defaults: Defaults, bundle: Bundle, token_risk_in_stream: bool = False) -> Policy:
    """The policy of one request. Raises RequestError naming the field that is wrong, or looser than is allowed."""
    try:
        options = Options.model_validate({} if raw is None else said(raw))
    except ValidationError as error:
        raise from_validation(error, FIELD) from None
    asked = defaults
    if options.threshold is not None or options.target_fpr is not None:
        asked = defaults.at_threshold(bundle, options.threshold, options.target_fpr or 0)
    mode = options.mode or defaults.mode
    _require_possible(options, mode, bundle)
    _require_allowed(options, mode, asked.threshold, defaults)
    wanted = defaults.preempt if options.preempt is None else options.preempt
    foreseen = asked.foreseen
    if defaults.must_look and foreseen is not None and defaults.foreseen is not None:
        foreseen = min(foreseen, defaults.foreseen)  # a threshold for answers must not loosen the look at the prompt
    return Policy(
        mode,
        asked.threshold,
        damp=options.damp,
        tokens=options.tokens,
        fallback=options.fallback or defaults.fallback,
        token_risk_in_stream=token_risk_in_stream,
        preempt=foreseen if wanted and mode is Mode.ABSTAIN else None,
        hold=options.hold or defaults.hold,
        retry=options.retry,
        fail=defaults.fail,
    )


def said(raw: Any) -> Any:
    """What of the options was said: null is as good as leaving a key out, whatever its kind."""
    return {name: value for name, value in raw.items() if value is not None} if isinstance(raw, dict) else raw


def _require_possible(options: Options, mode: Mode, bundle: Bundle) -> None:
    if options.damp != 1 and bundle.h_neurons == 0:
        raise RequestError("this probe has no neurons that can be dampened", param=f"{FIELD}.damp")
    if options.retry is not None and bundle.h_neurons == 0:
        raise RequestError("this probe has no neurons that a second try could dampen", param=f"{FIELD}.retry")
    for name in ("preempt", "retry"):
        value = getattr(options, name)
        if value is not None and value is not False and mode is not Mode.ABSTAIN:
            raise RequestError(f"only mode abstain withholds answers, so {name} needs it", param=f"{FIELD}.{name}")
    if options.preempt:
        require_foresight(bundle)


def _require_allowed(options: Options, mode: Mode, threshold: float, defaults: Defaults) -> None:
    """Refuse what is looser than the operator's ceilings."""
    if _looser(mode, defaults.loosest_mode):
        raise _too_loose("mode", mode, defaults.loosest_mode)
    if threshold > defaults.highest_threshold:
        which = "threshold" if options.threshold is not None else "target_fpr"
        raise RequestError(
            f"this asks to flag from a risk of {threshold:.4f}, where this server flags from "
            f"{defaults.highest_threshold:.4f}; its operator can allow more with HGUARD_HIGHEST_THRESHOLD",
            param=f"{FIELD}.{which}",
        )
    for name, strength in (("damp", options.damp), ("retry", options.retry)):
        if strength is None or strength == 1 or defaults.lowest_damp <= strength <= defaults.highest_damp:
            continue
        over = strength > defaults.highest_damp
        bound, limit = ("most", defaults.highest_damp) if over else ("least", defaults.lowest_damp)
        raise RequestError(
            f"this server scales H-neurons by {limit:g} at {bound}, not by {strength:g}; its operator can allow "
            f"{'more with HGUARD_HIGHEST_DAMP' if over else 'less with HGUARD_LOWEST_DAMP'}",
            param=f"{FIELD}.{name}",
        )
    if mode is not Mode.ABSTAIN:
        return
    if options.hold is not None and _looser(options.hold, defaults.loosest_hold):
        raise _too_loose("hold", options.hold, defaults.loosest_hold)
    if options.preempt is False and defaults.must_look:
        raise RequestError("this server looks before it answers; preempt cannot be switched off", f"{FIELD}.preempt")


def _looser(asked: Mode | Hold, ceiling: Mode | Hold) -> bool:
    order = list(type(ceiling))
    return order.index(asked) < order.index(ceiling)


def _too_loose(name: str, asked: str, ceiling: str) -> RequestError:
    return RequestError(
        f"{name} {asked} is looser than this server allows ({ceiling}); its operator can allow it with "
        f"HGUARD_LOOSEST_{name.upper()}",
        param=f"{FIELD}.{name}",
    )


def require_foresight(bundle: Bundle) -> None:
    """Raise RequestError where the probe cannot look before it answers."""
    if not bundle.foresees:
        text = "this probe gives no risk before generation; `hguard fit` makes one that does"
        raise RequestError(text, param=f"{FIELD}.preempt")


def resolve(
    bundle: Bundle,
    *,
    mode: Mode,
    threshold: float | None,
    target_fpr: float,
    preempt: bool = False,
    hold: Hold = Hold.ANSWER,
    fallback: Fallback = Fallback.REFUSAL,
    fail: Fail | None = None,
    loosest_mode: Mode | None = None,
    highest_threshold: float | None = None,
    loosest_hold: Hold | None = None,
    highest_damp: float | None = None,
    lowest_damp: float | None = None,
) -> Defaults:
    """The operator's settings for ``bundle``. A ceiling that is not given is the default itself.

    Raises RequestError when thresholds are asked for that the bundle cannot give, GuardError for a ceiling that is
    stricter than the default.
    """
    if preempt:
        require_foresight(bundle)
    defaults = Defaults(mode, 1.0, preempt=preempt, hold=hold, fallback=fallback, fail=fail)
    defaults = defaults.at_threshold(bundle, threshold, target_fpr)
    ceiling = loosest_mode or mode
    # Where the operator does nothing at the threshold, a caller may set any, and get round it in any way.
    acts = ceiling in (Mode.FLAG, Mode.ABSTAIN)
    if highest_threshold is None:
        highest_threshold = defaults.threshold if acts else 1.0
    if highest_damp is None:
        highest_damp = 1.0 if acts else STRONGEST
    if lowest_damp is None:
        lowest_damp = 1.0 if acts else 0.0
    if loosest_hold is None:
        loosest_hold = hold if ceiling is Mode.ABSTAIN else Hold.NONE
    for name, asked, limit in (("mode", mode, ceiling), ("hold", hold, loosest_hold)):
        if _looser(asked, limit):
            raise GuardError(f"the default {name} ({asked}) is looser than --loosest-{name} ({limit})")
    if defaults.threshold > highest_threshold:
        raise GuardError(
            f"the default threshold ({defaults.threshold:.4f}) is over --highest-threshold ({highest_threshold})"
        )
    return replace(
        defaults,
        loosest_mode=ceiling,
        highest_threshold=highest_threshold,
        loosest_hold=loosest_hold,
        highest_damp=highest_damp,
        lowest_damp=lowest_damp,
    )
