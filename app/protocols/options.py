"""The request's ``hallucination`` object, and the policy that follows from it, the operator's defaults and ceilings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import from_validation
from app.settings import GuardDefaults, GuardSettings
from guard.errors import GuardError, RequestError
from guard.policy import Fallback, Hold, Mode, Policy
from guard.probe.bundle import Bundle

FIELD = "hallucination"
T = TypeVar("T")

Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
STRONGEST = 3.0
Strength = Annotated[float, Field(ge=0, le=STRONGEST, allow_inf_nan=False, strict=True)]


def given(field: str) -> dict[str, Any]:
    """The JSON schema of an object that has this field; null is as good as leaving it out."""
    return {"required": [field], "properties": {field: {"not": {"type": "null"}}}}


def _documented(schema: dict[str, Any]) -> None:
    """Add to the schema of the options what their validators say."""
    for name, option in schema["properties"].items():
        if {"type": "null"} not in option.get("anyOf", []):
            said = {key: option.pop(key) for key in ("title", "description", "default") if key in option}
            schema["properties"][name] = {**said, "anyOf": [option, {"type": "null"}]}
    schema["not"] = {"allOf": [given("threshold"), given("target_fpr")]}


class GuardOptions(BaseModel):
    """What a caller may ask of the guard; every field is optional."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_documented)

    mode: Mode | None = Field(None, description="off, score, flag or abstain")
    threshold: Unit | None = Field(None, description="flag at this risk")
    target_fpr: Annotated[float, Field(gt=0, lt=1, strict=True)] | None = Field(
        None, description="flag at the threshold that false alarms on right answers stay under, instead of `threshold`"
    )
    scale: Strength = Field(1.0, description="scale the H-neurons: 0 switches them off, 1 leaves them alone")
    tokens: Annotated[bool, Field(strict=True)] = Field(False, description="report the risk of each token")
    explain: Annotated[bool, Field(strict=True)] = Field(
        False, description="report what each signal adds to the risk of an answer that is not withheld"
    )
    explain_neurons: Annotated[bool, Field(strict=True)] = Field(
        False, description="`explain`, and report which neurons add most: a second pass over prompt and answer"
    )
    hold: Hold | None = Field(
        None,
        description="how much of a stream waits for its verdict in abstain mode, the only one that withholds: "
        "none of it, each window, or the whole answer",
    )
    fallback: Fallback | None = Field(None, description="how an abstention looks")
    prompt_check: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="in abstain mode: generate nothing when the prompt alone is as risky as the threshold says"
    )
    retry_scale: Strength | None = Field(
        None,
        description="in abstain mode: retry once with H-neurons scaled by this factor before an answer is withheld of "
        "which nothing was sent",
    )

    @model_validator(mode="before")
    @classmethod
    def _said(cls, raw: Any) -> Any:
        """What of them was said: null is as good as leaving a key out, whatever its kind."""
        return {name: value for name, value in raw.items() if value is not None} if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _one_threshold(self) -> GuardOptions:
        if self.threshold is not None and self.target_fpr is not None:
            raise ValueError("give threshold or target_fpr, not both")
        return self


class HallucinationOptions(GuardOptions):
    """What a caller may ask of the guard; every field is optional."""  # its name in the OpenAPI document


_DEFAULTED = set(GuardDefaults.model_fields)


class PolicyResolver:
    """The operator's settings, resolved against the bundle once, at start; makes each request's policy.

    threshold: at which answers are flagged where a request does not say. prompt_threshold: the same of the risk before
    generation; None where the probe gives none. ceilings: how far a caller may go below the defaults, none of them
    None; stricter is always allowed. Neurons that are scaled, up or down, move answers and their scores away from what
    the probe was calibrated on.
    """

    def __init__(self, settings: GuardSettings, bundle: Bundle) -> None:
        """A ceiling that is not given is the default itself.

        Raises RequestError when thresholds are asked for that the bundle cannot give, GuardError for a ceiling that is
        stricter than the default.
        """
        self.settings = GuardSettings(**settings.model_dump(include=set(GuardSettings.model_fields)))
        self.bundle = bundle
        if settings.prompt_check:
            require_prompt_risk(bundle)
        self.threshold, self.prompt_threshold = self._thresholds(settings.threshold, settings.target_fpr)
        self.ceilings = _ceilings(settings, self.threshold, bundle)
        self._resolved = lru_cache(256)(self._resolve)  # callers ask for the same again and again

    @property
    def policy(self) -> Policy:
        """Of a request that says nothing."""
        return self._policy(self.settings, self.threshold, self.prompt_threshold)

    def resolve(self, raw: Any, token_risk_in_stream: bool = False) -> Policy:
        """The policy of one request's ``hallucination`` object, read already or not.

        Raises RequestError naming the field that is wrong, or looser than is allowed.
        """
        try:
            options = GuardOptions.model_validate({} if raw is None else raw)
        except ValidationError as error:
            raise from_validation(error, FIELD) from None
        return self._resolved(options, token_risk_in_stream)

    def _resolve(self, options: GuardOptions, token_risk_in_stream: bool) -> Policy:
        chosen = options.model_dump(exclude_none=True, include=_DEFAULTED)
        asked = self.settings.model_copy(update=chosen)
        _require_possible(options, asked.mode, self.bundle)
        threshold, before = self.threshold, self.prompt_threshold
        if options.threshold is not None or options.target_fpr is not None:
            threshold, before = self._thresholds(options.threshold, asked.target_fpr)
            if self.must_check_prompts and before is not None and self.prompt_threshold is not None:
                before = min(before, self.prompt_threshold)  # a threshold for answers must not loosen the prompt check
        self._require_allowed(options, asked.mode, threshold)
        return replace(
            self._policy(asked, threshold, before),
            scale=options.scale,
            retry_scale=options.retry_scale,
            tokens=options.tokens,
            explain=options.explain or options.explain_neurons,
            explain_neurons=options.explain_neurons,
            token_risk_in_stream=token_risk_in_stream,
        )

    @property
    def must_check_prompts(self) -> bool:
        """Whether prompts of answers that are withheld are checked, whatever a caller asks."""
        return self.settings.prompt_check and self.ceilings.loosest_mode is Mode.ABSTAIN

    def _policy(self, asked: GuardSettings, threshold: float, before: float | None) -> Policy:
        checks = asked.prompt_check and asked.mode is Mode.ABSTAIN
        return Policy(
            asked.mode,
            threshold,
            fallback=asked.fallback,
            prompt_threshold=before if checks else None,
            hold=asked.hold,
            fail=self.settings.fail,
            token_bias=self.ceilings.token_bias,
            declines_pass=self.ceilings.loosest_mode is not Mode.ABSTAIN,
        )

    def _thresholds(self, threshold: float | None, target_fpr: float) -> tuple[float, float | None]:
        """(of an answer, of the risk before it)."""
        bundle = self.bundle
        if threshold is not None:
            return threshold, threshold if bundle.has_prompt_risk else None
        return bundle.threshold(target_fpr), bundle.prompt_threshold(target_fpr) if bundle.has_prompt_risk else None

    def _require_allowed(self, options: GuardOptions, mode: Mode, threshold: float) -> None:
        """Refuse what is looser than the operator's ceilings."""
        limits = self.ceilings
        if options.explain_neurons and not limits.explain_neurons:
            raise RequestError(
                "this server does not tell neurons apart; its operator can have it do so with HGUARD_EXPLAIN_NEURONS",
                param=f"{FIELD}.explain_neurons",
            )
        if _looser(mode, limits.loosest_mode):
            raise _too_loose("mode", mode, limits.loosest_mode)
        if threshold > limits.max_threshold:
            which = "threshold" if options.threshold is not None else "target_fpr"
            raise RequestError(
                f"threshold {threshold:.4f} exceeds this server's maximum {limits.max_threshold:.4f}; its operator can "
                "raise it with HGUARD_MAX_THRESHOLD",
                param=f"{FIELD}.{which}",
            )
        for name, strength in (("scale", options.scale), ("retry_scale", options.retry_scale)):
            if strength is None or strength == 1 or limits.min_scale <= strength <= limits.max_scale:
                continue
            over = strength > limits.max_scale
            limit, text, way = (
                (limits.max_scale, "exceeds this server's maximum", "raise it with HGUARD_MAX_SCALE")
                if over
                else (limits.min_scale, "is below this server's minimum", "lower it with HGUARD_MIN_SCALE")
            )
            raise RequestError(f"{name} {strength:g} {text} {limit:g}; its operator can {way}", param=f"{FIELD}.{name}")
        if mode is not Mode.ABSTAIN:
            return
        if options.hold is not None and _looser(options.hold, limits.loosest_hold):
            raise _too_loose("hold", options.hold, limits.loosest_hold)
        if options.prompt_check is False and self.must_check_prompts:
            raise RequestError("prompt_check is required by this server", f"{FIELD}.prompt_check")


@dataclass(frozen=True, slots=True)
class ResolvedCeilings:
    """``Ceilings`` with every default filled in."""

    loosest_mode: Mode
    max_threshold: float
    loosest_hold: Hold
    max_scale: float
    min_scale: float
    token_bias: bool
    explain_neurons: bool


def _ceilings(settings: GuardSettings, threshold: float, bundle: Bundle) -> ResolvedCeilings:
    mode = settings.loosest_mode or settings.mode
    # Where the operator does nothing at the threshold, a caller may set any, and get round it in any way.

    def given(value: T | None, acting: T, otherwise: T) -> T:
        return value if value is not None else acting if mode.acts else otherwise

    found = ResolvedCeilings(
        mode,
        given(settings.max_threshold, threshold, 1.0),
        settings.loosest_hold or (settings.hold if mode is Mode.ABSTAIN else Hold.NONE),
        given(settings.max_scale, 1.0, STRONGEST) if bundle.h_neurons else 1.0,
        given(settings.min_scale, 1.0, 0.0) if bundle.h_neurons else 1.0,
        settings.allow_token_bias or mode is not Mode.ABSTAIN,
        bool(settings.explain_neurons) and bundle.told_by_neurons,
    )
    for name, asked, limit in (("mode", settings.mode, mode), ("hold", settings.hold, found.loosest_hold)):
        if _looser(asked, limit):
            raise GuardError(f"the default {name} ({asked}) is looser than --loosest-{name} ({limit})")
    if threshold > found.max_threshold:
        limit_text = f"--max-threshold ({found.max_threshold})"
        raise GuardError(f"the default threshold ({threshold:.4f}) is over {limit_text}")
    return found


def _require_possible(options: GuardOptions, mode: Mode, bundle: Bundle) -> None:
    if options.scale != 1 and bundle.h_neurons == 0:
        raise RequestError("this probe has no neurons that can be scaled", param=f"{FIELD}.scale")
    if options.retry_scale is not None and bundle.h_neurons == 0:
        raise RequestError("this probe has no neurons that a second try could scale", param=f"{FIELD}.retry_scale")
    if options.explain_neurons and not bundle.told_by_neurons:
        raise RequestError("no neurons count in the risks of this probe", param=f"{FIELD}.explain_neurons")
    for name in ("prompt_check", "retry_scale"):
        value = getattr(options, name)
        if value is not None and value is not False and mode is not Mode.ABSTAIN:
            raise RequestError(f"only mode abstain withholds answers, so {name} needs it", param=f"{FIELD}.{name}")
    if options.prompt_check:
        require_prompt_risk(bundle)


def _looser(asked: Mode | Hold, ceiling: Mode | Hold) -> bool:
    order = list(type(ceiling))
    return order.index(asked) < order.index(ceiling)


def _too_loose(name: str, asked: str, ceiling: str) -> RequestError:
    return RequestError(
        f"{name} {asked} is looser than this server allows ({ceiling}); its operator can allow it with "
        f"HGUARD_LOOSEST_{name.upper()}",
        param=f"{FIELD}.{name}",
    )


def require_prompt_risk(bundle: Bundle) -> None:
    """Raise RequestError where the probe gives no risk before generation."""
    if not bundle.has_prompt_risk:
        text = "this probe gives no risk before generation; `hguard fit` makes one that does"
        raise RequestError(text, param=f"{FIELD}.prompt_check")
