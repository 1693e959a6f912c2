"""What can be set for `cbtqa generate` and `cbtqa chat`, with the help text of each flag."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.config import JsonDict

from cbtqa.settings import Settings
from cbtqa.tuning.settings import Mode, Precision

_MODEL: JsonDict = {"panel": "Model"}
_TEXT: JsonDict = {"panel": "Prompt and decoding"}
_COMPUTE: JsonDict = {"panel": "Compute"}
_ENDPOINT: JsonDict = {"panel": "Endpoint"}


class SpeakerSettings(Settings):
    """Which model answers, and how it draws its words."""

    adapter: Path | None = Field(
        None, description="Folder of `cbtqa finetune`.", json_schema_extra=_MODEL
    )
    base: str | None = Field(
        None,
        description="The adapter's base, by name, folder or Hub id. Default: what it names.",
        json_schema_extra=_MODEL,
    )
    model: str | None = Field(
        None,
        description="Model folder, backbone name or Hub id; with --endpoint its name there.",
        json_schema_extra=_MODEL,
    )
    revision: str | None = Field(
        None, description="Commit or tag of a model on the Hub.", json_schema_extra=_MODEL
    )

    mode: Mode | None = Field(
        None,
        description="Form of the answers: answer, steps or cot. Default: as the adapter was "
        "trained, else answer.",
        json_schema_extra=_TEXT,
    )
    system_prompt: str | None = Field(
        None,
        description="System text. Default: as the adapter was trained, else a counsellor's, by "
        "mode.",
        json_schema_extra=_TEXT,
    )
    chat_format: str | None = Field(
        None,
        description="Chat format by name or template file. Default: as trained, else the model's "
        "own.",
        json_schema_extra=_TEXT,
    )
    max_new_tokens: int = Field(
        1024,
        ge=1,
        description="Most tokens of an answer; one that reaches them is rejected as cut.",
        json_schema_extra=_TEXT,
    )
    temperature: float = Field(
        0.0,
        ge=0,
        le=2,
        description="0 takes the likeliest token each time, so that a score can be repeated.",
        json_schema_extra=_TEXT,
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling.", json_schema_extra=_TEXT)
    top_k: int | None = Field(
        None, ge=1, description="Only the K likeliest tokens.", json_schema_extra=_TEXT
    )
    repetition_penalty: float = Field(
        1.0,
        gt=0,
        description="Above 1: repeated tokens become less likely.",
        json_schema_extra=_TEXT,
    )
    seed: int = Field(
        0,
        ge=0,
        description="Seed of sampling; each question draws from its own, whatever its batch.",
        json_schema_extra=_TEXT,
    )

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: a CUDA card when there is one.", json_schema_extra=_COMPUTE
    )
    dtype: Precision = Field(
        "auto",
        description="auto: bf16 where the card has it, else fp16; fp32 on a CPU.",
        json_schema_extra=_COMPUTE,
    )

    endpoint: str | None = Field(
        None,
        description="Base URL of an OpenAI-compatible endpoint, or a preset.",
        json_schema_extra=_ENDPOINT,
    )
    acknowledge_disclosure: bool = Field(
        False,
        description="I may pass these questions on to the operator of a non-local endpoint.",
        json_schema_extra=_ENDPOINT,
    )
    timeout_s: float = Field(
        300.0, gt=0, description="Seconds one request may take.", json_schema_extra=_ENDPOINT
    )


class GenerateSettings(SpeakerSettings):
    """Everything `cbtqa generate` can be told."""

    data: Path | None = Field(
        None,
        description="Built dataset, question file, or a .jsonl/.json/.parquet file of rows with "
        "`prompt` or `messages`.",
    )
    split: str = Field("test", description="Splits of a built dataset, comma-separated, or all.")
    limit: int | None = Field(None, ge=1, description="Only the first N questions.")
    encoding: str = Field("utf-8", description="Encoding of a text file, such as gb18030.")

    system: str | None = Field(
        None,
        description="Name of this system in score tables. Default: the folder's or model's name.",
        json_schema_extra=_MODEL,
    )

    engine: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="vllm, when installed, is several times faster on a GPU.",
        json_schema_extra=_COMPUTE,
    )
    batch_tokens: int = Field(
        16384,
        ge=1,
        description="Tokens of one batch, answers at their longest included. Halved by itself "
        "when the device has no memory left.",
        json_schema_extra=_COMPUTE,
    )

    in_flight: int = Field(
        64, ge=1, le=16384, description="Most requests at a time.", json_schema_extra=_ENDPOINT
    )
    rpm: int | None = Field(
        None, ge=1, description="Requests a minute, at most.", json_schema_extra=_ENDPOINT
    )
    tpm: int | None = Field(
        None, ge=1, description="Tokens a minute, at most.", json_schema_extra=_ENDPOINT
    )

    out: Path = Field(Path("cbtqa-answers"), description="Folder of the answers.")
