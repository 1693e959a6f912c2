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
    """Also fit a model of these terms, such as model,variant,z(session) or a:b (default: that of
    the study whose names the arms have)."""
    terms_method: Method = "ml"
    """Likelihood of the model of terms."""
    reference: tuple[str, ...] = ()
    """FACTOR=LEVEL that the intercept stands for."""


class ColumnSettings(Settings):
    """Columns of a table with one row per session."""

    panel: ClassVar[str] = "Columns of a table"
    patient_column: str | None = None
    """Patient (default: found by its name, such as patient_id)."""
    arm_column: str | None = None
    """Arm (default: found by its name, such as group)."""
    session_column: str | None = None
    """Number of the session (default: found by its name)."""
    words_column: str | None = None
    """Words of the therapist."""
    item: tuple[str, ...] = ()
    """COLUMN=item, where the name does not tell."""
    arm_factors: str | None = None
    """Factors that arm names are made of, such as model,variant (default: by known patterns)."""
    arm_separator: str = Field("_", min_length=1)
    """Between them."""


class SubgroupSettings(Settings):
    """Groups of patients within which arms are compared."""

    panel: ClassVar[str] = "Groups of patients"
    patients: Path | None = None
    """Attributes of the patients of a table, a row each (JSON, JSONL, CSV); rows without an id are
    patients 1, 2 and so on. A study has its own."""
    by: tuple[str, ...] = ()
    """Attribute that divides the patients, also a column of the table (default: all that do)."""


class AnalysisSettings(ModelSettings, ColumnSettings, SubgroupSettings):
    """All settings of `cbtqa simulate analyse`."""

    source: Path = Path("cbtqa-study")
    """Judged study folder, or a table with one row per session."""
    instrument: tuple[str, ...] = ()
    """Only these instruments (of a table: all whose columns it holds)."""
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
    """Folder of the results (default: analysis/ in the study; of a table: none is written)."""


def split_names(text: str | None) -> tuple[str, ...]:
    """Comma-separated names as a tuple."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
