"""What can be set for `cbtqa generate` and `cbtqa chat`, with the help text of each flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cbtqa.llm.runs import EndpointSettings, ServerSettings
from cbtqa.llm.second_opinion import GuardSettings, ScreenEndpointSettings
from cbtqa.safety.settings import ScreenModelSettings
from cbtqa.settings import Settings
from cbtqa.tuning.settings import Mode, Place, Precision, Thinking

CARD = {"max_new_tokens": 256, "temperature": 1.0, "top_k": 50}
"""Source: the card of Hongbin37/CBT-LLM, which sets max_new_tokens=256 and leaves the rest to the
generation configuration; temperature and top-k are transformers' for sampling. assumed"""


class ModelSettings(Settings):
    """Which model answers."""

    panel: ClassVar[str] = "Model"
    adapter: Path | None = None
    """Folder of `cbtqa finetune`."""
    base: str | None = None
    """The adapter's base, by name, folder or Hub id. Default: what it names."""
    model: str | None = None
    """Model folder, backbone name or Hub id; with --endpoint its name there."""
    revision: str | None = None
    """Commit or tag of a model on the Hub."""
    from_: Place = "hub"
    """Where a model that is not here is downloaded from: hub, or modelscope (needs its library)."""


class DecodingSettings(Settings):
    """What it is asked, and how it draws its words."""

    panel: ClassVar[str] = "Prompt and decoding"
    mode: Mode | None = None
    """Form of the answers: answer, steps or cot. Default: as the adapter was trained, else
    answer."""
    system_prompt: str | None = None
    """System text. Default: as the adapter was trained, else by mode; it bounds what a program may
    do."""
    chat_format: str | None = None
    """Chat format by name or template file. Default: as trained, else the model's own."""
    thinking: Thinking | None = None
    """off, on or keep, of a chat format with a switch for reasoning. Default: as trained, else off;
    at an endpoint what the server does (on and off are sent as chat_template_kwargs, which vLLM,
    SGLang and llama.cpp read)."""
    decoding: Literal["greedy", "card", "model"] = "greedy"
    """greedy (the likeliest token each time), card (256 new tokens and sampling, as the card of the
    released CBT-LLM) or model (what its own generation_config.json says). The flags below win."""
    max_new_tokens: int = Field(1024, ge=1)
    """Most tokens of an answer; one that reaches them is rejected as cut."""
    temperature: float = Field(0.0, ge=0, le=2)
    """0 takes the likeliest token each time, so that a score can be repeated."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling."""
    top_k: int | None = Field(None, ge=1)
    """Only the K likeliest tokens."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Above 1: repeated tokens become less likely."""
    seed: int = Field(0, ge=0)
    """Seed of sampling; each question draws from its own, whatever its batch."""

    @model_validator(mode="before")
    @classmethod
    def _as_the_card(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("decoding") != "card":
            return values
        return {**CARD, **{name: one for name, one in values.items() if one is not None}}

    def with_own(self, generation: dict[str, Any]) -> Self:
        """With `--decoding model`, what a generation_config.json says where no flag did."""
        if self.decoding != "model":
            return self
        draws = bool(generation.get("do_sample"))
        own = {name: generation.get(name) for name in ("max_new_tokens", "repetition_penalty")}
        own["temperature"] = generation.get("temperature") or 1.0 if draws else 0.0
        if draws:  # transformers' own default where the file is silent
            own |= {"top_k": generation.get("top_k", 50) or None, "top_p": generation.get("top_p")}
        known = self.model_fields_set
        told = {n: one for n, one in own.items() if one is not None and n not in known}
        return self.model_copy(update=told)


class ComputeSettings(Settings):
    """Where a model in this process runs."""

    panel: ClassVar[str] = "Compute"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a CUDA card when there is one."""
    dtype: Precision = "auto"
    """auto: bf16 where the card has it, else fp16; fp32 on a CPU."""


class SpeakerSettings(
    ModelSettings, DecodingSettings, ComputeSettings, ScreenModelSettings, ServerSettings
):
    """Which model answers, and how it draws its words."""


class BatchSettings(Settings):
    """How a model in this process is run over many questions."""

    panel: ClassVar[str] = "Compute"
    engine: Literal["transformers", "vllm"] = "transformers"
    """vllm, when installed, is several times faster on a GPU."""
    batch_tokens: int = Field(16384, ge=1)
    """Tokens of one batch, answers at their longest included. Halved by itself when the device has
    no memory left."""


class GenerateSettings(
    SpeakerSettings, BatchSettings, EndpointSettings, ScreenEndpointSettings, GuardSettings
):
    """The settings of `cbtqa generate`."""

    data: Path | None = None
    """Built dataset, question file, or a .jsonl/.json/.parquet file of rows with `prompt` or
    `messages`."""
    split: str = "test"
    """Splits of a built dataset, comma-separated, or all."""
    limit: int | None = Field(None, ge=1)
    """Only the first N questions."""
    encoding: str = "utf-8"
    """Encoding of a text file, such as gb18030."""
    system: str | None = None
    """Name of this system in score tables. Default: the folder's or model's name."""
    max_attempts: int = Field(1, ge=1, le=1)
    """Always 1: a second try would flatter the system."""
    out: Path = Path("cbtqa-answers")
    """Folder of the answers."""
