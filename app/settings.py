"""The settings of ``hguard serve``: flags, then ``HGUARD_*`` variables, then ``hguard.toml``, then these defaults."""

from __future__ import annotations

from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from app.ingress.auth import ApiKeys
from guard.errors import GuardError
from guard.policy import Fail, Fallback, Hold, Mode

ATLAS = Path(__file__).parents[1] / "models" / "atlas"
SMOLLM2 = Path(__file__).parents[1] / "models" / "smollm2"
BEYOND = "I am not certain enough of the answer to give it."


class GuardDefaults(BaseModel):
    """What the guard does where a request does not say."""

    model_config = ConfigDict(title="what the guard does where a request does not say")

    mode: Annotated[Mode, Field(description="what the guard does when a request does not say")] = Mode.SCORE
    threshold: Annotated[float | None, Field(ge=0, le=1, description="flag at this risk; overrides target-fpr")] = None
    target_fpr: Annotated[
        float, Field(gt=0, lt=1, description="flag at this rate of false alarms on right answers")
    ] = 0.05
    prompt_check: Annotated[
        bool, Field(description="in abstain mode: abstain before generation if the prompt's risk reaches the threshold")
    ] = False
    hold: Annotated[
        Hold, Field(description="how much of a stream waits for its verdict in abstain mode: none, window or answer")
    ] = Hold.ANSWER
    fallback: Annotated[
        Fallback, Field(description="how an abstention looks: a refusal, or a message in place of the answer")
    ] = Fallback.REFUSAL
    fail: Annotated[
        Fail | None,
        Field(
            description="an answer that could not be scored passes and is counted (open) or is refused (closed); "
            "by default closed in abstain mode and open in the others"
        ),
    ] = None


class Ceilings(BaseModel):
    """How loose a request may be; None stands for what the defaults make of it."""

    model_config = ConfigDict(title="how loose a request may be")

    loosest_mode: Annotated[
        Mode | None, Field(description="loosest mode that a request may ask for; default: the server's own")
    ] = None
    max_threshold: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="highest threshold that a request may ask for; default: the server's own if it flags or "
            "abstains, else 1",
        ),
    ] = None
    loosest_hold: Annotated[
        Hold | None,
        Field(description="loosest hold that a request may ask for; default: the server's own if it abstains"),
    ] = None
    max_scale: Annotated[
        float | None,
        Field(
            ge=0,
            le=3,
            description="largest neuron scale that a request may ask for (scale, retry_scale); default: 1 if the "
            "server flags or abstains whatever is asked, else 3",
        ),
    ] = None
    min_scale: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="smallest neuron scale that a request may ask for (scale, retry_scale); default: 1 if the "
            "server flags or abstains whatever is asked, else 0",
        ),
    ] = None
    allow_token_bias: Annotated[
        bool,
        Field(
            description="let requests favour and forbid tokens (logit_bias, allowed_token_ids, bad_words, a "
            "repetition_penalty below 0.5 or above 2) also where the server abstains whatever is asked: what is "
            "withheld can then be found out"
        ),
    ] = False
    explain_neurons: Annotated[
        bool | None,
        Field(
            description="let requests ask which neurons raised a risk: a second pass over prompt and answer; default: "
            "where the engine is not compiled, which must else keep room for it (4 bytes for each neuron of the probe "
            "and each token of a step)"
        ),
    ] = None


class GuardSettings(GuardDefaults, Ceilings):
    """All that an operator says of the guard."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RequestLimits(BaseModel):
    """What one request may ask for."""

    model_config = ConfigDict(title="what one request may ask for")

    max_messages: Annotated[
        int,
        Field(
            ge=1,
            description="maximum messages per request: each is rendered here, and 2048 are a very long session",
        ),
    ] = 2048
    max_parts: Annotated[
        int,
        Field(
            ge=1,
            description="maximum parts of a request's messages, tool calls and their contents included: 4096 are two a "
            "message, and take a tenth of a second to read",
        ),
    ] = 4096
    max_tools: Annotated[int, Field(ge=1, description="maximum tools per request: 128, as OpenAI's API has it")] = 128
    max_grammar: Annotated[
        int,
        Field(
            ge=1,
            description="maximum size of a request's schemas, choices and patterns, in values (a character of a "
            "pattern counts for 2, 16 of other text for 1): 4096 compile in a second or two",
        ),
    ] = 4096
    max_tokens: Annotated[
        int,
        Field(
            ge=1, description="maximum tokens per answer: 16384 leave room to think, and end an answer that runs away"
        ),
    ] = 16384
    max_choices: Annotated[
        int,
        Field(ge=1, description="maximum answers per request (n times prompts): at 64 none fills the server alone"),
    ] = 64
    max_risk_items: Annotated[
        int, Field(ge=1, description="maximum items per /risk request: all are checked before the first is scored")
    ] = 32


class Settings(GuardSettings, RequestLimits, BaseSettings):
    """One source of truth: each field is a flag, an environment variable and a key of the file."""

    model_config = SettingsConfigDict(
        title="the server",
        env_prefix="HGUARD_",
        toml_file="hguard.toml",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    model: Annotated[str, Field(description="atlas, smollm2, a folder or a Hugging Face id: the model to serve")] = (
        "atlas"
    )
    revision: Annotated[str | None, Field(description="revision of a model from the Hub")] = None
    probe: Annotated[str | None, Field(description="probe bundle: a folder, or hf://owner/name@revision")] = None
    shadow_probe: Annotated[
        str | None,
        Field(
            description="a second probe that reads the same neurons: scored and counted beside the one that serves "
            "(hguard_shadow_*), and decides nothing"
        ),
    ] = None
    served_model_name: Annotated[str | None, Field(description="name in the API; default: the model's own")] = None
    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535, description="port to listen on")] = 8000
    risk_seconds: Annotated[
        float, Field(gt=0, description="seconds that /risk waits for a score before it answers not_scored")
    ] = 30.0
    refusal: Annotated[str, Field(min_length=1, description="text of an abstention")] = BEYOND
    fallback_text: Annotated[str, Field(min_length=1, description="text in place of an answer (fallback: message)")] = (
        BEYOND
    )
    compile: Annotated[bool, Field(description="compile the model on CPU: slower start, faster answers")] = False
    relaxed: Annotated[
        bool, Field(description="accept a chat template, dtype or cache that the probe was not fit on")
    ] = False
    api_keys: Annotated[
        ApiKeys,
        Field(
            description="API keys, separated by commas or whitespace; better given as "
            "HGUARD_API_KEYS than as a flag, which others on the machine can read"
        ),
    ] = ApiKeys()
    api_keys_file: Annotated[
        Path | None, Field(description="file that holds the keys instead: a secret of Docker or Kubernetes")
    ] = None
    allow_unauthenticated: Annotated[
        bool, Field(description="listen beyond this machine without keys: something else checks the callers")
    ] = False
    max_body_bytes: Annotated[
        int,
        Field(ge=1024, description="maximum bytes of a request body: 2 MiB are about half a million tokens of English"),
    ] = 2 << 20
    body_seconds: Annotated[
        float, Field(gt=0, description="seconds to receive a request body: at 70 kB/s the largest one takes 30")
    ] = 30.0
    max_concurrent_requests: Annotated[
        int,
        Field(
            ge=1,
            description="maximum concurrent requests per API key, or of all callers without keys: at 512 one key may "
            "fill the server; lower it to share it among several",
        ),
    ] = 512
    max_queue: Annotated[
        int | None,
        Field(
            ge=0,
            description="answers queued beyond the engine's batch size; default: as many as it runs, so that waiting "
            "takes about as long as an answer",
        ),
    ] = None
    drain_seconds: Annotated[
        float,
        Field(
            ge=0,
            description="seconds for requests in flight to finish after SIGTERM; a supervisor must grant more",
        ),
    ] = 30.0
    keep_alive_seconds: Annotated[
        int,
        Field(
            ge=1,
            description="seconds for which an idle connection is kept: more than clients and load balancers do (60), "
            "or they send a request into one that is just being closed",
        ),
    ] = 75
    slots: Annotated[int, Field(ge=1, description="score slots: how many answers can be guarded at once")] = 1024
    probe_room: Annotated[
        int,
        Field(
            ge=0,
            description="neurons of every layer for which there is room, so that SIGHUP can exchange the probe for one "
            "of other neurons; 0: room for those that this probe reads",
        ),
    ] = 0

    @model_validator(mode="before")
    @classmethod
    def _read_keys(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Take the keys from their file; a file without keys must never mean a server without any."""
        file = values.get("api_keys_file")
        if not file:  # an empty variable is none
            return {name: value for name, value in values.items() if name != "api_keys_file"}
        if values.get("api_keys"):
            raise ValueError("keys are given twice, as api_keys and in api_keys_file; leave one of them out")
        return {**values, "api_keys": ApiKeys.read(Path(file))}

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


def settings_from(values: dict[str, Any]) -> Settings:
    """Settings with these flags on top. Raises GuardError naming each setting that is wrong."""
    try:
        return Settings(**values)
    except (OSError, UnicodeDecodeError, TOMLDecodeError) as error:
        raise GuardError(f"hguard.toml cannot be read: {error}") from None
    except ValidationError as error:
        lines = [": ".join((*map(str, e["loc"]), e["msg"].removeprefix("Value error, "))) for e in error.errors()]
        raise GuardError("wrong settings: " + "; ".join(lines)) from None
