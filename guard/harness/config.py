"""What every command that asks a model questions can be told."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class AnswerConfig(BaseModel):
    """How answers are generated. Greedy, each to its end or to ``max_tokens``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int = Field(64, ge=1, description="maximum tokens of an answer")
