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

    adapter: Path | None = Field(None, json_schema_extra=_MODEL)
    """Folder of `cbtqa finetune`."""
    base: str | None = Field(None, json_schema_extra=_MODEL)
    """The adapter's base, by name, folder or Hub id. Default: what it names."""
    model: str | None = Field(None, json_schema_extra=_MODEL)
    """Model folder, backbone name or Hub id; with --endpoint its name there."""
    revision: str | None = Field(None, json_schema_extra=_MODEL)
    """Commit or tag of a model on the Hub."""

    mode: Mode | None = Field(None, json_schema_extra=_TEXT)
    """Form of the answers: answer, steps or cot. Default: as the adapter was trained, else
    answer."""
    system_prompt: str | None = Field(None, json_schema_extra=_TEXT)
    """System text. Default: as the adapter was trained, else a counsellor's, by mode."""
    chat_format: str | None = Field(None, json_schema_extra=_TEXT)
    """Chat format by name or template file. Default: as trained, else the model's own."""
    max_new_tokens: int = Field(1024, ge=1, json_schema_extra=_TEXT)
    """Most tokens of an answer; one that reaches them is rejected as cut."""
    temperature: float = Field(0.0, ge=0, le=2, json_schema_extra=_TEXT)
    """0 takes the likeliest token each time, so that a score can be repeated."""
    top_p: float = Field(1.0, gt=0, le=1, json_schema_extra=_TEXT)
    """Nucleus sampling."""
    top_k: int | None = Field(None, ge=1, json_schema_extra=_TEXT)
    """Only the K likeliest tokens."""
    repetition_penalty: float = Field(1.0, gt=0, json_schema_extra=_TEXT)
    """Above 1: repeated tokens become less likely."""
    seed: int = Field(0, ge=0, json_schema_extra=_TEXT)
    """Seed of sampling; each question draws from its own, whatever its batch."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", json_schema_extra=_COMPUTE)
    """auto: a CUDA card when there is one."""
    dtype: Precision = Field("auto", json_schema_extra=_COMPUTE)
    """auto: bf16 where the card has it, else fp16; fp32 on a CPU."""

    endpoint: str | None = Field(None, json_schema_extra=_ENDPOINT)
    """Base URL of an OpenAI-compatible endpoint, or a preset."""
    acknowledge_disclosure: bool = Field(False, json_schema_extra=_ENDPOINT)
    """I may pass these questions on to the operator of a non-local endpoint."""
    timeout_s: float = Field(300.0, gt=0, json_schema_extra=_ENDPOINT)
    """Seconds one request may take."""


class GenerateSettings(SpeakerSettings):
    """Everything `cbtqa generate` can be told."""

    data: Path | None = None
    """Built dataset, question file, or a .jsonl/.json/.parquet file of rows with `prompt` or
    `messages`."""
    split: str = "test"
    """Splits of a built dataset, comma-separated, or all."""
    limit: int | None = Field(None, ge=1)
    """Only the first N questions."""
    encoding: str = "utf-8"
    """Encoding of a text file, such as gb18030."""

    system: str | None = Field(None, json_schema_extra=_MODEL)
    """Name of this system in score tables. Default: the folder's or model's name."""

    engine: Literal["transformers", "vllm"] = Field("transformers", json_schema_extra=_COMPUTE)
    """vllm, when installed, is several times faster on a GPU."""
    batch_tokens: int = Field(16384, ge=1, json_schema_extra=_COMPUTE)
    """Tokens of one batch, answers at their longest included. Halved by itself when the device has
    no memory left."""

    in_flight: int = Field(64, ge=1, le=16384, json_schema_extra=_ENDPOINT)
    """Most requests at a time."""
    rpm: int | None = Field(None, ge=1, json_schema_extra=_ENDPOINT)
    """Requests a minute, at most."""
    tpm: int | None = Field(None, ge=1, json_schema_extra=_ENDPOINT)
    """Tokens a minute, at most."""

    out: Path = Path("cbtqa-answers")
    """Folder of the answers."""
