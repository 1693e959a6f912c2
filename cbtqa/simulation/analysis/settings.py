"""What can be set for `cbtqa simulate analyse`, with the help text of each flag."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from cbtqa.judging.correction import HumanSample
from cbtqa.report.page import Lang
from cbtqa.settings import Settings
from cbtqa.statistics.mixed_model import Method


class ModelSettings(Settings):
    """The models of arms and of terms."""

    panel: ClassVar[str] = "Model"
    method: Method = "reml"
    """Likelihood of the models of arms as published."""
    bootstrap: int = Field(0, ge=0)
    """Drawings of patients for the published ICC's interval (500 in arXiv 2509.09712)."""
    seed: int = Field(12345, ge=0)
    """Of the drawings."""
    terms: str | None = None
    """Also fit a model of these terms, such as model,variant,z(session)."""
    terms_method: Method = "ml"
    """Likelihood of the model of terms."""
    reference: tuple[str, ...] = ()
    """FACTOR=LEVEL that the intercept stands for."""


class ColumnSettings(Settings):
    """Columns of a table with one row per session."""

    panel: ClassVar[str] = "Columns of a table"
    patient_column: str = "patient"
    """Patient."""
    arm_column: str = "arm"
    """Arm."""
    session_column: str = "session"
    """Number of the session."""
    words_column: str | None = None
    """Words of the therapist."""
    item: tuple[str, ...] = ()
    """COLUMN=item, where the name does not tell."""
    arm_factors: str | None = None
    """Factors that arm names are made of, such as model,variant."""
    arm_separator: str = Field("_", min_length=1)
    """Between them."""


class AnalysisSettings(ModelSettings, ColumnSettings):
    """All settings of `cbtqa simulate analyse`."""

    source: Path = Path("cbtqa-study")
    """Judged study folder, or a table with one row per session."""
    instrument: tuple[str, ...] = ()
    """Only these instruments; for a table the one it holds."""
    judged: Path | None = None
    """Folder of the judges' ratings (default: judged/ in the study)."""
    human: tuple[Path, ...] = ()
    """Ratings by people (ratings.jsonl of a rating study)."""
    human_sample: HumanSample | None = None
    """How the sessions with human ratings were drawn: random (by lot) or chosen (means stay
    uncorrected). Known for a study of cbtqa rate on the same sessions."""
    baseline: str | None = None
    """Arm that comes first."""
    common_patients: bool = False
    """Leave out patients that not every arm has."""
    title: str | None = None
    """Title of the report."""
    lang: Lang = "en"
    """Main language of the report: en or zh."""
    out: Path | None = None
    """Folder of the results (default: analysis/ in the study)."""


def split_names(text: str | None) -> tuple[str, ...]:
    """Comma-separated names as a tuple."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
