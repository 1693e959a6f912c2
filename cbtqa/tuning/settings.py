"""The settings of `cbtqa finetune`, with the help text of each flag, and its presets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from cbtqa.errors import ConfigError, DataError, faults_of
from cbtqa.files import read_text
from cbtqa.plain_values import parse_yaml
from cbtqa.settings import Resolved, Settings
from cbtqa.tuning.libraries import shipped, shipped_yaml

OnStage = Callable[[str], None]
Place = Literal["hub", "modelscope"]
"""Where a model is downloaded from: the Hugging Face Hub, or ModelScope by its own library."""
"""Receives a few words on what a run does now."""
OnLine = Callable[[dict[str, float]], None]
"""Receives the figures of a log line."""
Objective = Literal["sft", "orpo"]
Mode = Literal["answer", "steps", "cot"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Thinking = Literal["off", "on", "keep"]
"""What a chat format with a switch for it does before an answer where nobody sets the switch."""


class LoraSettings(Settings):
    """The shape of the adapter."""

    panel: ClassVar[str] = "Adapter"
    method: Literal["lora", "qlora"] = "lora"
    """lora, or qlora: the frozen weights in 4 bits, for cards that are too small."""
    rank: int = Field(16, ge=1, le=1024)
    """Rank of the adapter."""
    alpha: int = Field(32, ge=1)
    """Scale of the adapter, before its division."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapter. 0.05 takes 1.4 times the memory per token."""
    targets: Literal["default", "experts"] = "default"
    """default (the backbone's linear layers; of a mixture of experts attention and what every token
    passes) or experts (the experts as well)."""
    target_module: tuple[str, ...] = ()
    """Linear layer to adapt, such as q_proj. May be repeated. Default: the backbone's own list."""
    rslora: bool = False
    """Divide alpha by the root of the rank: steadier at rank 64 and above."""
    dora: bool = False
    """Weight-decomposed adapter; about a quarter slower."""


class DataSettings(Settings):
    """What is learnt, and in which form."""

    panel: ClassVar[str] = "Data"
    revision: str | None = None
    """Commit or tag of the backbone on the Hub. Default: the pinned one."""
    from_: Place = "hub"
    """Where a backbone that is not here is downloaded from: hub, or modelscope (needs its
    library)."""
    validation_data: Path | None = None
    """File to evaluate on. Default: the dataset's validation split."""
    mode: Mode = "answer"
    """What a dataset's answers become: answer (flowing text, as in the paper), steps (with
    headings), cot (distortions first, then the answer)."""
    system_prompt: str | None = None
    """System text of a built dataset's prompts. Default: by mode; it bounds what a
    program may do."""
    chat_format: str | None = None
    """Chat format by name or template file. Default: the backbone's own."""
    thinking: Thinking = "off"
    """Reasoning before an answer, of a chat format that has a switch for it: off (an empty think
    block), on (rows may hold <think>...</think>), keep (the format as it was published). Saved with
    the adapter, so that a server asks as in training."""
    max_length: int = Field(2048, ge=16)
    """Longest prompt and answer together, in tokens. Longer rows are left out and counted, never
    cut."""
    shorten_prompts: bool = False
    """Shorten a too long prompt at the beginning of its description, so that the answer fits."""
    loss_on: Literal["answer", "text"] = "answer"
    """Tokens that are learnt: the answer with its end of turn, or the whole text."""
    limit: int | None = Field(None, ge=1)
    """Only the first N rows of a split."""
    allow_template: bool = False
    """Train on text of the template teacher, which is no source for real models."""
    with_risk: bool = False
    """Also use rows whose question shows a risk (column risk: concern or explicit). Without it they
    are left out of training and validation, whatever split they are in, and counted."""


class TrainingSettings(Settings):
    """How it is learnt."""

    panel: ClassVar[str] = "Training"
    objective: Objective = "sft"
    """sft (answers) or orpo (chosen against rejected answers)."""
    epochs: float = Field(3.0, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(None, ge=1)
    """This many steps, in place of --epochs."""
    batch_size: int = Field(16, ge=1)
    """Examples per optimiser step, over all processes. How they are divided into micro-batches
    changes speed and memory, not the result."""
    learning_rate: float = Field(2e-4, gt=0)
    """Highest learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate."""
    warmup: float = Field(0.03, ge=0)
    """Warm-up: a share of all steps below 1, a number of steps from 1 on."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the adapter."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients above this norm are scaled."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit needs bitsandbytes; with adapters it saves little."""
    beta: float = Field(0.1, gt=0)
    """Weight of ORPO's odds term."""
    orpo_nll: Literal["text", "answer"] = "text"
    """Tokens of ORPO's likelihood term: prompt and chosen answer (text, as in TRL), or the answer
    alone."""
    seed: int = Field(0, ge=0)
    """Seed of order, adapter and dropout."""


class ComputeSettings(Settings):
    """How the arithmetic is done; the result stays the same."""

    panel: ClassVar[str] = "Compute"
    micro_batch_tokens: int = Field(8192, ge=16)
    """Tokens that go through the model at once, per process. Apart from --max-length; a longer
    example goes alone."""
    packing: bool = True
    """Lay examples end to end, each seeing only itself. Without: padded batches of similar
    lengths."""
    precision: Precision = "auto"
    """auto: bf16 where the card has it, else fp16; fp32 on a CPU."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations: a third slower, a tenth of the memory. auto: only when the estimate
    says that it does not fit otherwise."""
    compile: bool = False
    """torch.compile; faster on a GPU after minutes of compiling."""


class EvaluationSettings(Settings):
    """What is looked at on the way."""

    panel: ClassVar[str] = "Evaluation"
    eval_steps: int | None = Field(None, ge=1)
    """Evaluate and save each N steps. Default: once an epoch."""
    n_samples: int = Field(4, ge=0)
    """Validation questions answered and scored at each evaluation."""
    sample_tokens: int = Field(512, ge=1)
    """Most new tokens of a sample answer."""
    early_stopping: int | None = Field(None, ge=1)
    """Stop after N evaluations without a lower loss."""
    keep_checkpoints: int = Field(2, ge=1)
    """Checkpoints kept beside the best one."""
    log_steps: int = Field(10, ge=1)
    """A log line each N steps."""
    tracker: tuple[str, ...] = ()
    """Also log to tensorboard, trackio or wandb, where installed. May be repeated."""


class OutputSettings(Settings):
    """What is written."""

    panel: ClassVar[str] = "Output"
    out: Path = Path("cbtqa-adapter")
    """Folder of the adapter."""


class FinetuneSettings(
    DataSettings,
    LoraSettings,
    TrainingSettings,
    ComputeSettings,
    EvaluationSettings,
    OutputSettings,
):
    """Everything that shapes a training run. The defaults are the preset `modern`."""

    data: Path | None = None
    """Built dataset, folder of `cbtqa simulate export`, or a .jsonl/.json/.parquet file of rows
    prompt + completion, messages, or prompt + chosen + rejected."""
    backbone: str | None = None
    """Backbone by name (`cbtqa backbones`), local folder or Hub id."""
    preset: str = "modern"
    """modern, paper, tahir-cbt, tahir-act-sft, tahir-act-orpo, or a YAML file of your own."""

    @model_validator(mode="before")
    @classmethod
    def _named_after_the_backbone(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("out") is None and values.get("backbone"):
            values = {**values, "out": Path("cbtqa-tuned", Path(str(values["backbone"])).name)}
        return values


# --- presets -------------------------------------------------------------------------------------
# A preset is a layer of settings under the flags, each with its source:
#
#     rank: {value: 8, mark: assumed, why: "the default of the paper's framework at the time"}
#
# A preset of one's own is a YAML file of the same form, or of plain `rank: 8` lines.

Mark = Literal["card", "summary", "notebook", "measured", "assumed"]
"""card: the model card; summary: public summaries of the paper; notebook: the authors' own code;
measured: by us; assumed: the source is silent."""
MARKS: tuple[str, ...] = get_args(Mark)


def shipped_presets() -> list[str]:
    """Names of the presets that come with the package."""
    return shipped("presets", ".yaml")


def resolve_preset(resolved: Resolved[FinetuneSettings]) -> Resolved[FinetuneSettings]:
    """Puts the preset's values where nothing else gave one; raises ConfigError for bad values."""
    preset = read_preset(resolved.values.preset)
    values = {
        name: getattr(resolved.values, name)
        for name, origin in resolved.origins.items()
        if origin != "default"
    }
    origins = dict(resolved.origins)
    for name, (value, origin) in preset.items():
        if resolved.origins[name] == "default":
            values[name], origins[name] = value, origin
    try:
        merged = FinetuneSettings.model_validate(values)
    except ValidationError as error:
        problems = (
            f"{origins.get(str(item['loc'][0]), resolved.values.preset)}: "
            f"{item['loc'][0]}: {item['msg']}, got {item['input']!r}"
            for item in faults_of(error)
        )
        raise ConfigError("\n".join(problems)) from None
    return Resolved(merged, origins)


def read_preset(name: str) -> dict[str, tuple[Any, str]]:
    """Values and origins of a shipped preset or a .yaml file, by setting; raises ConfigError."""
    if name.endswith((".yaml", ".yml")):
        text = read_text(Path(name))
        title = Path(name).name
    elif name in shipped_presets():
        text = shipped_yaml(f"presets/{name}.yaml")
        title = f"preset {name}"
    else:
        raise ConfigError(
            f"--preset: no preset '{name}'",
            hint=f"shipped: {', '.join(shipped_presets())}; or the path of a YAML file",
        )
    try:
        rows = parse_yaml(text, title) or {}
    except DataError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(rows, dict):
        raise ConfigError(f"{title}: expected settings as `key: value` lines")
    problems = [problem for key, row in rows.items() if (problem := _problem(key, row))]
    if problems:
        raise ConfigError("\n".join(f"{title}: {problem}" for problem in problems))
    return {key: _entry(title, row) for key, row in rows.items()}


def _problem(key: str, row: Any) -> str | None:
    if key not in FinetuneSettings.model_fields or key == "preset":
        return f"unknown setting '{key}'"
    if isinstance(row, dict):
        if "value" not in row or not row.keys() <= {"value", "mark", "why"}:
            return f"{key}: expected value, mark and why, found {', '.join(map(str, row))}"
        if row.get("mark") not in (None, *MARKS):
            return f"{key}: mark is '{row['mark']}', expected one of {', '.join(MARKS)}"
    return None


def _entry(title: str, row: Any) -> tuple[Any, str]:
    if not isinstance(row, dict):
        return row, title
    marked = ", ".join(str(row[key]) for key in ("mark", "why") if key in row)
    return row["value"], f"{title}: {marked}" if marked else title
