"""What a training run takes on the CPU of this machine, which is what trains where no card is.

here = estimate_cpu(config, lora, settings, work)
here.memory.total, here.gflops
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch

from cbtqa.records import Record
from cbtqa.tuning.budget.counting import ModelSizes, count_once
from cbtqa.tuning.budget.estimate import Memory, Work, memory_of
from cbtqa.tuning.libraries import require
from cbtqa.tuning.settings import FinetuneSettings

PROCESS_BYTES = 900 << 20
"""Python with torch, transformers, peft and datasets, and a tokenizer. measured on SmolLM2."""
SHARE = 0.65
"""Share of a bare matrix product's speed that a whole step reaches. measured: 0.68 on SmolLM2."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux keeps the memory limit of a container."""
PROBE_SECONDS, PROBE_ROWS, PROBE_WIDTH = 0.1, 256, 1024


class CpuEstimate(Record):
    """The run on this machine's CPU."""

    n_threads: int
    precision: Literal["fp32", "bf16"]
    memory_bytes: int
    """Of the machine, or of its container where that is less."""
    checkpointing: bool
    """By its flag alone: `auto` looks at cards."""
    memory: Memory
    """`overhead`: Python with its libraries, and slack."""
    fits: bool
    gflops: float
    """10^9 operations a second that a matrix product reached just now."""
    share: float
    """Of `gflops` that a whole step is taken to reach, for `seconds`."""
    seconds: float
    """Of the whole training."""


def estimate_cpu(
    config: Any, lora: Any, settings: FinetuneSettings, work: Work
) -> CpuEstimate | None:
    """Counts as for a card, in the precision that the CPU trains in; times one matrix product.

    None with fp16, in which no CPU trains.

    Args:
        config: transformers' configuration of the real size.
        lora: a `peft.LoraConfig`.
    """
    if settings.precision == "fp16":
        return None
    precision: Literal["fp32", "bf16"] = "bf16" if settings.precision == "bf16" else "fp32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    count = count_once(config, lora, dtype)
    checkpointing = settings.gradient_checkpointing == "on"
    memory = memory_of(
        count,
        work.most_tokens,
        work.labelled,
        checkpointing=checkpointing,
        is_quantized=settings.method == "qlora",
        optimizer=settings.optimizer,
        context_bytes=PROCESS_BYTES,
    )
    per_token = work.flops.total(checkpointing=checkpointing)
    has, rate = memory_of_machine(), measured_flops(count, dtype)
    return CpuEstimate(
        n_threads=torch.get_num_threads(),
        precision=precision,
        memory_bytes=has,
        checkpointing=checkpointing,
        memory=memory,
        fits=memory.fits(has),
        gflops=rate / 1e9,
        share=SHARE,
        seconds=work.total_tokens * per_token / (rate * SHARE),
    )


def memory_of_machine() -> int:
    """Bytes that this process may use."""
    total: int = require("psutil").virtual_memory().total
    limits = (Path(name) for name in LIMITS)
    found = [path.read_text(encoding="ascii").strip() for path in limits if path.is_file()]
    return min([total, *(int(text) for text in found if text.isdigit())])


def measured_flops(count: ModelSizes, dtype: torch.dtype) -> float:
    """Operations a second of a matrix product on this CPU; the model's width counts up to
    `PROBE_WIDTH`. Timed by this thread's own seconds: what else runs on the machine is left out."""
    width = min(count.hidden, PROBE_WIDTH)
    states = torch.ones(PROBE_ROWS, width, dtype=dtype)
    matrix = torch.ones(width, PROBE_WIDTH, dtype=dtype)
    n, seconds = 0, 0.0
    with torch.no_grad():
        states @ matrix  # the first one sets up
        began = time.thread_time()
        while seconds < PROBE_SECONDS:
            states @ matrix
            n, seconds = n + 1, time.thread_time() - began
    return 2 * PROBE_ROWS * width * PROBE_WIDTH * n / seconds
