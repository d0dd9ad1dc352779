"""The settings of ``hguard serve``: flags, then ``HGUARD_*`` variables, then ``hguard.toml``, then these defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from guard.policy import Mode

ATLAS = Path(__file__).parents[1] / "models" / "atlas"
BEYOND = "I am not certain enough of the answer to give it."


class Settings(BaseSettings):
    """One source of truth: each field is a flag, an environment variable and a key of the file."""

    model_config = SettingsConfigDict(env_prefix="HGUARD_", toml_file="hguard.toml", extra="forbid", frozen=True)

    model: Annotated[str, Field(description="folder or Hugging Face id of the model to serve")] = "atlas"
    revision: Annotated[str | None, Field(description="revision of a model from the Hub")] = None
    probe: Annotated[str | None, Field(description="probe bundle: a folder, or hf://owner/name@revision")] = None
    served_model_name: Annotated[str | None, Field(description="name in the API; default: the model's own")] = None
    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535, description="port to listen on")] = 8000
    mode: Annotated[Mode, Field(description="what the guard does when a request does not say")] = Mode.SCORE
    threshold: Annotated[float | None, Field(ge=0, le=1, description="flag at this risk; overrides target-fpr")] = None
    target_fpr: Annotated[
        float, Field(gt=0, lt=1, description="flag at this rate of false alarms on right answers")
    ] = 0.05
    preempt: Annotated[
        bool, Field(description="in abstain mode: generate nothing when the prompt alone is as risky")
    ] = False
    refusal: Annotated[str, Field(min_length=1, description="text of an abstention")] = BEYOND
    fallback_text: Annotated[str, Field(min_length=1, description="text in place of an answer (fallback: message)")] = (
        BEYOND
    )
    compile: Annotated[bool, Field(description="compile the model on CPU: slower start, faster answers")] = False
    relaxed: Annotated[bool, Field(description="tolerate a chat template or dtype that the probe was not fit on")] = (
        False
    )
    max_body_bytes: Annotated[int, Field(ge=1024, description="largest request body")] = 2 << 20
    max_risk_items: Annotated[int, Field(ge=1, description="most items of one /risk request")] = 32
    slots: Annotated[int, Field(ge=1, description="answers that can be guarded at once")] = 1024

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
