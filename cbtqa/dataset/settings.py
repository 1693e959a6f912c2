"""What can be set for `cbtqa build-dataset`, with the help text of each flag."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic.config import JsonDict

from cbtqa.settings import Settings

_INPUT: JsonDict = {"panel": "Input"}
_TEACHER: JsonDict = {"panel": "Teacher"}
_ENGINE: JsonDict = {"panel": "Engine"}
_OUTPUT: JsonDict = {"panel": "Output"}


class BuildSettings(Settings):
    """Everything that shapes a build. Values assumed where arXiv 2403.16008 is silent say so."""

    input: Path | None = Field(
        None,
        description="PsyQA file (.json, .jsonl, .csv, .tsv, .parquet). Default: the bundled "
        "sample of invented questions.",
    )
    encoding: str = Field(
        "utf-8",
        description="Encoding of a text file, such as gb18030.",
        json_schema_extra=_INPUT,
    )
    column: tuple[str, ...] = Field(
        (),
        description="Name a column of the file: question=title. May be repeated.",
        json_schema_extra=_INPUT,
    )
    limit: int | None = Field(
        None, ge=1, description="Only the first N rows.", json_schema_extra=_INPUT
    )

    teacher: Literal["template", "endpoint"] | None = Field(
        None,
        description="Who writes the answers. Default: template (rules, offline), or endpoint "
        "when --endpoint is given.",
        json_schema_extra=_TEACHER,
    )
    endpoint: str | None = Field(
        None,
        description="Base URL of an OpenAI-compatible endpoint, or a preset: openai, deepseek, "
        "dashscope, zhipu, moonshot, siliconflow, vllm, ollama, llama.cpp, transformers-serve.",
        json_schema_extra=_TEACHER,
    )
    model: str | None = Field(
        None, description="Model name at the endpoint.", json_schema_extra=_TEACHER
    )
    acknowledge_disclosure: bool = Field(
        False,
        description="I may pass this text on to the operator of a non-local endpoint. PsyQA's "
        "agreement forbids it without permission; recorded in the manifest.",
        json_schema_extra=_TEACHER,
    )
    prompt: str = Field(
        "cbt_answer",
        description="Prompt: cbt_answer (five steps as JSON), cbt_answer_fused (one flowing "
        "text, as in the paper), or the path of your own.",
        json_schema_extra=_TEACHER,
    )
    examples: int = Field(
        0,
        ge=0,
        le=2,
        description="Worked examples shown to the model.",
        json_schema_extra=_TEACHER,
    )
    persona: str = Field(
        "supporter",
        description="supporter, counsellor, peer, or a sentence of your own.",
        json_schema_extra=_TEACHER,
    )
    taxonomy: str = Field(
        "burns-10",
        description="Distortion taxonomy (see `cbtqa distortions taxonomies`).",
        json_schema_extra=_TEACHER,
    )
    temperature: float = Field(
        0.7, ge=0, le=2, description="Assumed: the paper is silent.", json_schema_extra=_TEACHER
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Nucleus sampling.", json_schema_extra=_TEACHER
    )
    max_tokens: int = Field(
        2048, ge=64, description="Token limit of one reply.", json_schema_extra=_TEACHER
    )
    seed: int = Field(0, description="Seed of the teacher's choices.", json_schema_extra=_TEACHER)

    in_flight: int = Field(
        64, ge=1, le=16384, description="Most requests at a time.", json_schema_extra=_ENGINE
    )
    rpm: int | None = Field(
        None, ge=1, description="Requests a minute, at most.", json_schema_extra=_ENGINE
    )
    tpm: int | None = Field(
        None, ge=1, description="Tokens a minute, at most.", json_schema_extra=_ENGINE
    )
    timeout_s: float = Field(
        180.0, gt=0, description="Seconds one request may take.", json_schema_extra=_ENGINE
    )
    max_attempts: int = Field(
        3,
        ge=1,
        le=10,
        description="Replies asked for per question, faulty ones included.",
        json_schema_extra=_ENGINE,
    )
    transport: Literal["http", "sdk"] = Field(
        "http",
        description="http is the thin road; sdk sends through the openai package.",
        json_schema_extra=_ENGINE,
    )
    cluster: str | None = Field(
        None,
        description="Ask from the actors of a Ray cluster: its address, or local. The endpoint's "
        "address is resolved on their machines.",
        json_schema_extra=_ENGINE,
    )
    cluster_actors: int = Field(
        2, ge=1, le=256, description="Actors that share the limits.", json_schema_extra=_ENGINE
    )
    price_in: float | None = Field(
        None, ge=0, description="Price of a million prompt tokens.", json_schema_extra=_ENGINE
    )
    price_out: float | None = Field(
        None, ge=0, description="Price of a million completion tokens.", json_schema_extra=_ENGINE
    )
    budget: float | None = Field(
        None,
        gt=0,
        description="Stop before this much is spent, in the currency of the price.",
        json_schema_extra=_ENGINE,
    )
    budget_tokens: int | None = Field(
        None, gt=0, description="Stop after this many tokens.", json_schema_extra=_ENGINE
    )

    out: Path = Field(
        Path("cbtqa-dataset"), description="Folder of the dataset.", json_schema_extra=_OUTPUT
    )
    crisis: Literal["split", "keep", "drop"] = Field(
        "split",
        description="Crisis questions: in a split of their own, among the others, or left out "
        "(always counted).",
        json_schema_extra=_OUTPUT,
    )
    validation: float = Field(
        0.05, ge=0, lt=1, description="Share of the validation split.", json_schema_extra=_OUTPUT
    )
    test: float = Field(
        0.05, ge=0, lt=1, description="Share of the test split.", json_schema_extra=_OUTPUT
    )
    split_seed: int = Field(
        0, description="Seed of the split by hash of question id.", json_schema_extra=_OUTPUT
    )
    near_duplicate: float = Field(
        0.7,
        gt=0,
        le=1,
        description="Questions at least this alike (Jaccard of character 4-grams) share a split.",
        json_schema_extra=_OUTPUT,
    )
    min_step_chars: int = Field(
        10, ge=1, description="Shortest step, in characters.", json_schema_extra=_OUTPUT
    )
    max_step_chars: int = Field(
        800, ge=10, description="Longest step, in characters.", json_schema_extra=_OUTPUT
    )
    include_human: bool = Field(
        False,
        description="Also write PsyQA's own answers, for comparison.",
        json_schema_extra=_OUTPUT,
    )
    max_rejected: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of rejected questions above which the run counts as incomplete.",
        json_schema_extra=_OUTPUT,
    )

    @model_validator(mode="after")
    def _teacher_fits(self) -> BuildSettings:
        if self.teacher == "template" and self.endpoint:
            raise ValueError("--teacher template and --endpoint exclude each other")
        if self.teacher == "endpoint" and not self.endpoint:
            raise ValueError("--teacher endpoint wants --endpoint")
        if self.endpoint and not self.model:
            raise ValueError("--endpoint wants --model")
        if self.cluster and not self.endpoint:
            raise ValueError("--cluster wants --endpoint: the template teacher asks nobody")
        if self.validation + self.test >= 1:
            raise ValueError("validation and test leave nothing for train")
        if self.min_step_chars >= self.max_step_chars:
            raise ValueError("min_step_chars must be below max_step_chars")
        return self

    @property
    def is_offline(self) -> bool:
        """True when the embedded template teacher writes the answers."""
        return self.endpoint is None

    def columns(self) -> dict[str, str]:
        """`column` entries as a mapping from our name to the file's."""
        return dict(entry.split("=", 1) for entry in self.column if "=" in entry)
