"""What can be set for the neural metrics, with the help text of each flag."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field
from pydantic.config import JsonDict

from cbtqa.settings import Settings

_PANEL: JsonDict = {"panel": "Neural metrics"}
Dtype = Literal["float32", "bfloat16", "float16"]


class NeuralSettings(Settings):
    """Weights, device and precision of BERTScore and BLEURT."""

    bertscore_model: str = Field(
        "bert-base-chinese",  # Source: bert-score's own choice for Chinese
        description="BERTScore's model: a folder with weights, or a Hub id.",
        json_schema_extra=_PANEL,
    )
    bertscore_layer: int | None = Field(
        None,
        ge=0,
        description="Layer whose embeddings BERTScore compares; known for the usual models.",
        json_schema_extra=_PANEL,
    )
    bertscore_baseline: Path | None = Field(
        None,
        description="Baseline table (LAYER,P,R,F) for bertscore_rescaled; shipped for "
        "bert-base-chinese.",
        json_schema_extra=_PANEL,
    )
    bertscore_idf: Path | None = Field(
        None,
        description="Text file, one document a line, whose rare tokens weigh more in BERTScore.",
        json_schema_extra=_PANEL,
    )
    bleurt_model: str = Field(
        "lucadiliello/BLEURT-20",
        description="BLEURT's checkpoint in PyTorch: a folder, or a Hub id.",
        json_schema_extra=_PANEL,
    )
    device: str = Field(
        "auto",
        description="Where models run: auto, cpu, cuda, cuda:1, mps.",
        json_schema_extra=_PANEL,
    )
    dtype: Dtype = Field(
        "float32",
        description="Precision of the models: float32, bfloat16, float16; part of the signature.",
        json_schema_extra=_PANEL,
    )
    batch_size: int = Field(
        32, ge=1, description="Texts a model reads at a time.", json_schema_extra=_PANEL
    )

    @classmethod
    def part_of(cls, settings: Self) -> NeuralSettings:
        """These fields alone, of a larger settings model."""
        return NeuralSettings(
            **{name: getattr(settings, name) for name in NeuralSettings.model_fields}
        )
