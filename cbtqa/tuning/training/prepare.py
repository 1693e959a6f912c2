"""A run up to its first step: data encoded, backbone loaded, adapter added, steps planned."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from cbtqa.errors import ConfigError
from cbtqa.manifest import FileEntry
from cbtqa.settings import Resolved
from cbtqa.tuning.attention import pack_if_apart, why_not_causal, why_unusable
from cbtqa.tuning.backbones import Backbone
from cbtqa.tuning.budget.counting import count_once
from cbtqa.tuning.budget.estimate import memory_of
from cbtqa.tuning.data.chat_format import ChatFormat
from cbtqa.tuning.data.encoding import EncodedSet, encode
from cbtqa.tuning.data.examples import (
    check_data_named,
    is_of_rows,
    read_training_examples,
    read_validation_examples,
)
from cbtqa.tuning.data.packing import StepData, StepPlan
from cbtqa.tuning.loading import ComputeType, add_adapter, load_base, load_chat, lora_config
from cbtqa.tuning.losses import attach_log_probs
from cbtqa.tuning.settings import FinetuneSettings, resolve_preset


@dataclass(frozen=True)
class TrainingSets:
    """The data as tokens, with the settings and the backbone that they are for."""

    settings: FinetuneSettings
    backbone: Backbone
    chat: ChatFormat
    train: EncodedSet
    validation: EncodedSet | None
    inputs: tuple[FileEntry, ...]
    notes: tuple[str, ...] = ()
    """What differs from the settings."""

    @property
    def by_name(self) -> dict[str, EncodedSet]:
        """Every split there is."""
        validation = {"validation": self.validation} if self.validation is not None else {}
        return {"train": self.train, **validation}


def prepare_sets(settings: FinetuneSettings, backbone: Backbone) -> TrainingSets:
    """Reads and encodes the data."""
    chat = load_chat(backbone, settings.chat_format, settings.thinking)
    fitting, notes = within_context(settings, backbone)
    training = read_training_examples(settings)
    validation = read_validation_examples(settings)
    read = {"train": training, **({"validation": validation} if validation is not None else {})}
    encoded = {name: encode(of, chat, fitting, backbone.context) for name, of in read.items()}
    if backbone.shape is not None:  # before its weights are hashed and loaded
        chat.refuse_unknown(
            chain.from_iterable(of.rows for of in encoded.values()), backbone.shape.vocab
        )
    return TrainingSets(
        settings,
        backbone,
        chat,
        encoded["train"],
        encoded.get("validation"),
        (*training.files, *(validation.files if validation is not None else ())),
        notes,
    )


def within_context(
    settings: FinetuneSettings, backbone: Backbone
) -> tuple[FinetuneSettings, tuple[str, ...]]:
    """The settings with no more length than the backbone takes, and a note where that changed."""
    if not backbone.context or settings.max_length <= backbone.context:
        return settings, ()
    note = f"{backbone.display_name} takes {backbone.context:,} tokens: longer rows left out"
    return settings.model_copy(update={"max_length": backbone.context}), (note,)


@dataclass(frozen=True)
class Ready:
    """A model that can be trained, and how."""

    model: Any
    is_packed: bool
    """False by the settings, or where the backbone mixes packed documents."""
    head_is_chunked: bool
    is_checkpointing: bool
    notes: tuple[str, ...]
    """What differs from the settings, for the log."""


def prepare_model(sets: TrainingSets, precision: ComputeType) -> Ready:
    """Loads the backbone and adds the adapter."""
    from transformers import set_seed

    settings, backbone = sets.settings, sets.backbone
    config = lora_config(settings, backbone)
    is_4_bit = settings.method == "qlora"
    # to its card at once, except for FSDP, which divides on the CPU
    place: Any = int(os.environ.get("LOCAL_RANK", "0"))
    is_sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    if is_sharded or not torch.cuda.is_available():
        place = "cpu" if is_4_bit else None
    base = load_base(backbone, precision, in_4_bits=is_4_bit, place=place)
    n_rows = base.get_input_embeddings().weight.shape[0]
    sets.chat.refuse_unknown(chain.from_iterable(of.rows for of in sets.by_name.values()), n_rows)
    if reason := why_not_causal(base) or why_unusable(base):
        raise ConfigError(
            f"{backbone.display_name} cannot be tuned: {reason}",
            hint="cbtqa backbones lists models that can",
        )
    notes = []
    tokenizer = sets.chat.tokenizer
    if (tokenizer.pad_token_id or 0) >= n_rows:
        notes.append(f"the model has no row for '{tokenizer.pad_token}': the end of turn pads")
        tokenizer.pad_token = sets.chat.end_text
    is_packed = settings.packing
    if is_packed and (reason := pack_if_apart(base)):
        is_packed = False
        notes.append(padding_note(backbone, reason))
    head_is_chunked = attach_log_probs(base)
    if not head_is_chunked:
        notes.append(f"{backbone.display_name} does more with its logits: all of them are computed")
    is_checkpointing = _checkpointing(settings, base, config, max(sets.train.lengths))
    if is_checkpointing:
        # renamed in transformers 5.23; those before it know the old name alone
        new = getattr(base, "activation_checkpointing_enable", None)
        (new or base.gradient_checkpointing_enable)({"use_reentrant": False})
        notes.append("activations are recomputed: it would not fit otherwise")
    set_seed(settings.seed)
    model = add_adapter(base, config, backbone)
    if reason := why_not_causal(model):
        layers = ", ".join(sorted(config.target_modules or ()))
        raise ConfigError(
            f"{backbone.display_name} cannot be tuned with adapters on {layers}: {reason}",
            hint="--target-module names other layers",
        )
    return Ready(model, is_packed, head_is_chunked, is_checkpointing, tuple(notes))


def padding_note(backbone: Backbone, reason: str) -> str:
    """The sentence on padded batches in place of packed rows."""
    return f"{backbone.display_name}: padded batches, not packed rows: {reason}"


def _checkpointing(settings: FinetuneSettings, base: Any, config: Any, longest: int) -> bool:
    if settings.gradient_checkpointing != "auto" or not torch.cuda.is_available():
        return settings.gradient_checkpointing == "on"
    count = count_once(base.config, config, base.dtype)
    tokens = max(settings.micro_batch_tokens, longest)
    needed = memory_of(count, tokens, labelled=1.0, is_quantized=settings.method == "qlora")
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    return not needed.fits(card.total_memory)


def plan_steps(
    sets: TrainingSets, *, is_packed: bool, process: int, n_processes: int
) -> tuple[StepData, StepData | None]:
    """The training steps, and the evaluation as steps in the data's order."""
    settings = sets.settings
    budget, pad = settings.micro_batch_tokens, sets.chat.tokenizer.pad_token_id or 0

    def steps(of: EncodedSet, **words: Any) -> StepData:
        words |= {"budget": budget, "n_processes": n_processes, "is_packed": is_packed}
        plan = StepPlan(of.lengths, **words)
        return StepData(of.items, plan, settings, process=process, is_packed=is_packed, pad_id=pad)

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


def resolve_for_run(resolved: Resolved[FinetuneSettings]) -> Resolved[FinetuneSettings]:
    """The settings with the preset under the flags; raises ConfigError where they do not fit."""
    merged = resolve_preset(resolved)
    check_settings(merged, int(os.environ.get("WORLD_SIZE", "1")))
    check_data_named(merged.values)
    return merged


_INSTALL = {name: f"pip install {name}" for name in ("tensorboard", "trackio", "wandb")}


def check_settings(resolved: Resolved[FinetuneSettings], n_processes: int = 1) -> None:
    """Raises ConfigError for settings that do not fit together, all at once with their origins."""
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
            yield "tracker", f"no tracker '{name}': {', '.join(_INSTALL)}"
        elif importlib.util.find_spec(name) is None:
            yield "tracker", f"{name} is not installed: {_INSTALL[name]}"
