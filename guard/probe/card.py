"""The schema of ``probe.json``: what a bundle says about itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt

SCHEMA_VERSION = 1

Positive = Annotated[FiniteFloat, Field(gt=0)]
Triple = tuple[FiniteFloat, FiniteFloat, FiniteFloat]


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


class StackParameters(_Strict):
    """Parameters of ``guard.probe.readout.Stack``, one value for each of neurons, entropy, surprise."""

    mean: Triple
    scale: tuple[Positive, Positive, Positive]
    weight: Triple
    bias: FiniteFloat


class ReadoutParameters(_Strict):
    """Parameters of ``guard.probe.readout.Readout``."""

    window: PositiveInt
    answer: StackParameters
    platt: tuple[FiniteFloat, FiniteFloat]
    token: StackParameters


class Training(_Strict):
    """How the neurons were found."""

    method: Literal["l1-logistic-regression", "random"]  # random neurons say nothing; benchmarks use them
    labels: Literal["1-vs-1"]
    C: Positive
    seed: int
    span: Literal["answer-tokens-and-last-prompt-token"]
    answers: dict[str, int]


class Interval(_Strict):
    """An estimate with its bootstrap 95 % interval."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class SetMetrics(_Strict):
    """Detection on one set of held-out answers: AUROC of each part alone beside the stack."""

    n: PositiveInt
    wrong: int
    auroc: dict[str, Interval]
    ece: FiniteFloat | None = None
    brier: FiniteFloat | None = None


class ProbeCard(_Strict):
    """``probe.json``."""

    schema_version: Literal[1]
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=96)]
    model: ModelIdentity
    training: Training
    intercept: FiniteFloat
    readout: ReadoutParameters
    thresholds: dict[str, FiniteFloat]
    metrics: dict[str, SetMetrics]
    tensors_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
