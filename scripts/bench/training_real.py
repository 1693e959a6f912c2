"""What a training step of a real checkpoint costs on a CPU: ours, TRL's, and what was estimated.

    scripts/test --real                                       # once: packages and models
    .venv/real/bin/python scripts/bench/training_real.py      # about three minutes, one thread

SmolLM2-135M-Instruct in 32 bits on the invented openings of tests/weights, LoRA r=8 on all linear
layers, loss on the answer. Ours is `cbtqa finetune` as it is (packed, head in chunks); TRL's is
SFTTrainer, padded. Each runs in a process of its own: CPU seconds per step from the end of the
first step to the end of the last, and the process's highest resident memory, loading included.
The estimate is that of `cbtqa finetune --dry-run` for this machine's CPU. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "tests" / "weights" / "openings.jsonl"
RANK, RATE = 8, 2e-4
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def settings_of(model: Path, steps: int, batch: int, out: Path) -> Any:
    """Our settings of the recipe, as flags would give them."""
    from cbtqa.settings import resolve
    from cbtqa.tuning.settings import FinetuneSettings

    words: dict[str, Any] = {"data": ROWS, "backbone": str(model), "out": out, "rank": RANK}
    words |= {"alpha": 2 * RANK, "max_steps": steps, "batch_size": batch, "learning_rate": RATE}
    words |= {"log_steps": 1, "n_samples": 0, "micro_batch_tokens": 1024}
    return resolve(FinetuneSettings, flags=words, environ={})


class Clock:
    """CPU and wall seconds between the ends of the first and the last step."""

    def __init__(self) -> None:
        self._ends: list[tuple[float, float]] = []

    def tick(self) -> None:
        """A step ended."""
        self._ends.append((time.process_time(), time.perf_counter()))

    def figures(self) -> dict[str, float]:
        """Seconds per step, and the highest resident memory so far."""
        (cpu, wall), (last_cpu, last_wall) = self._ends[0], self._ends[-1]
        n = len(self._ends) - 1
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        figures = {
            "cpu_s_per_step": (last_cpu - cpu) / n,
            "wall_s_per_step": (last_wall - wall) / n,
        }
        return {
            **{name: round(value, 3) for name, value in figures.items()},
            "peak_gib": round(peak, 3),
        }


def run_ours(model: Path, steps: int, batch: int, folder: Path) -> dict[str, Any]:
    """`cbtqa finetune`."""
    from cbtqa.tuning.training.finetune import finetune

    clock = Clock()
    done = finetune(
        settings_of(model, steps, batch, folder / "ours"),
        on_line=lambda line: clock.tick() if "loss" in line else None,
    )
    counts = done.manifest.counts
    return {**clock.figures(), "last_loss": round(counts["last_loss"], 4)}


def run_trl(model: Path, steps: int, batch: int, folder: Path) -> dict[str, Any]:
    """TRL's SFTTrainer on the same rows."""
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from peft import LoraConfig

    clock = Clock()

    class Ticks(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    talk = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in rows
    ]
    auto: Any = transformers.AutoModelForCausalLM
    words = {"lora_dropout": 0.0, "target_modules": LAYERS, "task_type": "CAUSAL_LM"}
    trainer = trl.SFTTrainer(
        model=auto.from_pretrained(model, dtype=torch.float32),
        args=trl.SFTConfig(
            output_dir=str(folder / "trl"), max_steps=steps, per_device_train_batch_size=batch,
            learning_rate=RATE, lr_scheduler_type="cosine", warmup_steps=0.03, logging_steps=1,
            report_to="none", save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True,
            gradient_checkpointing=False, completion_only_loss=True, max_length=2048, seed=0,
        ),
        train_dataset=Dataset.from_list(talk),
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, **words),
        callbacks=[Ticks()],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {**clock.figures(), "last_loss": round(float(losses[-1]), 4)}


def run_estimate(model: Path, steps: int, batch: int, folder: Path) -> dict[str, Any]:
    """What the dry run says of this machine's CPU."""
    from cbtqa.tuning.training.dry_run import dry_run

    found = dry_run(settings_of(model, steps, batch, folder / "none")).cpu
    assert found is not None, "a machine with a card has no such row"
    return {
        "s_per_step": round(found.seconds / steps, 3),
        "peak_gib": round(found.memory.total / 2**30, 3),
        "gflops_measured": round(found.gflops, 1),
    }


RUNS = {"estimate": run_estimate, "ours": run_ours, "trl": run_trl}


def in_a_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One of `RUNS` in a process of its own."""
    size = ("--steps", str(arguments.steps), "--batch", str(arguments.batch))
    command = [sys.executable, __file__, "--only", name, "--model", str(arguments.model), *size]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=ROOT / ".venv" / "real" / "models" / "smollm2"
    )
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps of a run")
    parser.add_argument("--batch", type=int, default=4, help="examples of a step")
    parser.add_argument("--only", choices=tuple(RUNS), help="this run alone, in this process")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = os.environ["OMP_NUM_THREADS"] = "1"
    if arguments.only:
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as folder:
            size = (arguments.model, arguments.steps, arguments.batch)
            print(json.dumps(RUNS[arguments.only](*size, Path(folder))))
        return
    found = {name: in_a_process(name, arguments) for name in RUNS}
    ours, trl, told = found["ours"], found["trl"], found["estimate"]
    against = {name: round(ours[name] / trl[name], 3) for name in ("cpu_s_per_step", "peak_gib")}
    error = {
        "peak": round(told["peak_gib"] / ours["peak_gib"] - 1, 3),
        "time": round(told["s_per_step"] / ours["wall_s_per_step"] - 1, 3),
    }
    print(json.dumps({**found, "ours_against_trl": against, "estimate_error": error}, indent=2))


if __name__ == "__main__":
    main()
