"""What an evaluation can be told; ``hguard eval`` has a flag for each field."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from guard.harness.config import AnswerConfig

Scale = Annotated[float, Field(ge=0, le=3, allow_inf_nan=False)]


class EvalConfig(AnswerConfig):
    """``hguard eval``."""

    scales: tuple[Scale, ...] = Field(
        (), description="also answer with the neurons scaled by each of these (0 to 3), with commas between them"
    )
    random_draws: int = Field(1, ge=0, description="draws of random neurons that are scaled beside them")
    baselines: bool = Field(True, description="measure what needs a second engine and further samples")

    @field_validator("scales", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part for part in value.split(",") if part] if isinstance(value, str) else value
