"""What can be set for `cbtqa finetune`, with the help text of each flag.

A preset is a layer under the flags: `resolve_preset` puts its values where nothing else was
given, and keeps what each value rests on, such as `preset paper: assumed, ...`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.config import JsonDict

from cbtqa.settings import Settings

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

    method: Literal["lora", "qlora"] = Field(
        "lora",
        description="lora, or qlora: the frozen weights in 4 bits, for cards that are too small.",
        json_schema_extra=_ADAPTER,
    )
    rank: int = Field(
        16, ge=1, le=1024, description="Rank of the adapter.", json_schema_extra=_ADAPTER
    )
    alpha: int = Field(
        32,
        ge=1,
        description="Scale of the adapter, before its division.",
        json_schema_extra=_ADAPTER,
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Dropout before the adapter. 0.05 takes 1.4 times the memory per token.",
        json_schema_extra=_ADAPTER,
    )
    target_module: tuple[str, ...] = Field(
        (),
        description="Linear layer to adapt, such as q_proj. May be repeated. Default: the "
        "backbone's own list.",
        json_schema_extra=_ADAPTER,
    )
    rslora: bool = Field(
        False,
        description="Divide alpha by the root of the rank: steadier at rank 64 and above.",
        json_schema_extra=_ADAPTER,
    )
    dora: bool = Field(
        False,
        description="Weight-decomposed adapter; about a quarter slower.",
        json_schema_extra=_ADAPTER,
    )


class FinetuneSettings(LoraSettings):
    """Everything that shapes a training run. The defaults are the preset `modern`."""

    data: Path | None = Field(
        None,
        description="Built dataset, folder of `cbtqa simulate export`, or a .jsonl/.json/.parquet "
        "file of rows prompt + completion, messages, or prompt + chosen + rejected.",
    )
    backbone: str | None = Field(
        None,
        description="Backbone by name (`cbtqa backbones`), local folder or Hub id.",
    )
    revision: str | None = Field(
        None,
        description="Commit or tag of the backbone on the Hub. Default: the pinned one.",
        json_schema_extra=_DATA,
    )
    preset: str = Field(
        "modern",
        description="modern, paper, tahir-cbt, tahir-act-sft, tahir-act-orpo, or a YAML file of "
        "your own.",
    )
    objective: Objective = Field(
        "sft",
        description="sft (answers) or orpo (chosen against rejected answers).",
        json_schema_extra=_TRAINING,
    )

    validation_data: Path | None = Field(
        None,
        description="File to evaluate on. Default: the dataset's validation split.",
        json_schema_extra=_DATA,
    )
    mode: Mode = Field(
        "answer",
        description="What a dataset's answers become: answer (flowing text, as in the paper), "
        "steps (with headings), cot (distortions first, then the answer).",
        json_schema_extra=_DATA,
    )
    system_prompt: str | None = Field(
        None,
        description="System text of a built dataset's prompts. Default: a counsellor's, by mode.",
        json_schema_extra=_DATA,
    )
    chat_format: str | None = Field(
        None,
        description="Chat format by name or template file. Default: the backbone's own.",
        json_schema_extra=_DATA,
    )
    max_length: int = Field(
        2048,
        ge=16,
        description="Longest prompt and answer together, in tokens. Longer rows are left out and "
        "counted, never cut.",
        json_schema_extra=_DATA,
    )
    shorten_prompts: bool = Field(
        False,
        description="Shorten a too long prompt at the beginning of its description, so that the "
        "answer fits.",
        json_schema_extra=_DATA,
    )
    loss_on: Literal["answer", "text"] = Field(
        "answer",
        description="Tokens that are learnt: the answer with its end of turn, or the whole text.",
        json_schema_extra=_DATA,
    )
    limit: int | None = Field(
        None, ge=1, description="Only the first N rows of a split.", json_schema_extra=_DATA
    )
    allow_template: bool = Field(
        False,
        description="Train on text of the template teacher, which is no source for real models.",
        json_schema_extra=_DATA,
    )

    epochs: float = Field(
        3.0, gt=0, description="Passes over the data.", json_schema_extra=_TRAINING
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        description="This many steps, in place of --epochs.",
        json_schema_extra=_TRAINING,
    )
    batch_size: int = Field(
        16,
        ge=1,
        description="Examples per optimiser step, over all processes. How they are divided into "
        "micro-batches changes speed and memory, not the result.",
        json_schema_extra=_TRAINING,
    )
    learning_rate: float = Field(
        2e-4, gt=0, description="Highest learning rate.", json_schema_extra=_TRAINING
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Course of the learning rate.", json_schema_extra=_TRAINING
    )
    warmup: float = Field(
        0.03,
        ge=0,
        description="Warm-up: a share of all steps below 1, a number of steps from 1 on.",
        json_schema_extra=_TRAINING,
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Weight decay of the adapter.", json_schema_extra=_TRAINING
    )
    max_grad_norm: float = Field(
        1.0, gt=0, description="Gradients above this norm are scaled.", json_schema_extra=_TRAINING
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw",
        description="adamw_8bit needs bitsandbytes; with adapters it saves little.",
        json_schema_extra=_TRAINING,
    )
    beta: float = Field(
        0.1, gt=0, description="Weight of ORPO's odds term.", json_schema_extra=_TRAINING
    )
    orpo_nll: Literal["text", "answer"] = Field(
        "text",
        description="Tokens of ORPO's likelihood term: prompt and chosen answer (text, as in "
        "TRL), or the answer alone.",
        json_schema_extra=_TRAINING,
    )
    seed: int = Field(
        0, ge=0, description="Seed of order, adapter and dropout.", json_schema_extra=_TRAINING
    )

    micro_batch_tokens: int = Field(
        8192,
        ge=16,
        description="Tokens that go through the model at once, per process. Apart from "
        "--max-length; a longer example goes alone.",
        json_schema_extra=_COMPUTE,
    )
    packing: bool = Field(
        True,
        description="Lay examples end to end, each seeing only itself. Without: padded batches "
        "of similar lengths.",
        json_schema_extra=_COMPUTE,
    )
    precision: Precision = Field(
        "auto",
        description="auto: bf16 where the card has it, else fp16; fp32 on a CPU.",
        json_schema_extra=_COMPUTE,
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Recompute activations: a third slower, a tenth of the memory. auto: only "
        "when the estimate says that it does not fit otherwise.",
        json_schema_extra=_COMPUTE,
    )
    compile: bool = Field(
        False,
        description="torch.compile; faster on a GPU after minutes of compiling.",
        json_schema_extra=_COMPUTE,
    )

    eval_steps: int | None = Field(
        None,
        ge=1,
        description="Evaluate and save each N steps. Default: once an epoch.",
        json_schema_extra=_EVALUATION,
    )
    n_samples: int = Field(
        4,
        ge=0,
        description="Validation questions answered and scored at each evaluation.",
        json_schema_extra=_EVALUATION,
    )
    sample_tokens: int = Field(
        512,
        ge=1,
        description="Most new tokens of a sample answer.",
        json_schema_extra=_EVALUATION,
    )
    early_stopping: int | None = Field(
        None,
        ge=1,
        description="Stop after N evaluations without a lower loss.",
        json_schema_extra=_EVALUATION,
    )
    keep_checkpoints: int = Field(
        2,
        ge=1,
        description="Checkpoints kept beside the best one.",
        json_schema_extra=_EVALUATION,
    )
    log_steps: int = Field(
        10, ge=1, description="A log line each N steps.", json_schema_extra=_EVALUATION
    )
    tracker: tuple[str, ...] = Field(
        (),
        description="Also log to tensorboard or wandb, where installed. May be repeated.",
        json_schema_extra=_EVALUATION,
    )

    out: Path = Field(
        Path("cbtqa-adapter"), description="Folder of the adapter.", json_schema_extra=_OUTPUT
    )
