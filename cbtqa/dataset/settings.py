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

    input: Path | None = None
    """PsyQA file (.json, .jsonl, .csv, .tsv, .parquet). Default: the bundled sample of invented
    questions."""
    encoding: str = Field("utf-8", json_schema_extra=_INPUT)
    """Encoding of a text file, such as gb18030."""
    column: tuple[str, ...] = Field((), json_schema_extra=_INPUT)
    """Name a column of the file: question=title. May be repeated."""
    limit: int | None = Field(None, ge=1, json_schema_extra=_INPUT)
    """Only the first N rows."""

    teacher: Literal["template", "endpoint"] | None = Field(None, json_schema_extra=_TEACHER)
    """Who writes the answers. Default: template (rules, offline), or endpoint when --endpoint is
    given."""
    endpoint: str | None = Field(None, json_schema_extra=_TEACHER)
    """Base URL of an OpenAI-compatible endpoint, or a preset: openai, deepseek, dashscope, zhipu,
    moonshot, siliconflow, vllm, ollama, llama.cpp, transformers-serve."""
    model: str | None = Field(None, json_schema_extra=_TEACHER)
    """Model name at the endpoint."""
    acknowledge_disclosure: bool = Field(False, json_schema_extra=_TEACHER)
    """I may pass this text on to the operator of a non-local endpoint. PsyQA's agreement forbids
    it without permission; recorded in the manifest."""
    prompt: str = Field("cbt_answer", json_schema_extra=_TEACHER)
    """Prompt: cbt_answer (five steps as JSON), cbt_answer_fused (one flowing text, as in the
    paper), or the path of your own."""
    examples: int = Field(0, ge=0, le=2, json_schema_extra=_TEACHER)
    """Worked examples shown to the model."""
    persona: str = Field("supporter", json_schema_extra=_TEACHER)
    """supporter, counsellor, peer, or a sentence of your own."""
    taxonomy: str = Field("burns-10", json_schema_extra=_TEACHER)
    """Distortion taxonomy (see `cbtqa distortions taxonomies`)."""
    temperature: float = Field(0.7, ge=0, le=2, json_schema_extra=_TEACHER)
    """Assumed: the paper is silent."""
    top_p: float | None = Field(None, gt=0, le=1, json_schema_extra=_TEACHER)
    """Nucleus sampling."""
    max_tokens: int = Field(2048, ge=64, json_schema_extra=_TEACHER)
    """Token limit of one reply."""
    seed: int = Field(0, json_schema_extra=_TEACHER)
    """Seed of the teacher's choices."""

    in_flight: int = Field(64, ge=1, le=16384, json_schema_extra=_ENGINE)
    """Most requests at a time."""
    rpm: int | None = Field(None, ge=1, json_schema_extra=_ENGINE)
    """Requests a minute, at most."""
    tpm: int | None = Field(None, ge=1, json_schema_extra=_ENGINE)
    """Tokens a minute, at most."""
    timeout_s: float = Field(180.0, gt=0, json_schema_extra=_ENGINE)
    """Seconds one request may take."""
    max_attempts: int = Field(3, ge=1, le=10, json_schema_extra=_ENGINE)
    """Replies asked for per question, faulty ones included."""
    transport: Literal["http", "sdk"] = Field("http", json_schema_extra=_ENGINE)
    """http is the thin road; sdk sends through the openai package."""
    cluster: str | None = Field(None, json_schema_extra=_ENGINE)
    """Ask from the actors of a Ray cluster: its address, or local. The endpoint's address is
    resolved on their machines."""
    cluster_actors: int = Field(2, ge=1, le=256, json_schema_extra=_ENGINE)
    """Actors that share the limits."""
    price_in: float | None = Field(None, ge=0, json_schema_extra=_ENGINE)
    """Price of a million prompt tokens."""
    price_out: float | None = Field(None, ge=0, json_schema_extra=_ENGINE)
    """Price of a million completion tokens."""
    budget: float | None = Field(None, gt=0, json_schema_extra=_ENGINE)
    """Stop before this much is spent, in the currency of the price."""
    budget_tokens: int | None = Field(None, gt=0, json_schema_extra=_ENGINE)
    """Stop after this many tokens."""

    out: Path = Field(Path("cbtqa-dataset"), json_schema_extra=_OUTPUT)
    """Folder of the dataset."""
    crisis: Literal["split", "keep", "drop"] = Field("split", json_schema_extra=_OUTPUT)
    """Crisis questions: in a split of their own, among the others, or left out (always counted)."""
    validation: float = Field(0.05, ge=0, lt=1, json_schema_extra=_OUTPUT)
    """Share of the validation split."""
    test: float = Field(0.05, ge=0, lt=1, json_schema_extra=_OUTPUT)
    """Share of the test split."""
    split_seed: int = Field(0, json_schema_extra=_OUTPUT)
    """Seed of the split by hash of question id."""
    near_duplicate: float = Field(0.7, gt=0, le=1, json_schema_extra=_OUTPUT)
    """Questions at least this alike (Jaccard of character 4-grams) share a split."""
    min_step_chars: int = Field(10, ge=1, json_schema_extra=_OUTPUT)
    """Shortest step, in characters."""
    max_step_chars: int = Field(800, ge=10, json_schema_extra=_OUTPUT)
    """Longest step, in characters."""
    include_human: bool = Field(False, json_schema_extra=_OUTPUT)
    """Also write PsyQA's own answers, for comparison."""
    max_rejected: float = Field(0.5, ge=0, le=1, json_schema_extra=_OUTPUT)
    """Share of rejected questions above which the run counts as incomplete."""

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
