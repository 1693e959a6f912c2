"""The training run itself: trainer begun or resumed, adapter and record written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments

from cbtqa.errors import ConfigError, IncompleteRunError
from cbtqa.files import write_json
from cbtqa.llm.batch import OnProgress
from cbtqa.manifest import Manifest, read_manifest
from cbtqa.paths import make_folder
from cbtqa.tuning.budget.counting import ModelSizes
from cbtqa.tuning.budget.estimate import Speed, this_card
from cbtqa.tuning.data.packing import StepPlan
from cbtqa.tuning.libraries import is_disk_full, is_out_of_memory
from cbtqa.tuning.loading import ComputeType, choose_precision
from cbtqa.tuning.settings import FinetuneSettings, OnLine, OnStage
from cbtqa.tuning.training.prepare import Ready, TrainingSets, plan_steps, prepare_model
from cbtqa.tuning.training.record import (
    RUN_NAME,
    RunStart,
    write_curve,
    write_readme,
    write_record,
)
from cbtqa.tuning.training.trainer import (
    LOG_NAME,
    SAMPLES_NAME,
    LastStep,
    LogLines,
    SampleAnswers,
    SoftStop,
    StepProgress,
    StepTrainer,
    keep_until,
    last_checkpoint,
)
from cbtqa.tuning.weights.files import write_base_record

CHECKPOINTS = "checkpoints"
BYTES_PER_WEIGHT = 12
"""A checkpoint's: the adapter and two moments of AdamW, 4 bytes each."""
PROJECT = "cbtqa"
"""Under which trackio keeps the runs."""
OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_8bit"}


def run_training(
    sets: TrainingSets,
    start: RunStart,
    on_stage: OnStage,
    on_line: OnLine,
    on_progress: OnProgress | None,
) -> tuple[Manifest, bool]:
    """Trains to the end; gives the manifest, and whether this is the first process.

    Raises:
        ConfigError: a precision that the device has not, or a disk without room.
        IncompleteRunError: memory, disk, or a signal stopped it; the same command resumes.
    """
    settings = sets.settings
    precision = choose_precision(settings.precision)
    args = training_arguments(sets, precision)
    is_first = args.process_index == 0
    if is_first:
        make_folder(settings.out)
        write_json(settings.out / RUN_NAME, start)
    on_stage(f"loading {sets.backbone.display_name}")
    stop = SoftStop()
    try:
        ready = prepare_model(sets, precision)
        if is_first:
            _check_disk(settings, ready.model)
        callbacks = [LogLines(settings.out, on_line), LastStep(), stop]
        trainer = _make_trainer(sets, ready, args, callbacks)
        trainer.add_callback(StepProgress(trainer.speed, on_progress))
        for note in (*sets.notes, *ready.notes, *([] if sets.validation else [NO_VALIDATION])):
            on_stage(note)
        resumed = last_checkpoint(Path(str(args.output_dir)))
        if is_first:
            # steps done again are logged again
            for name in (LOG_NAME, SAMPLES_NAME):
                step = int(resumed.name.rpartition("-")[2]) if resumed else None
                keep_until(settings.out / name, step)
        on_stage("training" if resumed is None else f"continuing from {resumed.name}")
        with disable_input_dtype_casting(ready.model):
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        if stop.is_asked:
            raise IncompleteRunError(
                f"stopped by a signal after step {trainer.state.global_step} of "
                f"{trainer.state.max_steps}; a checkpoint was written",
                hint="the same command continues",
            )
        on_stage("writing the adapter")
        return _write(sets, ready, trainer, start), is_first
    except Exception as error:
        if is_out_of_memory(error):
            raise _no_memory(settings) from None
        if is_disk_full(error):
            raise IncompleteRunError(
                f"the disk is full: {settings.out} could not be written",
                hint="make room and run the same command again; it continues from the last "
                "checkpoint",
            ) from None
        raise
    finally:
        stop.restore()


NO_VALIDATION = (
    "no validation set: what is learnt by heart shows nowhere, and the last step is kept, not the "
    "best; --validation-data names one"
)


def training_arguments(sets: TrainingSets, precision: ComputeType) -> TrainingArguments:
    """transformers' arguments; making them joins the processes of a run over several."""
    settings = sets.settings
    size: dict[str, Any] = {"batch_size": settings.batch_size, "epochs": settings.epochs}
    plan = StepPlan(sets.train.lengths, max_steps=settings.max_steps, **size)
    every = min(settings.eval_steps or plan.steps_per_epoch, plan.n_steps)
    evaluates = sets.validation is not None
    suffix = "_with_warmup" if settings.schedule == "constant" and settings.warmup else ""
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(settings.out / "tensorboard"))
    return TrainingArguments(
        output_dir=str((settings.out / CHECKPOINTS).resolve()),
        max_steps=plan.n_steps,
        per_device_train_batch_size=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=f"{settings.schedule}{suffix}",
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=OPTIMIZERS[settings.optimizer],
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        torch_compile=settings.compile,
        logging_steps=settings.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=settings.keep_checkpoints + 1,
        load_best_model_at_end=evaluates,
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False if evaluates else None,
        restore_callback_states_from_checkpoint=settings.early_stopping is not None,
        seed=settings.seed,
        data_seed=settings.seed,
        report_to=list(settings.tracker),
        run_name=settings.out.name,
        project=PROJECT,
        trackio_space_id=None,  # on this machine: nothing goes to a Space on the Hub
        trackio_static_space_id=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        average_tokens_across_devices=False,
        ddp_find_unused_parameters=False,  # every adapter weight is in every forward pass
        dataloader_pin_memory=False,
    )


def _make_trainer(
    sets: TrainingSets, ready: Ready, args: TrainingArguments, callbacks: list[TrainerCallback]
) -> StepTrainer:
    settings = sets.settings
    share = {"process": args.process_index, "n_processes": args.world_size}
    data, eval_data = plan_steps(sets, is_packed=ready.is_packed, **share)
    trainer = StepTrainer(
        model=ready.model,
        args=args,
        data=data,
        eval_data=eval_data,
        speed=Speed(ModelSizes.of(ready.model), this_card(), args.world_size),
        processing_class=sets.chat.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)  # it prints; `on_line` gets the lines instead
    answers = settings.n_samples > 0 and eval_data is not None and args.process_index == 0
    if answers and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        # where the weights are divided, no process could answer alone
        callbacks = [*callbacks, SampleAnswers(sets, trainer)]
    for callback in callbacks:
        trainer.add_callback(callback)
    if settings.early_stopping is not None:
        trainer.add_callback(EarlyStoppingCallback(settings.early_stopping))
    return trainer


def _check_disk(settings: FinetuneSettings, model: Any) -> None:
    n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    wanted = n_trainable * BYTES_PER_WEIGHT * (settings.keep_checkpoints + 2)
    free = shutil.disk_usage(settings.out).free
    if free < wanted:
        raise ConfigError(
            f"{settings.out}: {free / 1e9:.1f} GB free, the checkpoints want {wanted / 1e9:.1f}",
            hint="make room, name an --out elsewhere, or lower --keep-checkpoints or --rank",
        )


def _no_memory(settings: FinetuneSettings) -> IncompleteRunError:
    ways = []
    if settings.micro_batch_tokens > settings.max_length:
        fewer = max(settings.max_length, settings.micro_batch_tokens // 2)
        ways.append(f"--micro-batch-tokens {fewer}")
    if settings.gradient_checkpointing != "on":
        ways.append("--gradient-checkpointing on")
    if settings.method != "qlora":
        ways.append("--method qlora (a new --out)")
    ways.append("a lower --max-length (a new --out)")
    return IncompleteRunError(
        "the device has no memory left for a micro-batch of "
        f"{settings.micro_batch_tokens:,} tokens",
        hint=f"the same command continues with: {', or '.join(ways)}; --dry-run shows what fits",
    )


def _write(sets: TrainingSets, ready: Ready, trainer: StepTrainer, start: RunStart) -> Manifest:
    # all processes: gathering the weights and the counts needs each of them
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    state = None
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    out, counts = sets.settings.out, _counts(sets, ready, trainer)
    if trainer.args.process_index == 0:
        model.save_pretrained(out, state_dict=state)
        sets.chat.tokenizer.save_pretrained(out)
        write_base_record(out, start.base)
        write_curve(out, out / LOG_NAME)
        write_readme(out, start)
        write_record(out, start, counts)
    trainer.accelerator.wait_for_everyone()
    return read_manifest(out)


def _counts(sets: TrainingSets, ready: Ready, trainer: StepTrainer) -> dict[str, Any]:
    state, loss_on = trainer.state, sets.settings.loss_on
    n_trainable = sum(p.numel() for p in ready.model.parameters() if p.requires_grad)
    losses = [line["loss"] for line in state.log_history if "loss" in line]
    return {
        **{name: of.statistics(loss_on) for name, of in sets.by_name.items()},
        "n_steps": state.global_step,
        "n_steps_planned": state.max_steps,
        "n_trainable": n_trainable,
        "n_frozen": sum(p.numel() for p in ready.model.parameters()) - n_trainable,
        "n_processes": trainer.args.world_size,
        "precision": "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "fp32",
        "is_packed": ready.is_packed,
        "head_is_chunked": ready.head_is_chunked,
        "is_checkpointing": ready.is_checkpointing,
        "notes": [*sets.notes, *ready.notes],
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "best_step": state.best_global_step,
        "eval_loss": state.best_metric,
        "tokens_per_s": trainer.speed.mean_tokens_per_s,
    }
