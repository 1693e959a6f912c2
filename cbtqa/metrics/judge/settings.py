"""What can be set for `cbtqa judge`, with the help text of each flag."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cbtqa.metrics.pairs import Columns
from cbtqa.settings import Settings


class JudgeSettings(Settings):
    """Everything `cbtqa judge` can be told."""

    predictions: tuple[Path, ...] = Field(default=(), description="Files with predictions.")
    questions: Path | None = Field(
        default=None, description="Questions: PsyQA's file, or a built dataset."
    )
    split: str = Field(
        default="test", description="Splits of a built dataset, comma-separated, or all."
    )
    sample: int | None = Field(
        default=None, ge=1, description="Judge only so many questions, drawn by a fixed seed."
    )
    human: Path | None = Field(
        default=None, description="Ratings by people (ratings.jsonl of a study) to check against."
    )
    rubric: str = Field(default="cbt-llm", description="Rubric id, or the path of your own.")
    endpoint: str | None = Field(
        default=None, description="Base URL of an OpenAI-compatible endpoint, or a preset."
    )
    model: str | None = Field(default=None, description="The judge's model name.")
    acknowledge_disclosure: bool = Field(
        default=False,
        description="I may pass these texts on to the operator of a non-local endpoint.",
    )
    prompt: str = Field(default="judge_cbt_llm", description="Prompt, or the path of your own.")
    repeats: int = Field(default=3, ge=1, le=20, description="Ratings of each answer.")
    temperature: float = Field(
        default=0.7, ge=0, le=2, description="Assumed: repeats at 0 would only echo each other."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the first repeat.")
    max_tokens: int = Field(default=1024, ge=64, description="Token limit of one reply.")
    id_column: str | None = Field(default=None, description="Id column of the predictions.")
    prediction_column: str | None = Field(default=None, description="Column with the prediction.")
    encoding: str = Field(default="utf-8", description="Encoding of text files.")
    in_flight: int = Field(default=32, ge=1, le=16384, description="Most requests at a time.")
    rpm: int | None = Field(default=None, ge=1, description="Requests a minute, at most.")
    tpm: int | None = Field(default=None, ge=1, description="Tokens a minute, at most.")
    timeout_s: float = Field(default=180.0, gt=0, description="Seconds one request may take.")
    max_attempts: int = Field(
        default=3, ge=1, le=10, description="Replies asked for per rating, faulty ones included."
    )
    budget_tokens: int | None = Field(
        default=None, gt=0, description="Stop after this many tokens."
    )
    out: Path = Field(default=Path("cbtqa-judge"), description="Folder of journal and results.")

    @property
    def columns(self) -> Columns:
        """Columns of the predictions."""
        return Columns(self.id_column, self.prediction_column, None, self.encoding)
