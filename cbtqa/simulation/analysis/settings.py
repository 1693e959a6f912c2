"""What can be set for `cbtqa simulate analyse`, with the help text of each flag."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic.config import JsonDict

from cbtqa.report.page import Lang
from cbtqa.settings import Settings
from cbtqa.simulation.analysis.outcomes import Choices
from cbtqa.simulation.analysis.scores import ScoreColumns
from cbtqa.statistics.mixed_model import Engine, Method

COLUMNS: JsonDict = {"panel": "Columns of a table"}
MODEL: JsonDict = {"panel": "Model"}


class AnalysisSettings(Settings):
    """Everything `cbtqa simulate analyse` can be told."""

    source: Path = Field(
        default=Path("cbtqa-study"),
        description="Judged study folder, or a table with one row per session.",
    )
    instrument: tuple[str, ...] = Field(
        default=(), description="Only these instruments; for a table the one it holds."
    )
    judged: Path | None = Field(
        default=None, description="Folder of the judges' ratings (default: judged/ in the study)."
    )
    human: tuple[Path, ...] = Field(
        default=(), description="Ratings by people (ratings.jsonl of a rating study)."
    )
    baseline: str | None = Field(default=None, description="Arm to stand first.")
    common_patients: bool = Field(
        default=False, description="Leave out patients that not every arm has."
    )
    title: str | None = Field(default=None, description="Title of the report.")
    lang: Lang = Field(default="en", description="Main language of the report: en or zh.")
    out: Path | None = Field(
        default=None, description="Folder of the results (default: analysis/ in the study)."
    )
    method: Method = Field(
        default="reml", description="Likelihood of the models of arms.", json_schema_extra=MODEL
    )
    engine: Engine = Field(
        default="auto",
        description="auto: closed form when balanced, statsmodels otherwise.",
        json_schema_extra=MODEL,
    )
    bootstrap: int = Field(
        default=500, ge=0, description="Drawings for the ICC's interval.", json_schema_extra=MODEL
    )
    seed: int = Field(default=12345, ge=0, description="Of the drawings.", json_schema_extra=MODEL)
    terms: str | None = Field(
        default=None,
        description="Also fit a model of these terms, such as model,variant,z(session).",
        json_schema_extra=MODEL,
    )
    terms_method: Method = Field(
        default="ml", description="Likelihood of the model of terms.", json_schema_extra=MODEL
    )
    reference: tuple[str, ...] = Field(
        default=(),
        description="FACTOR=LEVEL that the intercept stands for.",
        json_schema_extra=MODEL,
    )
    patient_column: str = Field(
        default="patient", description="Patient.", json_schema_extra=COLUMNS
    )
    arm_column: str = Field(default="arm", description="Arm.", json_schema_extra=COLUMNS)
    session_column: str = Field(
        default="session", description="Number of the session.", json_schema_extra=COLUMNS
    )
    words_column: str | None = Field(
        default=None, description="Words of the therapist.", json_schema_extra=COLUMNS
    )
    item: tuple[str, ...] = Field(
        default=(),
        description="COLUMN=item, where the name does not tell.",
        json_schema_extra=COLUMNS,
    )
    arm_factors: str | None = Field(
        default=None,
        description="Factors that arm names are made of, such as model,variant.",
        json_schema_extra=COLUMNS,
    )
    arm_separator: str = Field(
        default="_", min_length=1, description="Between them.", json_schema_extra=COLUMNS
    )

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
        return Choices(self.method, self.engine, self.bootstrap, self.seed)


def split_names(text: str | None) -> tuple[str, ...]:
    """Comma-separated names as a tuple."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
