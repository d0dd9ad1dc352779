"""What a benchmark can be told; ``hguard bench`` has a flag for each field but ``slots``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

Clients = Annotated[int, Field(ge=1)]


class BenchConfig(BaseModel):
    """The load, and what is compared under it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: int = Field(64, ge=1, description="tokens of each prompt")
    output: int = Field(64, ge=1, description="tokens of each answer")
    clients: tuple[Clients, ...] = Field((1, 8, 64), min_length=1, description="concurrent clients, comma-separated")
    requests: int = Field(4, ge=1, description="requests of each client in a round")
    rounds: int = Field(8, ge=1, description="rounds, after one to warm up")
    modes: tuple[str, ...] = Field(
        (),
        description="modes to compare, comma-separated, all if none is named: score, score+entropy, scale, risk; "
        "with --http score, flag, abstain; with --api also abstain:window and abstain:none, by what of a stream waits",
    )
    slots: int = Field(512, ge=1, description="of the score table")

    @field_validator("clients", "modes", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value
