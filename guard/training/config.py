"""What a fit and a calibration can be told; ``hguard fit`` has a flag for each field."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from guard.errors import FitError
from guard.harness.config import AnswerConfig
from guard.ipc.collecting import Collecting, Site, Table, site_of
from guard.probe.signals import ALWAYS, DISTANCE, HEADS, MARGIN, OF_STATES, OPTIONAL, RESIDUAL, TOP_MASS, parsed

Method = Literal["platt", "isotonic"]
Kept = Literal["residual", "attention", "block", "question"]


class CalibrationConfig(AnswerConfig):
    """``hguard calibrate``."""

    seed: int = Field(0, description="of the split into parts, and of samples")
    calibration: Method = Field(
        "platt", description="how logits become risks; isotonic needs a thousand answers or more"
    )


class FitConfig(CalibrationConfig):
    """``hguard fit``."""

    samples: int = Field(
        0,
        ge=0,
        description="further answers to each training question; neurons learn only where their verdicts agree",
    )
    temperature: float = Field(1.0, ge=0, allow_inf_nan=False, description="of the samples")
    min_agreement: float = Field(
        1.0, gt=0, le=1, description="share of a question's answers that must be judged alike for it to teach"
    )
    max_neuron_fraction: float = Field(0.04, gt=0, le=1, description="largest share of all neurons to keep")
    ablation_questions: int = Field(
        200,
        ge=0,
        description="questions to answer with each candidate's neurons off, to choose C by; 0: by AUROC alone",
    )
    span: Literal["answer", "fact"] = Field(
        "answer", description="what the neurons are fit on: the whole answer, or the part that states the fact"
    )
    prompt_risk: bool = Field(
        True, description="fit them on the last prompt token, too, so that there is a risk before generation"
    )
    refit: bool = Field(False, description="fit the chosen neurons again with L2")
    signals: tuple[str, ...] = Field(
        (
            RESIDUAL,
            MARGIN,
            TOP_MASS,
            DISTANCE,
        ),  # what attention adds to these is within the noise (docs/atlas-report.md)
        description="what the probe reads beside neurons, entropy and log-probability: "
        + ", ".join(OPTIONAL)
        + ", with commas between, or none",
    )
    slots: int = Field(32, ge=1, description="answers that are read at once")
    keep: tuple[Kept, ...] = Field(
        (),
        description="what to keep in the work folder beside what the probe reads: residual, attention, block, "
        "question, with commas between",
    )

    @field_validator("keep", "signals", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        if isinstance(given, str):
            return () if given in ("", "none") else tuple(given.split(","))
        return given

    @field_validator("signals")
    @classmethod
    def _known(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return parsed(given)

    @property
    def measured(self) -> frozenset[str]:
        """The signals that engines measure."""
        return ALWAYS | set(self.signals)

    @property
    def sites(self) -> tuple[Site, ...]:
        """What is collected beside neurons."""
        wanted = {*self.keep, *self.signals}
        read = {site_of(name) for name in OF_STATES if name in wanted}
        return tuple(site for site in map(Site, HEADS) if site in read)

    def require_heads(self) -> None:
        """Raise FitError where no probe comes of this without neurons."""
        if not set(self.signals) & set(HEADS):
            raise FitError(f"without neurons a probe reads heads: name one of {', '.join(HEADS)} with --signals")
        if self.span != "answer":
            raise FitError(f"--span {self.span} is what neurons are fit on, and there are none: leave it out")

    @property
    def question(self) -> bool:
        """Whether the question's own tokens are kept."""
        return "question" in self.keep

    def tables(self, neurons: bool = True) -> tuple[Table, ...]:
        """The arrays of a fit's answers."""
        parts = Collecting(self.slots, self.sites, self.question).parts
        sites = (Site.NEURONS, *self.sites) if neurons else self.sites
        return tuple((site, part) for site in sites for part in parts)

    def stage_settings(self) -> dict[str, object]:
        """What the stages of a fit depend on; calibration, slots and what is kept beside change none."""
        return self.model_dump(mode="json", exclude={"calibration", "slots", "keep"})
