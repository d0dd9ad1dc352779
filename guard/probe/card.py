"""The schema of ``probe.json``: what a bundle says about itself."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from guard.probe.readout import Readout, Stack
from guard.probe.signals import COLUMN, COUNTED

SCHEMA_VERSION = 2

Positive = Annotated[FiniteFloat, Field(gt=0)]
Unit = Annotated[FiniteFloat, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelIdentity(_Strict):
    """Which model the probe was fit on. Fine-tuning can move the neurons, so a probe serves no other model."""

    id: str
    revision: str | None = None
    fingerprint: str
    dtype: Literal["float32", "bfloat16", "float16"]
    quantization: str | None = None
    chat_template_sha256: str
    layers: PositiveInt
    neurons_per_layer: PositiveInt
    engine: str


class Term(_Strict):
    """What one signal adds to a stack: weight (x - mean) / scale, where x is the signal pooled and turned so that
    higher is riskier."""

    mean: FiniteFloat
    scale: Positive
    weight: FiniteFloat


class StackParameters(_Strict):
    """Parameters of ``guard.probe.readout.Stack``, by name of a signal; one that is not there has no weight."""

    signals: Annotated[dict[str, Term], Field(min_length=1)]
    bias: FiniteFloat

    @field_validator("signals")
    @classmethod
    def _known(cls, terms: dict[str, Term]) -> dict[str, Term]:
        if unknown := sorted(terms.keys() - COLUMN.keys()):
            raise ValueError(f"this release does not measure {', '.join(unknown)}; it measures {', '.join(COLUMN)}")
        if idle := sorted(terms.keys() - COUNTED):
            raise ValueError(f"{', '.join(idle)} counts in no risk")
        return terms

    @classmethod
    def of(cls, stack: Stack) -> StackParameters:
        """Those of ``stack``, without what has no weight."""
        columns = zip(COLUMN, stack.mean, stack.scale, stack.weight, strict=True)
        terms = {name: Term(mean=mean, scale=scale, weight=weight) for name, mean, scale, weight in columns if weight}
        return cls(signals=terms, bias=stack.bias)

    def stack(self) -> Stack:
        terms = [self.signals.get(name, Term(mean=0.0, scale=1.0, weight=0.0)) for name in COLUMN]
        mean, scale, weight = zip(*((term.mean, term.scale, term.weight) for term in terms), strict=True)
        return Stack(mean, scale, weight, self.bias)


class ReadoutParameters(_Strict):
    """Parameters of ``guard.probe.readout.Readout``."""

    window: PositiveInt
    answer: StackParameters
    platt: tuple[FiniteFloat, FiniteFloat]
    token: StackParameters
    isotonic: Annotated[tuple[tuple[FiniteFloat, Unit], ...], Field(min_length=2, max_length=4096)] | None = None
    prompt_platt: tuple[FiniteFloat, FiniteFloat] | None = None
    calibrated_tokens: PositiveInt | None = None
    tail: Positive | None = None
    distance_limit: Positive | None = None

    @classmethod
    def of(cls, readout: Readout) -> ReadoutParameters:
        return cls(
            window=readout.window,
            answer=StackParameters.of(readout.answer),
            platt=readout.platt,
            token=StackParameters.of(readout.token),
            isotonic=readout.isotonic,
            prompt_platt=readout.prompt_platt,
            calibrated_tokens=readout.calibrated_tokens,
            tail=readout.tail or None,
            distance_limit=readout.distance_limit,
        )

    def readout(self) -> Readout:
        return Readout(
            self.window,
            self.answer.stack(),
            self.platt,
            self.token.stack(),
            self.isotonic,
            self.prompt_platt,
            self.calibrated_tokens,
            self.tail or 0.0,
            self.distance_limit,
        )

    @field_validator("isotonic")
    @classmethod
    def _ascending(cls, points: tuple[tuple[float, float], ...] | None) -> tuple[tuple[float, float], ...] | None:
        steps = list(pairwise(points or ()))
        if any(after[0] <= before[0] or after[1] < before[1] for before, after in steps):
            raise ValueError("isotonic points must ascend")
        return points


Span = Literal["answer-tokens-and-last-prompt-token", "fact-tokens-and-the-one-before"]


# Random neurons say nothing; benchmarks use them. heads: there are no neurons.
TrainingMethod = Literal["l1-logistic-regression", "random", "imported", "heads"]


class Training(_Strict):
    """How the neurons were found. A list that was imported does not say, so it leaves out what it cannot know."""

    method: TrainingMethod
    labels: Literal["1-vs-1"] | None = None
    C: Positive | None = None
    seed: int | None = None
    span: Span | None = None
    answers: dict[str, int]

    @model_validator(mode="after")
    def _complete(self) -> Training:
        missing = [name for name in ("labels", "C", "seed", "span") if getattr(self, name) is None]
        if self.method == "heads":
            missing = [name for name in missing if name != "C"]
        if missing and self.method != "imported":
            raise ValueError(f"{', '.join(missing)} cannot be left out of {self.method}")
        return self


class Interval(_Strict):
    """An estimate with its bootstrap 95 % interval."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class ThresholdMetrics(_Strict):
    """What abstaining at one threshold does on held-out answers: of the right ones, the share withheld by mistake; of
    the wrong ones, the share withheld; of all, the share that is still given."""

    false_alarms: Unit
    caught: Unit
    coverage: Unit


class SetMetrics(_Strict):
    """Detection on one set of held-out answers: AUROC of each part alone beside the stack."""

    n: PositiveInt
    wrong: NonNegativeInt
    auroc: dict[str, Interval]
    ece: FiniteFloat | None = None
    brier: FiniteFloat | None = None


class ProbeCard(_Strict):
    """``probe.json``."""

    schema_version: Literal[2]
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=96)]
    model: ModelIdentity
    training: Training
    intercept: FiniteFloat
    readout: ReadoutParameters
    thresholds: dict[str, FiniteFloat]
    at_thresholds: dict[str, ThresholdMetrics] | None = None
    metrics: dict[str, SetMetrics]
    tensors_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @field_validator("thresholds", "at_thresholds")
    @classmethod
    def _by_rate(cls, by_rate: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in by_rate or ():
            if not re.fullmatch(r"0\.\d+", name):
                raise ValueError(f"{name!r} is no rate of false alarms, such as 0.05")
        return by_rate

    def as_json(self) -> dict[str, Any]:
        """As ``probe.json`` has it: what is absent is left out."""
        return self.model_dump(mode="json", exclude_none=True)
