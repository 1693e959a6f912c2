"""Training on one H100 or H200: speed, memory and the estimate, ours against TRL's SFTTrainer.

    python scripts/bench/training_gpu.py --out training-gpu.md          # about 20 minutes
    python scripts/bench/training_gpu.py --cpu --tiny --steps 2         # runs the code path only

A randomly initialised 7B shape (nothing is downloaded), LoRA r=16, bf16, CBT-QA lengths as in
training.py. First the CUDA attention is held to one SDPA call per document in float32, forward and
backward; then each token budget trains a few steps by our trainer and by TRL's; every run is in
a process of its own, so that peaks are its own. The target: 45 % of 790 TFLOP/s (what bf16 matrix
products reach on these cards; 36 % of the data sheet's 989) without recomputing, and the estimate
within 10 % of the measured peak. Needs trl. Writes a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from training import LAYERS, Clock, _tokenizer, common, make_items

from cbtqa.tuning.attention import attend, register_attention
from cbtqa.tuning.backbones import find_backbone, to_config
from cbtqa.tuning.budget.counting import ModelSizes, count_shape
from cbtqa.tuning.budget.estimate import (
    CONTEXT_BYTES,
    Speed,
    flops_per_token,
    memory_of,
)
from cbtqa.tuning.data.packing import StepData, StepPlan
from cbtqa.tuning.losses import attach_log_probs
from cbtqa.tuning.settings import FinetuneSettings
from cbtqa.tuning.training.trainer import StepTrainer

GIB = 2**30
REACHABLE_TFLOPS, SHEET_TFLOPS = 790, 989
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-5}


@dataclasses.dataclass(frozen=True)
class Job:
    """One run."""

    who: str
    """`ours`, `trl padded`, `trl grouped`."""
    budget: int
    checkpointing: bool
    backbone: str
    steps: int
    device: str
    tiny: bool

    @property
    def batch(self) -> int:
        """Examples of an optimiser step: about 40,000 tokens, so that 16k budgets fill."""
        return 4 if self.tiny else 64


def check_attention(device: str, dtype: torch.dtype) -> float:
    """Largest relative difference of results and gradients to float32, document by document."""
    torch.manual_seed(0)
    lengths, heads, kv_heads, width = (130, 700, 1, 1024, 333), 8, 2, 128
    n = sum(lengths)
    query = torch.randn(1, heads, n, width, device=device, dtype=dtype, requires_grad=True)
    key, value = (
        torch.randn(1, kv_heads, n, width, device=device, dtype=dtype, requires_grad=True)
        for _ in range(2)
    )
    starts = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    found, _ = attend(
        torch.nn.Module(), query, key, value, cu_seq_lens_q=starts, max_length_q=max(lengths)
    )
    slope = torch.randn_like(found)
    ours = (found, *torch.autograd.grad(found, (query, key, value), slope))
    wide = [t.detach().float().requires_grad_() for t in (query, key, value)]
    parts, first = [], 0
    for length in lengths:
        q, k, v = (t[:, :, first : first + length] for t in wide)
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        scores = (q @ k.transpose(-1, -2)) / width**0.5
        hidden = torch.ones(length, length, device=device, dtype=torch.bool).triu(1)
        parts.append(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v)
        first += length
    exact = torch.cat(parts, 2).transpose(1, 2)
    theirs = (exact, *torch.autograd.grad(exact, wide, slope.float()))
    return max(
        float((one.float() - other).norm() / other.norm())
        for one, other in zip(ours, theirs, strict=True)
    )


def check(device: str) -> tuple[float, str]:
    """The attention's error, and the device's name; in a process of its own, as every run."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    error = check_attention(device, dtype)
    if error > TOLERANCE[dtype]:
        raise ValueError(f"the attention is off by {error:.1e}: nothing is measured")
    return error, "CPU" if device == "cpu" else torch.cuda.get_device_name()


def make_config(job: Job) -> Any:
    """The shape under test."""
    config = to_config(find_backbone(job.backbone))
    if job.tiny:
        for name, value in {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1024,
        }.items():  # fmt: skip
            setattr(config, name, value)
    return config


def make_model(job: Job, attention: str) -> Any:
    """Random weights, made on the device."""
    dtype = torch.float32 if job.device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    with torch.device(job.device):
        model = transformers.AutoModelForCausalLM.from_config(make_config(job), dtype=dtype)
    model.set_attn_implementation(attention)
    if job.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.requires_grad_(False)


def lora() -> LoraConfig:
    """The adapter of every run."""
    return LoraConfig(r=16, lora_alpha=32, target_modules=LAYERS, task_type="CAUSAL_LM")


class WallClock(Clock):
    """Seconds on the wall, the device's queue emptied first."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def arguments_of(job: Job) -> dict[str, Any]:
    """Trainer arguments of every run."""
    is_cpu = job.device == "cpu"
    return {**common(job.steps), "use_cpu": is_cpu, "bf16": not is_cpu}


def run_ours(job: Job, items: list[Any], clock: WallClock) -> tuple[int, int]:
    """Trains packed; gives the tokens behind the clock and of the largest micro-batch."""
    model = make_model(job, register_attention())
    attach_log_probs(model)
    adapted = get_peft_model(model, lora())
    lengths = [item.n_tokens for item in items]
    plan = StepPlan(lengths, batch_size=job.batch, max_steps=job.steps, seed=42, budget=job.budget)
    data = StepData(items, plan, FinetuneSettings())
    trainer = StepTrainer(
        model=adapted,
        args=transformers.TrainingArguments(
            per_device_train_batch_size=1, remove_unused_columns=False, label_names=[],
            average_tokens_across_devices=False, dataloader_pin_memory=False, **arguments_of(job),
        ),
        data=data,
        eval_data=None,
        speed=Speed(ModelSizes.of(adapted), None),
        callbacks=[clock],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    with disable_input_dtype_casting(adapted):
        trainer.train()
    steps = [data[number] for number in range(job.steps)]
    most = max(batch.n_tokens for step in steps for batch in step.batches)
    return sum(step.n_tokens for step in steps[1:]), most


def run_trl(job: Job, items: list[Any], clock: WallClock) -> tuple[int, int]:
    """TRL's SFTTrainer on rows of up to 1,024 tokens, as many as the budget takes."""
    import trl
    from datasets import Dataset

    rows = [
        {"input_ids": item.documents[0].ids.tolist(), "labels": item.documents[0].labels().tolist()}
        for item in items
    ]
    per_call = max(1, job.budget // 1024)
    calls = max(1, job.batch // per_call)
    grouped = {"train_sampling_strategy": "group_by_length"} if "grouped" in job.who else {}
    seen: list[tuple[int, int]] = []
    trainer = trl.SFTTrainer(
        model=make_model(dataclasses.replace(job, checkpointing=False), "sdpa"),
        args=trl.SFTConfig(
            per_device_train_batch_size=per_call, gradient_accumulation_steps=calls,
            max_length=1024, gradient_checkpointing=job.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False}, **arguments_of(job), **grouped,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(),
        peft_config=lora(),
        callbacks=[clock],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    own_step = trainer.training_step

    def counted_step(model: Any, inputs: Any, *rest: Any, **words: Any) -> Any:
        mask = inputs.get("attention_mask")
        n_real = inputs["input_ids"].numel() if mask is None else int(mask.sum())
        seen.append((n_real, inputs["input_ids"].numel()))
        return own_step(model, inputs, *rest, **words)

    trainer.training_step = counted_step
    trainer.train()
    return sum(real for real, _ in seen[calls:]), max(size for _, size in seen)


def run(job: Job) -> dict[str, Any]:
    """One run with its figures; an error becomes a figure, too."""
    transformers.logging.set_verbosity_error()
    items = make_items(job.batch * job.steps)
    clock, told = WallClock(), dataclasses.asdict(job)
    context = 0
    if job.device == "cuda":
        torch.zeros(1, device="cuda")
        free, total = torch.cuda.mem_get_info()
        context = total - free
    try:
        n_tokens, most = (run_ours if job.who == "ours" else run_trl)(job, items, clock)
    except torch.OutOfMemoryError:
        return {**told, "failed": "out of memory"}
    except (RuntimeError, ValueError, TypeError):
        return {**told, "failed": traceback.format_exc(limit=-2)}
    labelled = sum(len(i.documents[0]) - i.documents[0].n_prompt for i in items)
    labelled /= sum(item.n_tokens for item in items)
    lengths = [item.n_tokens for item in items]
    dtype = torch.float32 if job.device == "cpu" else torch.bfloat16
    count = count_shape(make_config(job), lora(), dtype=dtype)
    flops = flops_per_token(
        count, length=sum(n * n for n in lengths) / sum(lengths), labelled=labelled
    ).total(checkpointing=False)
    per_s = n_tokens / clock.seconds
    told |= {"tokens_per_s": per_s, "tflops_per_s": per_s * flops / 1e12, "most_tokens": most}
    if job.who == "ours":
        memory = memory_of(count, most, labelled, checkpointing=job.checkpointing)
        told["estimated_gib"] = memory.total / GIB
        told["estimated_allocated_gib"] = (memory.total - memory.overhead) / GIB
    if job.device == "cuda":
        told["allocated_gib"] = torch.cuda.max_memory_allocated() / GIB
        told["peak_gib"] = (torch.cuda.max_memory_reserved() + context) / GIB
        told["assumed_context_gib"], told["context_gib"] = CONTEXT_BYTES / GIB, context / GIB
    return told


def table(rows: list[dict[str, Any]], error: float, device: str) -> str:
    """All runs as Markdown."""
    lines = [
        f"Device: {device}; torch {torch.__version__}, transformers {transformers.__version__}. "
        f"Attention against float32, document by document: {error:.1e}. MFU: of "
        f"{REACHABLE_TFLOPS} / {SHEET_TFLOPS} TFLOP/s, model's own arithmetic only.",
        "",
        "| run | budget | recomputes | tokens/s | MFU | peak GiB | estimate GiB | off by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        head = f"| {row['who']} | {row['budget']:,} | {'yes' if row['checkpointing'] else 'no'} |"
        if "failed" in row:
            lines.append(f"{head} {row['failed'].strip().splitlines()[-1]} | | | | |")
            continue
        peak, estimate = row.get("peak_gib"), row.get("estimated_gib")
        mfu = " / ".join(
            f"{row['tflops_per_s'] / peak_tflops:.1%}"
            for peak_tflops in (REACHABLE_TFLOPS, SHEET_TFLOPS)
        )
        off = f"{estimate / peak - 1:+.1%}" if peak and estimate else "-"
        cells = [f"{value:.1f}" if value else "-" for value in (peak, estimate)]
        lines.append(f"{head} {row['tokens_per_s']:,.0f} | {mfu} | {' | '.join(cells)} | {off} |")
    return "\n".join(lines) + "\n"


def apart(function: Any, argument: Any) -> Any:
    """Calls in a fresh process: nobody else's memory or context is on the card."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (argument,))


def main() -> None:
    """Reads the arguments, checks, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="baichuan")
    parser.add_argument("--budgets", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of a run")
    parser.add_argument("--cpu", action="store_true", help="no GPU: for trying the script out")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape: for trying it out")
    parser.add_argument("--out", type=Path, default=Path("training-gpu.md"))
    arguments = parser.parse_args()
    device = "cpu" if arguments.cpu else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device; --cpu --tiny runs the code path")
    error, name = apart(check, device)
    whom = [("ours", False), ("ours", True), ("trl padded", False), ("trl grouped", False)]
    whom.append(("trl padded", True))  # TRL's own default
    shared = (arguments.backbone, arguments.steps, device, arguments.tiny)
    jobs = [Job(who, n, again, *shared) for n in arguments.budgets for who, again in whom]
    rows = []
    for job in jobs:
        rows.append(apart(run, job))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    arguments.out.write_text(table(rows, error, name), encoding="utf-8")
    print(table(rows, error, name))


if __name__ == "__main__":
    main()
