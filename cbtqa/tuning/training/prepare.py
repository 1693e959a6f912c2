"""A run up to its first step: data encoded, backbone loaded, adapter added, steps planned."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cbtqa.errors import ConfigError, UsageError
from cbtqa.manifest import FileEntry
from cbtqa.settings import Resolved
from cbtqa.tuning.attention import documents_stay_apart, register_attention
from cbtqa.tuning.backbones import Backbone
from cbtqa.tuning.data.chat_format import ChatFormat
from cbtqa.tuning.data.encoding import EncodedSet, encode
from cbtqa.tuning.data.examples import is_of_rows, read_training_examples, read_validation_examples
from cbtqa.tuning.data.packing import LossChoice, StepData, StepPlan
from cbtqa.tuning.loading import (
    ComputeType,
    add_adapter,
    load_base,
    load_chat,
    lora_config,
)
from cbtqa.tuning.losses import attach_log_probs
from cbtqa.tuning.settings import FinetuneSettings

OnStage = Callable[[str], None]


@dataclass(frozen=True)
class TrainingSets:
    """What there is to learn and to evaluate on, as tokens."""

    chat: ChatFormat
    train: EncodedSet
    validation: EncodedSet | None
    inputs: tuple[FileEntry, ...]
    notes: tuple[str, ...] = ()
    """What differs from what was asked for."""

    def ids(self) -> dict[str, list[str]]:
        """Ids of the items of each split, in order."""
        sets = [self.train] + ([self.validation] if self.validation else [])
        names = ("train", "validation")
        return {name: [item.id for item in of.items] for name, of in zip(names, sets, strict=False)}


def prepare_sets(settings: FinetuneSettings, backbone: Backbone) -> TrainingSets:
    """Reads and encodes the data.

    Raises:
        ConfigError, DataError: as reading, encoding and loading the tokenizer say.
    """
    chat = load_chat(backbone, settings.chat_format)
    settings, notes = within_context(settings, backbone)
    training = read_training_examples(settings)
    validation = read_validation_examples(settings)
    return TrainingSets(
        chat,
        encode(training, chat, settings),
        encode(validation, chat, settings) if validation is not None else None,
        (*training.files, *(validation.files if validation is not None else ())),
        notes,
    )


def within_context(
    settings: FinetuneSettings, backbone: Backbone
) -> tuple[FinetuneSettings, tuple[str, ...]]:
    """The settings with no more length than the backbone takes, and a note where that changed."""
    if not backbone.context or settings.max_length <= backbone.context:
        return settings, ()
    note = f"{backbone.told_name} takes {backbone.context:,} tokens: longer rows left out"
    return settings.model_copy(update={"max_length": backbone.context}), (note,)


@dataclass(frozen=True)
class Ready:
    """A model that can be trained, and how."""

    model: Any
    is_packed: bool
    """False when the settings say so, or the backbone mixes packed documents."""
    head_is_chunked: bool
    is_checkpointing: bool
    notes: tuple[str, ...]
    """What differs from what was asked for, for the log."""


def prepare_model(
    settings: FinetuneSettings, backbone: Backbone, precision: ComputeType, longest: int
) -> Ready:
    """Loads the backbone and adds the adapter.

    Args:
        longest: tokens of the longest item.

    Raises:
        ConfigError: see `loading`.
    """
    from transformers import set_seed

    config = lora_config(settings, backbone)
    is_4_bit = settings.method == "qlora"
    base = load_base(backbone, precision, in_4_bits=is_4_bit, place=_place(is_4_bit))
    notes = []
    is_packed = settings.packing
    if is_packed:
        base.set_attn_implementation(register_attention())
        is_packed = documents_stay_apart(base)
        if not is_packed:
            base.set_attn_implementation("sdpa")
            notes.append(f"{backbone.told_name} mixes packed documents: padded batches instead")
    head_is_chunked = attach_log_probs(base)
    if not head_is_chunked:
        notes.append(f"{backbone.told_name} does more with its logits: all of them are computed")
    is_checkpointing = _checkpointing(settings, base, config, longest)
    if is_checkpointing:
        _switch_on_checkpointing(base)
        notes.append("activations are recomputed: it would not fit otherwise")
    set_seed(settings.seed)
    model = add_adapter(base, config, backbone)
    return Ready(model, is_packed, head_is_chunked, is_checkpointing, tuple(notes))


def _place(is_4_bit: bool) -> Any:
    """Device to load to: its card at once, except for FSDP, which divides on the CPU."""
    is_sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    if is_sharded or not torch.cuda.is_available():
        return "cpu" if is_4_bit else None
    return int(os.environ.get("LOCAL_RANK", "0"))


def _checkpointing(settings: FinetuneSettings, base: Any, config: Any, longest: int) -> bool:
    if settings.gradient_checkpointing != "auto" or not torch.cuda.is_available():
        return settings.gradient_checkpointing == "on"
    from cbtqa.tuning.budget.counting import count_shape
    from cbtqa.tuning.budget.estimate import StepSize, needs_checkpointing

    count = count_shape(base.config, config, dtype=base.dtype)
    size = StepSize(tokens=max(settings.micro_batch_tokens, longest), labelled=1.0)
    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return needs_checkpointing(memory, count, size, is_quantized=settings.method == "qlora")


def _switch_on_checkpointing(model: Any) -> None:
    # renamed in transformers 5.23; those before it know the old name alone
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)({"use_reentrant": False})


def plan_steps(
    settings: FinetuneSettings,
    sets: TrainingSets,
    *,
    is_packed: bool,
    process: int = 0,
    n_processes: int = 1,
) -> tuple[StepData, StepData | None]:
    """The training steps, and the evaluation as steps in the data's order."""
    choice = LossChoice.of(settings)
    pad_id = sets.chat.tokenizer.pad_token_id or 0

    def steps(of: EncodedSet, **words: Any) -> StepData:
        plan = StepPlan(
            of.lengths,
            budget=settings.micro_batch_tokens,
            n_processes=n_processes,
            is_packed=is_packed,
            **words,
        )
        return StepData(of.items, plan, choice, process=process, is_packed=is_packed, pad_id=pad_id)

    training = steps(
        sets.train,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        seed=settings.seed,
    )
    if sets.validation is None:
        return training, None
    whole = len(sets.validation.items)
    return training, steps(sets.validation, batch_size=whole, is_shuffled=False)


def describe_sets(settings: FinetuneSettings, sets: TrainingSets) -> dict[str, Any]:
    """Token statistics of every split, under stable keys."""
    whole = {"train": sets.train, "validation": sets.validation}
    return {name: of.statistics(settings.loss_on) for name, of in whole.items() if of is not None}


def resolve_for_run(resolved: Resolved[FinetuneSettings]) -> Resolved[FinetuneSettings]:
    """Preset put under the flags, and all checked.

    Raises:
        ConfigError: see `presets` and `check`.
        UsageError: no data named.
    """
    from cbtqa.tuning.settings import resolve_preset

    merged = resolve_preset(resolved)
    check_settings(merged, int(os.environ.get("WORLD_SIZE", "1")))
    if merged.values.data is None:
        raise UsageError(
            "no data named", hint="cbtqa finetune cbtqa-dataset --backbone qwen2.5 --out runs/tuned"
        )
    return merged


# --- check ---------------------------------------------------------------------------------------
# Settings that do not fit together, all told at once, before anything is read or loaded.

_INSTALL = {"tensorboard": "pip install tensorboard", "wandb": "pip install wandb"}


def check_settings(resolved: Resolved[FinetuneSettings], n_processes: int = 1) -> None:
    """Refuses what cannot work.

    Raises:
        ConfigError: lists every problem with the origin of its setting.
    """
    problems = [
        f"{resolved.origins[name]}: {name}: {words}"
        for name, words in _problems(resolved.values, n_processes)
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _problems(settings: FinetuneSettings, n_processes: int) -> Iterator[tuple[str, str]]:
    is_rows = settings.data is not None and is_of_rows(settings.data)
    if is_rows and settings.mode != "answer":
        yield "mode", f"{settings.mode} is for built datasets; a file's rows are learnt as they are"
    if is_rows and settings.system_prompt is not None:
        yield "system_prompt", "is for built datasets; a file's rows bring their own"
    has_own = settings.data is not None and settings.data.is_dir()
    if settings.early_stopping and settings.validation_data is None and not has_own:
        yield "early_stopping", "wants --validation-data: there is nothing to evaluate on"
    if settings.batch_size < n_processes:
        yield "batch_size", f"{settings.batch_size} examples for {n_processes} processes"
    if settings.objective == "orpo" and settings.loss_on == "text":
        yield "loss_on", "is for sft; for orpo: --orpo-nll"
    for name in settings.tracker:
        if name not in _INSTALL:
            yield "tracker", f"no tracker '{name}': {' or '.join(_INSTALL)}"
        elif importlib.util.find_spec(name) is None:
            yield "tracker", f"{name} is not installed: {_INSTALL[name]}"
