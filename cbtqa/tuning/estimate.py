"""Memory of one training step on a card, and whether it fits: counted sizes added up.

    count = count_shape(config, lora)
    memory = memory_of(count, StepSize(tokens=8192, labelled=0.7))
    memory.total / 2**30, memory.fits(find_card("a100-80").memory_bytes)

What is counted and what is assumed is kept apart: `overhead` is the only assumed part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from cbtqa.tuning.counting import ShapeCount, count_head

Sharding = Literal["ddp", "fsdp"]
CONTEXT_BYTES = 1 << 30
"""CUDA context, cuBLAS workspaces, kernels. assumed; 0.5 to 1.2 GiB are usual."""
SLACK = 0.05
"""Share of the activations that the allocator cannot hand out again. assumed"""
ADAMW_BYTES = {"adamw": 8.0, "adamw_8bit": 2.0}
"""Bytes of optimiser state per trained number: two moments of 4 bytes, or of 1."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4: 4 bits, one byte of scale per 64 weights, and a 32-bit scale for each
256 of these. Source: arXiv 2305.14314, section 3 (double quantisation)."""


@dataclass(frozen=True)
class StepSize:
    """What goes through a card at once."""

    tokens: int
    """Tokens of one micro-batch, padding included."""
    labelled: float
    """Share of them in the loss, 0 to 1."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one card at the highest moment of a step."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    temporaries: int
    """Alive above that for a moment: in the loss, or in the backward pass."""
    overhead: int
    """CUDA context and the allocator's slack: assumed, everything else is counted."""

    @property
    def total(self) -> int:
        """All of it."""
        state = self.weights + self.adapters + self.gradients + self.optimizer
        return state + self.activations + self.temporaries + self.overhead

    def fits(self, memory_bytes: int) -> bool:
        """True when a card of so much memory holds it."""
        return self.total <= memory_bytes


def memory_of(
    count: ShapeCount,
    size: StepSize,
    *,
    checkpointing: bool = False,
    is_quantized: bool = False,
    optimizer: str = "adamw",
    n_cards: int = 1,
    sharding: Sharding = "ddp",
) -> Memory:
    """Memory of one card.

    Args:
        is_quantized: True for QLoRA: adapted matrices in NF4, the rest as it was.
        n_cards: cards that share the work; each sees `size` at once.
        sharding: `ddp` holds everything on each card; `fsdp` divides all but the activations and
            gathers two layers at a time, the one at work and the next.
    """
    share = n_cards if sharding == "fsdp" else 1
    weights = count.frozen_bytes
    if is_quantized:
        weights -= round(count.adapted_weights * (count.weight_width - NF4_BYTES))
        # one matrix at a time is unpacked for its product
        weights += count.largest_matrix * count.weight_width
    gathered = 2 * count.layer_bytes if share > 1 else 0
    # DDP sends gradients from buckets of its own, as large as the gradients together
    copies = 2 if n_cards > 1 and sharding == "ddp" else 1
    passes = count.recomputed if checkpointing else count.plain
    kept = round(passes.saved_fixed + passes.saved_per_token * size.tokens)
    # above what is kept: in the head's loss, or later in the backward pass, not in both
    n_labelled = max(1, round(size.tokens * size.labelled))
    dtype = torch.float32 if count.weight_width == 4 else torch.bfloat16
    head = count_head(count.hidden, count.vocabulary, n_labelled, dtype)
    above = max(head, round((passes.peak_per_token - passes.saved_per_token) * size.tokens))
    return Memory(
        weights=weights // share + gathered,
        adapters=count.trainable_bytes // share,
        gradients=copies * count.trainable_bytes // share,
        optimizer=round(ADAMW_BYTES[optimizer] * count.n_trainable / share),
        activations=kept,
        temporaries=above,
        overhead=CONTEXT_BYTES + round(SLACK * (kept + above)),
    )


def needs_checkpointing(
    memory_bytes: int, count: ShapeCount, size: StepSize, *, is_quantized: bool = False
) -> bool:
    """True when a step fits a card only with every layer recomputed (or not even so)."""
    return not memory_of(count, size, is_quantized=is_quantized).fits(memory_bytes)
