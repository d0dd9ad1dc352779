"""What a fit and a calibration can be told; ``hguard fit`` has a flag for each field."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from guard.harness.config import AnswerConfig

Method = Literal["platt", "isotonic"]


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
    slots: int = Field(32, ge=1, description="answers that are read at once")

    def stage_settings(self) -> dict[str, object]:
        """What the stages of a fit depend on; calibration and slots change none."""
        return self.model_dump(mode="json", exclude={"calibration", "slots"})
