"""What can be set for `cbtqa simulate analyse`, with the help text of each flag."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic.config import JsonDict

from cbtqa.report.page import Lang
from cbtqa.settings import Settings
from cbtqa.simulation.analysis.outcomes import Choices
from cbtqa.simulation.analysis.scores import ScoreColumns
from cbtqa.statistics.mixed_model import Method

COLUMNS: JsonDict = {"panel": "Columns of a table"}
MODEL: JsonDict = {"panel": "Model"}


class AnalysisSettings(Settings):
    """Everything `cbtqa simulate analyse` can be told."""

    source: Path = Path("cbtqa-study")
    """Judged study folder, or a table with one row per session."""
    instrument: tuple[str, ...] = ()
    """Only these instruments; for a table the one it holds."""
    judged: Path | None = None
    """Folder of the judges' ratings (default: judged/ in the study)."""
    human: tuple[Path, ...] = ()
    """Ratings by people (ratings.jsonl of a rating study)."""
    baseline: str | None = None
    """Arm to stand first."""
    common_patients: bool = False
    """Leave out patients that not every arm has."""
    title: str | None = None
    """Title of the report."""
    lang: Lang = "en"
    """Main language of the report: en or zh."""
    out: Path | None = None
    """Folder of the results (default: analysis/ in the study)."""
    method: Method = Field(default="reml", json_schema_extra=MODEL)
    """Likelihood of the models of arms."""
    bootstrap: int = Field(default=500, ge=0, json_schema_extra=MODEL)
    """Drawings for the ICC's interval."""
    seed: int = Field(default=12345, ge=0, json_schema_extra=MODEL)
    """Of the drawings."""
    terms: str | None = Field(default=None, json_schema_extra=MODEL)
    """Also fit a model of these terms, such as model,variant,z(session)."""
    terms_method: Method = Field(default="ml", json_schema_extra=MODEL)
    """Likelihood of the model of terms."""
    reference: tuple[str, ...] = Field(default=(), json_schema_extra=MODEL)
    """FACTOR=LEVEL that the intercept stands for."""
    patient_column: str = Field(default="patient", json_schema_extra=COLUMNS)
    """Patient."""
    arm_column: str = Field(default="arm", json_schema_extra=COLUMNS)
    """Arm."""
    session_column: str = Field(default="session", json_schema_extra=COLUMNS)
    """Number of the session."""
    words_column: str | None = Field(default=None, json_schema_extra=COLUMNS)
    """Words of the therapist."""
    item: tuple[str, ...] = Field(default=(), json_schema_extra=COLUMNS)
    """COLUMN=item, where the name does not tell."""
    arm_factors: str | None = Field(default=None, json_schema_extra=COLUMNS)
    """Factors that arm names are made of, such as model,variant."""
    arm_separator: str = Field(default="_", min_length=1, json_schema_extra=COLUMNS)
    """Between them."""

    @property
    def columns(self) -> ScoreColumns:
        """Columns of a table."""
        return ScoreColumns(
            patient=self.patient_column,
            arm=self.arm_column,
            session=self.session_column,
            words=self.words_column,
            items=self.item,
            arm_factors=split_names(self.arm_factors),
            separator=self.arm_separator,
        )

    @property
    def choices(self) -> Choices:
        """How models are fitted."""
        return Choices(self.method, self.bootstrap, self.seed)


def split_names(text: str | None) -> tuple[str, ...]:
    """Comma-separated names as a tuple."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
