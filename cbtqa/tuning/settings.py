"""What can be set for `cbtqa finetune`, with the help text of each flag.

A preset is a layer under the flags: `resolve_preset` puts its values where nothing else was
given, and keeps what each value rests on, such as `preset paper: assumed, ...`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic.config import JsonDict

from cbtqa.errors import ConfigError
from cbtqa.files import open_text, parse_yaml
from cbtqa.settings import Resolved, Settings

Objective = Literal["sft", "orpo"]
Mode = Literal["answer", "steps", "cot"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]

_DATA: JsonDict = {"panel": "Data"}
_ADAPTER: JsonDict = {"panel": "Adapter"}
_TRAINING: JsonDict = {"panel": "Training"}
_COMPUTE: JsonDict = {"panel": "Compute"}
_EVALUATION: JsonDict = {"panel": "Evaluation"}
_OUTPUT: JsonDict = {"panel": "Output"}


class LoraSettings(Settings):
    """The shape of the adapter."""

    method: Literal["lora", "qlora"] = Field("lora", json_schema_extra=_ADAPTER)
    """lora, or qlora: the frozen weights in 4 bits, for cards that are too small."""
    rank: int = Field(16, ge=1, le=1024, json_schema_extra=_ADAPTER)
    """Rank of the adapter."""
    alpha: int = Field(32, ge=1, json_schema_extra=_ADAPTER)
    """Scale of the adapter, before its division."""
    dropout: float = Field(0.0, ge=0, lt=1, json_schema_extra=_ADAPTER)
    """Dropout before the adapter. 0.05 takes 1.4 times the memory per token."""
    target_module: tuple[str, ...] = Field((), json_schema_extra=_ADAPTER)
    """Linear layer to adapt, such as q_proj. May be repeated. Default: the backbone's own list."""
    rslora: bool = Field(False, json_schema_extra=_ADAPTER)
    """Divide alpha by the root of the rank: steadier at rank 64 and above."""
    dora: bool = Field(False, json_schema_extra=_ADAPTER)
    """Weight-decomposed adapter; about a quarter slower."""


class FinetuneSettings(LoraSettings):
    """Everything that shapes a training run. The defaults are the preset `modern`."""

    data: Path | None = None
    """Built dataset, folder of `cbtqa simulate export`, or a .jsonl/.json/.parquet file of rows
    prompt + completion, messages, or prompt + chosen + rejected."""
    backbone: str | None = None
    """Backbone by name (`cbtqa backbones`), local folder or Hub id."""
    revision: str | None = Field(None, json_schema_extra=_DATA)
    """Commit or tag of the backbone on the Hub. Default: the pinned one."""
    preset: str = "modern"
    """modern, paper, tahir-cbt, tahir-act-sft, tahir-act-orpo, or a YAML file of your own."""
    objective: Objective = Field("sft", json_schema_extra=_TRAINING)
    """sft (answers) or orpo (chosen against rejected answers)."""

    validation_data: Path | None = Field(None, json_schema_extra=_DATA)
    """File to evaluate on. Default: the dataset's validation split."""
    mode: Mode = Field("answer", json_schema_extra=_DATA)
    """What a dataset's answers become: answer (flowing text, as in the paper), steps (with
    headings), cot (distortions first, then the answer)."""
    system_prompt: str | None = Field(None, json_schema_extra=_DATA)
    """System text of a built dataset's prompts. Default: a counsellor's, by mode."""
    chat_format: str | None = Field(None, json_schema_extra=_DATA)
    """Chat format by name or template file. Default: the backbone's own."""
    max_length: int = Field(2048, ge=16, json_schema_extra=_DATA)
    """Longest prompt and answer together, in tokens. Longer rows are left out and counted, never
    cut."""
    shorten_prompts: bool = Field(False, json_schema_extra=_DATA)
    """Shorten a too long prompt at the beginning of its description, so that the answer fits."""
    loss_on: Literal["answer", "text"] = Field("answer", json_schema_extra=_DATA)
    """Tokens that are learnt: the answer with its end of turn, or the whole text."""
    limit: int | None = Field(None, ge=1, json_schema_extra=_DATA)
    """Only the first N rows of a split."""
    allow_template: bool = Field(False, json_schema_extra=_DATA)
    """Train on text of the template teacher, which is no source for real models."""

    epochs: float = Field(3.0, gt=0, json_schema_extra=_TRAINING)
    """Passes over the data."""
    max_steps: int | None = Field(None, ge=1, json_schema_extra=_TRAINING)
    """This many steps, in place of --epochs."""
    batch_size: int = Field(16, ge=1, json_schema_extra=_TRAINING)
    """Examples per optimiser step, over all processes. How they are divided into micro-batches
    changes speed and memory, not the result."""
    learning_rate: float = Field(2e-4, gt=0, json_schema_extra=_TRAINING)
    """Highest learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", json_schema_extra=_TRAINING)
    """Course of the learning rate."""
    warmup: float = Field(0.03, ge=0, json_schema_extra=_TRAINING)
    """Warm-up: a share of all steps below 1, a number of steps from 1 on."""
    weight_decay: float = Field(0.0, ge=0, json_schema_extra=_TRAINING)
    """Weight decay of the adapter."""
    max_grad_norm: float = Field(1.0, gt=0, json_schema_extra=_TRAINING)
    """Gradients above this norm are scaled."""
    optimizer: Literal["adamw", "adamw_8bit"] = Field("adamw", json_schema_extra=_TRAINING)
    """adamw_8bit needs bitsandbytes; with adapters it saves little."""
    beta: float = Field(0.1, gt=0, json_schema_extra=_TRAINING)
    """Weight of ORPO's odds term."""
    orpo_nll: Literal["text", "answer"] = Field("text", json_schema_extra=_TRAINING)
    """Tokens of ORPO's likelihood term: prompt and chosen answer (text, as in TRL), or the answer
    alone."""
    seed: int = Field(0, ge=0, json_schema_extra=_TRAINING)
    """Seed of order, adapter and dropout."""

    micro_batch_tokens: int = Field(8192, ge=16, json_schema_extra=_COMPUTE)
    """Tokens that go through the model at once, per process. Apart from --max-length; a longer
    example goes alone."""
    packing: bool = Field(True, json_schema_extra=_COMPUTE)
    """Lay examples end to end, each seeing only itself. Without: padded batches of similar
    lengths."""
    precision: Precision = Field("auto", json_schema_extra=_COMPUTE)
    """auto: bf16 where the card has it, else fp16; fp32 on a CPU."""
    gradient_checkpointing: Literal["auto", "on", "off"] = Field("auto", json_schema_extra=_COMPUTE)
    """Recompute activations: a third slower, a tenth of the memory. auto: only when the estimate
    says that it does not fit otherwise."""
    compile: bool = Field(False, json_schema_extra=_COMPUTE)
    """torch.compile; faster on a GPU after minutes of compiling."""

    eval_steps: int | None = Field(None, ge=1, json_schema_extra=_EVALUATION)
    """Evaluate and save each N steps. Default: once an epoch."""
    n_samples: int = Field(4, ge=0, json_schema_extra=_EVALUATION)
    """Validation questions answered and scored at each evaluation."""
    sample_tokens: int = Field(512, ge=1, json_schema_extra=_EVALUATION)
    """Most new tokens of a sample answer."""
    early_stopping: int | None = Field(None, ge=1, json_schema_extra=_EVALUATION)
    """Stop after N evaluations without a lower loss."""
    keep_checkpoints: int = Field(2, ge=1, json_schema_extra=_EVALUATION)
    """Checkpoints kept beside the best one."""
    log_steps: int = Field(10, ge=1, json_schema_extra=_EVALUATION)
    """A log line each N steps."""
    tracker: tuple[str, ...] = Field((), json_schema_extra=_EVALUATION)
    """Also log to tensorboard or wandb, where installed. May be repeated."""

    out: Path = Field(Path("cbtqa-tuned/BACKBONE"), json_schema_extra=_OUTPUT)
    """Folder of the adapter."""

    @model_validator(mode="before")
    @classmethod
    def _named_after_the_backbone(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("out") is None and values.get("backbone"):
            values = {**values, "out": Path("cbtqa-tuned", Path(str(values["backbone"])).name)}
        return values


# --- presets -------------------------------------------------------------------------------------
# Presets: named layers of settings whose every value says what it rests on.
#
#     # in presets/paper.yaml
#     rank: {value: 8, mark: assumed, why: "the default of the paper's framework at the time"}
#
# A preset of one's own is a YAML file of the same form, or of plain `rank: 8` lines.

Mark = Literal["card", "summary", "notebook", "measured", "assumed"]
"""card: the model card; summary: public summaries of the paper; notebook: the authors' own code;
measured: by us; assumed: the source is silent."""
MARKS: tuple[str, ...] = get_args(Mark)
_ENTRY_KEYS = {"value", "mark", "why"}


@dataclass(frozen=True, slots=True)
class PresetValue:
    """One value of a preset, with the origin that error messages and manifests show."""

    value: Any
    origin: str


def shipped_presets() -> tuple[str, ...]:
    """Names of the presets that come with the package."""
    folder = files("cbtqa.tuning") / "presets"
    return tuple(
        sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name[-5:] == ".yaml")
    )


def resolve_preset(resolved: Resolved[FinetuneSettings]) -> Resolved[FinetuneSettings]:
    """Puts the preset's values where neither file, environment nor flag gave one.

    Raises:
        ConfigError: no such preset, or bad values in it, each with its origin.
    """
    preset = read_preset(resolved.values.preset)
    values = {
        name: getattr(resolved.values, name)
        for name, origin in resolved.origins.items()
        if origin != "default"
    }
    origins = dict(resolved.origins)
    for name, entry in preset.items():
        if resolved.origins[name] == "default":
            values[name], origins[name] = entry.value, entry.origin
    try:
        merged = FinetuneSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(
                f"{origins.get(str(item['loc'][0]), resolved.values.preset)}: "
                f"{item['loc'][0]}: {item['msg']}, got {item['input']!r}"
                for item in error.errors(include_url=False)
            )
        ) from None
    return Resolved(merged, origins)


def read_preset(name: str) -> dict[str, PresetValue]:
    """The values of a shipped preset, or of a YAML file when `name` ends in .yaml or .yml.

    Raises:
        ConfigError: no such preset, or lines that are no settings.
    """
    if name.endswith((".yaml", ".yml")):
        with open_text(Path(name)) as stream:
            text = stream.read()
        title = Path(name).name
    elif name in shipped_presets():
        text = (files("cbtqa.tuning") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
        title = f"preset {name}"
    else:
        raise ConfigError(
            f"--preset: no preset '{name}'",
            hint=f"shipped: {', '.join(shipped_presets())}; or the path of a YAML file",
        )
    try:
        rows = parse_yaml(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{title}: not YAML: {getattr(error, 'problem', error)}") from None
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
        if "value" not in row or not row.keys() <= _ENTRY_KEYS:
            return f"{key}: expected value, mark and why, found {', '.join(map(str, row))}"
        if row.get("mark") not in (None, *MARKS):
            return f"{key}: mark is '{row['mark']}', expected one of {', '.join(MARKS)}"
    return None


def _entry(title: str, row: Any) -> PresetValue:
    if not isinstance(row, dict):
        return PresetValue(row, title)
    marked = ", ".join(str(row[key]) for key in ("mark", "why") if key in row)
    return PresetValue(row["value"], f"{title}: {marked}" if marked else title)
