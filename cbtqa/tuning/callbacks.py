"""What happens beside the steps: log lines to a file, samples, the last evaluation, a soft stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from cbtqa.files import json_line, read_rows, write_jsonl
from cbtqa.tuning.samples import Sample, score_samples
from cbtqa.tuning.settings import Mode

LOG_NAME, SAMPLES_NAME = "log.jsonl", "samples.jsonl"
OnLine = Callable[[dict[str, float]], None]


class LogLines(TrainerCallback):
    """Appends every log line to `log.jsonl` and passes it on; on the first process only."""

    def __init__(self, folder: Path, on_line: OnLine) -> None:
        self._path, self._on_line = folder / LOG_NAME, on_line

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """A line was logged."""
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        line = {"step": state.global_step, **logs}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json_line(line))
        self._on_line(line)


def keep_until(path: Path, step: int) -> None:
    """Drops the lines of a JSONL file behind a step: what is done again is told again."""
    if path.exists():
        rows = [row for _, row in read_rows(path) if int(row["step"]) <= step]
        write_jsonl(path, rows)


class LastStep(TrainerCallback):
    """Asks for a log line and an evaluation after the last step, whatever step that is."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step was done."""
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate = args.eval_strategy != "no"


class SampleAnswers(TrainerCallback):
    """Answers the same questions at each evaluation: `samples.jsonl`, and scores in the log.

    Args:
        answer: gives the samples of a step; None on processes that do not answer.
    """

    def __init__(
        self, folder: Path, mode: Mode, answer: Callable[[int], Sequence[Sample]] | None
    ) -> None:
        self._path, self._mode, self._answer = folder / SAMPLES_NAME, mode, answer

    def on_evaluate(self, args: Any, state: Any, control: Any, **words: Any) -> None:
        """An evaluation was done; scores join its metrics before they are logged."""
        if self._answer is None:
            return
        samples = self._answer(state.global_step)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.writelines(json_line(sample) for sample in samples)
        for score in score_samples(samples, self._mode):
            if score.value is not None:
                words["metrics"][f"sample_{score.metric}"] = round(score.value, 3)


class SoftStop(TrainerCallback):
    """On SIGTERM, as a scheduler sends before it kills: save after the step at hand, then stop."""

    def __init__(self) -> None:
        self.is_asked = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Training begins."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.is_asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step was done; the processes agree, or those not asked would wait for ever."""
        if args.world_size > 1:
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
