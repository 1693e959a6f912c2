"""Settings of `cbtqa build-dataset`, with the help text of each flag."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cbtqa.llm.runs import EndpointSettings
from cbtqa.llm.second_opinion import GuardSettings, ScreenEndpointSettings
from cbtqa.safety.settings import ScreenModelSettings
from cbtqa.settings import Settings


class InputSettings(Settings):
    """How the input is read."""

    panel: ClassVar[str] = "Input"
    encoding: str = "utf-8"
    """Encoding of a text file, such as gb18030."""
    column: tuple[str, ...] = ()
    """Name a column of the file: question=title, or question=info.title inside an object. May be
    repeated."""
    first_turn: bool = False
    """The file holds conversations: what the client says first is the question."""
    limit: int | None = Field(None, ge=1)
    """Only the first N rows."""


class TeacherSettings(Settings):
    """Who writes the answers, and how."""

    panel: ClassVar[str] = "Teacher"
    teacher: Literal["template", "endpoint"] | None = None
    """Who writes the answers. Default: template (rules, offline), or endpoint when --endpoint is
    given."""
    prompt: str = "cbt_answer"
    """Prompt: cbt_answer (five steps as JSON), cbt_answer_fused (one flowing text, as in the
    paper), or the path of your own. With --preview it may be repeated, and so may --model."""
    examples: int = Field(0, ge=0, le=2)
    """Worked examples shown to the model."""
    persona: str = "supporter"
    """supporter, counsellor, peer, or a sentence of your own."""
    labels: Literal["question", "answer"] | None = None
    """Where the labels of an answer in one flowing text come from. With question the same model
    reads each question in a second pass and quotes its evidence (never in explicit risk, nor where
    the prompt's branch allows none). With answer they are the types that the text names, without
    evidence. Default: question; five steps bring their own."""
    taxonomy: str = "burns-10"
    """Distortion taxonomy (see `cbtqa distortions taxonomies`)."""
    temperature: float = Field(0.7, ge=0, le=2)
    """Assumed: the paper is silent."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling."""
    max_tokens: int = Field(2048, ge=64)
    """Token limit of one reply."""
    seed: int = 0
    """Seed of the teacher's choices."""


class OutputSettings(Settings):
    """What is kept, and how it is split."""

    panel: ClassVar[str] = "Output"
    out: Path = Path("cbtqa-dataset")
    """Folder of the dataset."""
    crisis: Literal["split", "keep", "drop"] = "split"
    """Crisis questions (suicide, self-harm, another acute danger): in a split of their own, among
    the others, or left out (always counted)."""
    validation: float = Field(0.05, ge=0, lt=1)
    """Share of the validation split."""
    test: float = Field(0.05, ge=0, lt=1)
    """Share of the test split."""
    split_seed: int = 0
    """Seed of the split by hash of question id."""
    near_cosine: float = Field(0.4, gt=0, le=1)
    """Questions at least this alike (cosine of character pairs, weighted by rarity; short ones must
    be more alike) share a split. 1: equal ones only."""
    min_step_chars: int = Field(10, ge=1)
    """Shortest step, in characters."""
    max_step_chars: int = Field(800, ge=10)
    """Longest step, in characters."""
    include_human: bool = False
    """Also write PsyQA's own answers, for comparison."""
    max_rejected: float = Field(0.5, ge=0, le=1)
    """Share of rejected questions above which the run counts as incomplete."""


class BuildSettings(
    InputSettings,
    TeacherSettings,
    EndpointSettings,
    ScreenModelSettings,
    ScreenEndpointSettings,
    GuardSettings,
    OutputSettings,
):
    """Everything that shapes a build. Values assumed where arXiv 2403.16008 is silent say so."""

    input: Path | None = None
    """PsyQA file (.json, .jsonl, .csv, .tsv, .parquet). Default: the bundled sample of invented
    questions."""

    @model_validator(mode="after")
    def _teacher_fits(self) -> BuildSettings:
        if self.teacher == "template" and self.endpoint:
            raise ValueError("--teacher template and --endpoint exclude each other")
        if self.teacher == "endpoint" and not self.endpoint:
            raise ValueError("--teacher endpoint wants --endpoint")
        if self.labels and not self.endpoint:
            raise ValueError("--labels wants --endpoint: the template teacher labels by rules")
        if self.cluster and not self.endpoint:
            raise ValueError("--cluster wants --endpoint: the template teacher asks nobody")
        if self.validation + self.test >= 1:
            raise ValueError("validation and test leave nothing for train")
        if self.min_step_chars >= self.max_step_chars:
            raise ValueError("min_step_chars must be below max_step_chars")
        return self

    @property
    def is_offline(self) -> bool:
        """True when the template teacher writes the answers."""
        return not self.endpoint
