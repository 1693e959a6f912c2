"""transformers' Trainer, fed with whole steps: each batch of its loader is one optimiser step.

A step's micro-batches go through the model one after another and their gradients add up, each
weighted by its learnt tokens of all the step's, over all processes. The plan is the same in every
process, so the weights are known without asking the others.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from cbtqa.errors import DataError
from cbtqa.tuning.batches import Batch, StepBatches, StepData
from cbtqa.tuning.failures import is_disk_full
from cbtqa.tuning.loss import sft_loss
from cbtqa.tuning.orpo import orpo_terms
from cbtqa.tuning.speed import Speed

COMPLETE_NAME = "complete.json"
"""Written last into a checkpoint: one without it was cut off while being written."""


@dataclass
class _Told:
    """Sums since the last log line, over this process."""

    sums: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: Tensor | float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(value)


class StepTrainer(Trainer):
    """Trains on the steps of a plan.

    Args:
        data: steps to train on; `eval_data`: steps to evaluate on, or None.
        speed: counts tokens and arithmetic for the log lines.
    """

    def __init__(
        self,
        *,
        data: StepData,
        eval_data: StepData | None,
        speed: Speed,
        **words: Any,
    ) -> None:
        super().__init__(train_dataset=data, eval_dataset=eval_data, **words)
        self._steps, self._eval_steps, self._choice = data, eval_data, data.choice
        self.speed, self._told = speed, _Told()

    # --- what Trainer asks for --------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """One item is one step of this process; the plan has shuffled and divided already."""
        self.speed.begin()
        return torch.utils.data.DataLoader(self._steps, batch_size=1, collate_fn=_only)

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
        if not self._choice.is_orpo:
            return sft_loss(log_probs, step.n_learnt)
        terms = orpo_terms(
            log_probs,
            batch.document.to(log_probs.device),
            batch.in_answer.to(log_probs.device),
            n_pairs=batch.n_items,
            n_pairs_in_step=step.n_items,
            n_nll_in_step=step.n_learnt,
            beta=self._choice.beta,
        )
        self._told.add("n_pairs", batch.n_items)
        self._told.add("n_preferred", terms.n_preferred)
        self._told.add("margin", terms.margin)
        return terms.loss

    # --- log lines --------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds true epochs, tokens/s and MFU, and ORPO's share of preferred answers."""
        if "loss" in logs:
            logs |= self._pair_figures("")
            logs |= self.speed.lap()
        # Trainer sees the whole run as one epoch; callbacks and log lines are told the data's
        plan = self._steps.plan
        self.state.epoch = round(self.state.global_step / plan.steps_per_epoch, 4)
        super().log(logs)

    def _pair_figures(self, prefix: str) -> dict[str, float]:
        if not self._choice.is_orpo:
            return {}
        names = ("n_pairs", "n_preferred", "margin")
        sums = torch.tensor([self._told.sums.get(name, 0.0) for name in names], dtype=torch.float64)
        sums = self.accelerator.reduce(sums.float().to(self.args.device), "sum")
        self._told.sums.clear()
        n_pairs, n_preferred, margin = sums.tolist()
        return {
            f"{prefix}preferred": n_preferred / max(1.0, n_pairs),
            f"{prefix}margin": margin / max(1.0, n_pairs),
        }

    # --- evaluation -------------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Loss over the evaluation steps, as in training; then what callbacks add."""
        assert self._eval_steps is not None and self.model is not None
        started = time.perf_counter()
        pending, self._told = self._told, _Told()
        total = torch.zeros((), device=self.args.device)
        self.model.eval()
        with torch.no_grad():
            for number in range(len(self._eval_steps)):
                step = self._eval_steps[number]
                for batch in step.batches:
                    total += self._share_of(self.model, batch, step)
        total = self.accelerator.reduce(total, "sum")
        metrics = {"eval_loss": float(total), **self._pair_figures("eval_")}
        self._told = pending
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self.log(metrics)
        self.accelerator.wait_for_everyone()
        self.speed.pause(time.perf_counter() - started)
        return metrics

    # --- checkpoints ------------------------------------------------------------------------------

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
                shutil.rmtree(folder, ignore_errors=True)  # at once: it takes what room there is
            raise
        self.speed.pause(time.perf_counter() - started)


def _only(items: list[StepBatches]) -> StepBatches:
    return items[0]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; those cut off while being written are removed."""
    found = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE_NAME).is_file():
            found.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
