"""transformers' Trainer, fed with whole steps: each batch of its loader is one optimiser step.

A step's micro-batches go through the model one after another and their gradients add up, each
weighted by its learnt tokens of all the step's, over all processes. The plan is the same in every
process, so the weights are known without asking the others.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections import defaultdict
from contextlib import nullcontext
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from cbtqa.errors import DataError
from cbtqa.files import json_line, read_rows, write_jsonl
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import split_reasoning
from cbtqa.llm.progress import RecentRate, StepCounter
from cbtqa.metrics.evaluation import score_lists
from cbtqa.paths import keep_private
from cbtqa.records import Record
from cbtqa.tuning.answering.decoding import generate_ids
from cbtqa.tuning.budget.estimate import Speed
from cbtqa.tuning.data.examples import read_target
from cbtqa.tuning.data.packing import Batch, StepBatches, StepData
from cbtqa.tuning.libraries import is_disk_full
from cbtqa.tuning.losses import orpo_terms, sft_loss
from cbtqa.tuning.settings import OnLine
from cbtqa.tuning.training.prepare import TrainingSets

COMPLETE_NAME = "complete.json"
"""Written last into a checkpoint: one without it was cut off while being written."""


class StepTrainer(Trainer):
    """Trains on the steps of `data`, evaluates on those of `eval_data`."""

    def __init__(
        self,
        *,
        data: StepData,
        eval_data: StepData | None,
        speed: Speed,
        **words: Any,
    ) -> None:
        super().__init__(train_dataset=data, eval_dataset=eval_data, **words)
        self._steps, self._eval_steps, self._settings = data, eval_data, data.settings
        self.speed = speed
        self._pairs: dict[str, float] = defaultdict(float)  # this process's, since the last line

    def get_train_dataloader(self) -> Any:
        """One item is one step of this process; the plan has shuffled and divided already."""
        self.speed.begin()
        return torch.utils.data.DataLoader(self._steps, batch_size=1, collate_fn=itemgetter(0))

    def _get_num_items_in_batch(self, *_: Any) -> None:
        return None

    def floating_point_ops(self, inputs: Any) -> int:
        """Operations of a step, over all processes."""
        return int(self.speed.flops_of(inputs))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward through all micro-batches of a step; gives this process' share of
        the loss times the number of processes, whose mean over processes is the loss."""
        step: StepBatches = inputs
        model.train()
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(step.batches):
            # gradients are summed over processes once a step, with its last micro-batch
            is_last = number == len(step.batches) - 1
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            is_deepspeed = self.accelerator.distributed_type.value == "DEEPSPEED"
            waits = not is_last and not is_deepspeed
            with self.accelerator.no_sync(model) if waits else nullcontext():
                loss = self._share_of(model, batch, step) * self.args.world_size
                words = {"scale_wrt_gas": False} if is_deepspeed else {}
                self.accelerator.backward(loss, **words)
            total += loss.detach()
        if not torch.isfinite(total):
            raise DataError(
                f"the loss of step {self.state.global_step + 1} is not a number",
                hint="lower --learning-rate, or use --precision bf16 or fp32 in place of fp16",
            )
        self.speed.add(step)
        return total

    def _share_of(self, model: Any, batch: Batch, step: StepBatches) -> Tensor:
        log_probs = model(**self._prepare_inputs(batch.inputs))
        if self._settings.objective == "sft":
            return sft_loss(log_probs, step.n_learnt)
        terms = orpo_terms(
            log_probs,
            batch.document.to(log_probs.device),
            batch.in_answer.to(log_probs.device),
            n_pairs=batch.n_items,
            n_pairs_in_step=step.n_items,
            n_nll_in_step=step.n_learnt,
            beta=self._settings.beta,
        )
        for name in ("n_preferred", "margin"):
            self._pairs[name] += getattr(terms, name).item()
        self._pairs["n_pairs"] += batch.n_items
        return terms.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds true epochs, tokens/s and MFU, and ORPO's share of preferred answers."""
        if "loss" in logs:
            logs |= self._pair_figures("")
            logs |= self.speed.lap()
        # Trainer sees the whole run as one epoch; callbacks and log lines get the data's
        plan = self._steps.plan
        self.state.epoch = round(self.state.global_step / plan.steps_per_epoch, 4)
        super().log(logs)

    def _pair_figures(self, prefix: str) -> dict[str, float]:
        if self._settings.objective == "sft":
            return {}
        names = ("n_pairs", "n_preferred", "margin")
        sums = torch.tensor([self._pairs[name] for name in names], dtype=torch.float64)
        sums = self.accelerator.reduce(sums.float().to(self.args.device), "sum")
        self._pairs.clear()
        n_pairs, n_preferred, margin = sums.tolist()
        n_pairs = max(1.0, n_pairs)
        return {f"{prefix}preferred": n_preferred / n_pairs, f"{prefix}margin": margin / n_pairs}

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Loss over the evaluation steps, as in training; then what callbacks add."""
        assert self._eval_steps is not None and self.model is not None
        started = time.perf_counter()
        pending, self._pairs = self._pairs, defaultdict(float)
        total = torch.zeros((), device=self.args.device)
        self.model.eval()
        with torch.no_grad():
            for number in range(len(self._eval_steps)):
                step = self._eval_steps[number]
                for batch in step.batches:
                    total += self._share_of(self.model, batch, step)
        total = self.accelerator.reduce(total, "sum")
        metrics = {"eval_loss": float(total), **self._pair_figures("eval_")}
        self._pairs = pending
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self.log(metrics)
        self.accelerator.wait_for_everyone()
        self.speed.pause(time.perf_counter() - started)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        started = time.perf_counter()
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                marker = {"step": self.state.global_step, "n_processes": self.args.world_size}
                (folder / COMPLETE_NAME).write_text(json.dumps(marker), encoding="utf-8")
        except Exception as error:
            if is_disk_full(error):
                shutil.rmtree(folder, ignore_errors=True)  # at once: it fills the disk
            raise
        self.speed.pause(time.perf_counter() - started)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; those cut off while being written are removed."""
    paths = set(folder.glob("checkpoint-*"))
    found = {path for path in paths if (path / COMPLETE_NAME).is_file()}
    for path in paths - found:
        shutil.rmtree(path, ignore_errors=True)
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


LOG_NAME, SAMPLES_NAME = "log.jsonl", "samples.jsonl"


class LogLines(TrainerCallback):
    """Appends every log line to `log.jsonl` and passes it on; on the first process only."""

    def __init__(self, folder: Path, on_line: OnLine) -> None:
        self._path, self._on_line = folder / LOG_NAME, on_line

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        line = {"step": state.global_step, **logs}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json_line(line))
        self._on_line(line)


class StepProgress(TrainerCallback):
    """Tells after each step how far the training is, with the last loss and the tokens a second."""

    def __init__(self, speed: Speed, on_progress: OnProgress | None) -> None:
        self._speed, self._on_progress = speed, on_progress
        self._counter: StepCounter | None = None
        self._rate, self._loss = RecentRate(), ""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._counter is None:  # what was resumed is known only now
            before = {"n_before": state.global_step}
            self._counter = StepCounter(self._on_progress, state.max_steps, "steps", **before)
            self._rate = RecentRate(self._speed.n_tokens)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._counter is not None and state.is_world_process_zero:
            tokens_per_s = self._rate.per_s(self._speed.n_tokens, 0)
            self._counter.step(f"{self._loss}{tokens_per_s:,.0f} tokens/s")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self._loss = f"loss {logs['loss']:.4f}, "


def keep_until(path: Path, step: int | None) -> None:
    """Drops the lines of a JSONL file after a step; None: the whole file."""
    if step is None:
        path.unlink(missing_ok=True)
    elif path.exists():
        write_jsonl(path, [row for _, row in read_rows(path) if int(row["step"]) <= step])


class LastStep(TrainerCallback):
    """Asks for a log line and an evaluation after the last step, whatever step that is."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate = args.eval_strategy != "no"


class SampleAnswers(TrainerCallback):
    """Answers the same questions at each evaluation: `samples.jsonl`, and scores in the log."""

    def __init__(self, sets: TrainingSets, trainer: StepTrainer) -> None:
        self._sets, self._trainer = sets, trainer

    def on_evaluate(self, args: Any, state: Any, control: Any, **words: Any) -> None:
        """Scores join the evaluation's metrics before they are logged."""
        settings = self._sets.settings
        samples = answer_samples(self._sets, self._trainer)
        with (settings.out / SAMPLES_NAME).open("a", encoding="utf-8") as stream:
            stream.writelines(json_line(sample) for sample in samples)
        keep_private(settings.out / SAMPLES_NAME)
        # without headings or reasoning
        predictions = [read_target(settings.mode, sample.text).text for sample in samples]
        references = [read_target(settings.mode, sample.reference).text for sample in samples]
        for name in METRICS:
            score = score_lists(name, predictions, references)
            if score.value is not None:
                words["metrics"][f"sample_{score.metric}"] = round(score.value, 3)


class SoftStop(TrainerCallback):
    """On SIGTERM, as a scheduler sends before it kills: save after the current step, then stop."""

    def __init__(self) -> None:
        self.is_asked = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.is_asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1:
            # the processes agree, or those that got no signal would wait for ever
            asked = torch.tensor(float(self.is_asked), device=args.device)
            torch.distributed.all_reduce(asked)
            self.is_asked = bool(asked)
        if self.is_asked:
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Puts back what SIGTERM did before training."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None


METRICS = ("chrf2", "bleu_zh")


class Sample(Record):
    """One line of `samples.jsonl`."""

    step: int
    id: str
    text: str
    """What the model wrote, headings included."""
    reference: str
    finish_reason: str
    """`stop`, or `length` when it was cut at the token limit."""


def answer_samples(sets: TrainingSets, trainer: StepTrainer) -> list[Sample]:
    """The likeliest answers to validation questions: repeatable, and no random state is spent."""
    assert sets.validation is not None
    model: Any = trainer.model
    tokenizer, settings = sets.chat.tokenizer, sets.settings
    ends = {*sets.chat.end_ids, *tokenizer.convert_tokens_to_ids(list(sets.backbone.stops))}
    stops = sorted(ends - {None})
    words: dict[str, Any] = {"max_new_tokens": settings.sample_tokens, "stops": stops}
    words["pad"] = tokenizer.pad_token_id
    was_training = model.training
    model.eval()
    samples = []
    with torch.no_grad(), trainer.accelerator.autocast():
        for example in sets.validation.examples[: settings.n_samples]:
            ids = torch.tensor(sets.chat.prompt_ids([example.prompt]))
            (made,) = generate_ids(model, ids, torch.ones_like(ids), **words)
            samples.append(
                Sample(
                    step=trainer.state.global_step,
                    id=example.id,
                    text=split_reasoning(tokenizer.decode(made, skip_special_tokens=True))[
                        0
                    ].strip(),
                    reference=example.answer,
                    finish_reason="stop" if made and made[-1] in stops else "length",
                )
            )
    model.train(was_training)
    return samples
