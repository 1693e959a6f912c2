"""Memory and arithmetic of one training step on a card, and the speed of a run.

count = count_shape(config, lora)
memory = memory_of(count, tokens=8192, labelled=0.7)
memory.total / 2**30, memory.fits(load_cards()["a100-80"].memory_bytes)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from pydantic import Field

from cbtqa.records import NonEmptyText, Record
from cbtqa.tuning.budget.counting import ModelSizes, ShapeCount, count_head
from cbtqa.tuning.data.packing import StepBatches
from cbtqa.tuning.libraries import read_table

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


class Memory(Record):
    """Bytes on one card at the highest moment of a step."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    temporaries: int
    """Alive above that for a moment: in the loss, or in the backward pass."""
    overhead: int
    """CUDA context (on a CPU: the process itself) and the allocator's slack: assumed, everything
    else is counted."""

    total: int

    def fits(self, memory_bytes: int) -> bool:
        """True when a card of so much memory holds it."""
        return self.total <= memory_bytes


def memory_of(
    count: ShapeCount,
    tokens: int,
    labelled: float,
    *,
    checkpointing: bool = False,
    is_quantized: bool = False,
    optimizer: str = "adamw",
    n_cards: int = 1,
    sharding: Sharding = "ddp",
    context_bytes: int = CONTEXT_BYTES,
) -> Memory:
    """Memory of one card.

    Args:
        tokens: of one micro-batch, padding included.
        labelled: share of them in the loss, 0 to 1.
        is_quantized: True for QLoRA: adapted matrices in NF4, the rest as it was.
        n_cards: cards that share the work; each sees `tokens` at once.
        sharding: `ddp` holds everything on each card; `fsdp` divides all but the activations and
            gathers two layers at a time, the one at work and the next.
        context_bytes: what is taken whatever the model.
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
    kept = round(passes.saved_fixed + passes.saved_per_token * tokens)
    # above what is kept: in the head's loss, or later in the backward pass, not in both
    n_labelled = max(1, round(tokens * labelled))
    dtype = torch.float32 if count.weight_width == 4 else torch.bfloat16
    head = count_head(count.hidden, count.vocabulary, n_labelled, dtype)
    above = max(head, round((passes.peak_per_token - passes.saved_per_token) * tokens))
    parts = {
        "weights": weights // share + gathered,
        "adapters": count.trainable_bytes // share,
        "gradients": copies * count.trainable_bytes // share,
        "optimizer": round(ADAMW_BYTES[optimizer] * count.n_trainable / share),
        "activations": kept,
        "temporaries": above,
        "overhead": context_bytes + round(SLACK * (kept + above)),
    }
    return Memory(**parts, total=sum(parts.values()))


@dataclass(frozen=True)
class TokenFlops:
    """Operations per trained token, on average."""

    forward: float
    backward: float
    recompute: float
    """What gradient checkpointing adds: the layers' forward pass once more."""

    def total(self, *, checkpointing: bool) -> float:
        """All operations of a token."""
        return self.forward + self.backward + (self.recompute if checkpointing else 0.0)


@dataclass(frozen=True)
class Work:
    """What a training run goes through."""

    most_tokens: int
    """Of the largest micro-batch, padding included."""
    labelled: float
    """Share of the tokens in the loss, 0 to 1."""
    flops: TokenFlops
    total_tokens: int
    """Over all epochs."""


def flops_per_token(sizes: ModelSizes, *, length: float, labelled: float) -> TokenFlops:
    """Operations per token.

    A frozen matrix costs 2 operations a weight forward and 2 backward (only the gradient of its
    input is wanted); an adapter 6; causal attention 4 * length/2 * width a layer forward and 2.5
    times that backward. The output head runs on labelled tokens only.

    Args:
        length: mean length of a token's document, in tokens: the sum of squared lengths divided by
            the sum of lengths.
        labelled: share of tokens in the loss, 0 to 1.

    Source: the accounting of NVIDIA's NeMo AutoModel for LoRA fits 4 operations a weight and token
    (402 TFLOP/s at 12,473 tokens/s on 8.03 G weights); attention's backward factor is that of
    FlashAttention-2 (arXiv 2307.08691, section 3.1: 5 matrix products against 2).
    """
    attention = 4 * (length / 2) * sizes.attention_width * sizes.n_layers
    head = 2 * sizes.vocabulary * sizes.hidden * labelled
    body = 2 * sizes.body_weights
    adapters = 2 * sizes.adapter_weights
    return TokenFlops(
        forward=body + adapters + attention + head,
        backward=body + 2 * adapters + 2.5 * attention + head,
        recompute=body + adapters + attention,
    )


GIB = 2**30


class Card(Record):
    """One kind of card; see `cards.yaml` for the sources."""

    id: NonEmptyText
    name: NonEmptyText
    memory_gib: float = Field(gt=0)
    """As the driver shows it, not as it is sold."""
    tflops: float = Field(gt=0)
    """Dense 16-bit matrix products with 32-bit sums, 10^12 operations a second."""
    share: float = Field(gt=0, lt=1)
    """Share of `tflops` that a run is taken to reach."""
    bf16: bool = True
    """False: the card trains in fp16."""
    source: NonEmptyText

    @property
    def memory_bytes(self) -> int:
        """Bytes of device memory."""
        return int(self.memory_gib * GIB)


def expected_seconds(n_tokens: float, flops: float, card: Card, *, n_cards: int = 1) -> float:
    """Seconds for so many tokens at the share of the cards' throughput that is assumed."""
    return n_tokens * flops / (card.tflops * 1e12 * card.share * n_cards)


@cache
def load_cards() -> dict[str, Card]:
    """Every named card by id, the largest first."""
    loaded = read_table("cards.yaml")
    common = {"share": loaded["default_share"]}
    return {id_: Card(id=id_, **(common | row)) for id_, row in loaded["cards"].items()}


def card_of_device(name: str, memory_bytes: int) -> Card | None:
    """The named card that a device is, by its driver's name and its memory; None when unknown."""
    for card in load_cards().values():
        words = _plain(card.name.split(" ")[-1] if "RTX" in card.name else card.name.split(" ")[0])
        if words in _plain(name) and abs(card.memory_bytes - memory_bytes) < 0.15 * memory_bytes:
            return card
    return None


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


class Speed:
    """Tokens per second and the share of the card's arithmetic that is reached (MFU).

    Counted over all processes, without the time of evaluations and checkpoints; what gradient
    checkpointing computes twice is not counted twice.
    """

    def __init__(self, sizes: ModelSizes, card: Card | None, n_processes: int = 1) -> None:
        self._sizes, self._card, self._n_processes = sizes, card, n_processes
        self._tokens, self._flops, self._paused = 0, 0.0, 0.0
        self._since = time.perf_counter()
        self._all_tokens, self._all_seconds = 0, 0.0

    def begin(self) -> None:
        """Training begins now; earlier time does not count."""
        self._since, self._paused = time.perf_counter(), 0.0

    def flops_of(self, step: StepBatches) -> float:
        """Operations of a step."""
        squares = sum(n * n for n in step.documents)
        per_token = flops_per_token(
            self._sizes,
            length=squares / max(1, step.n_tokens),
            labelled=step.n_learnt / max(1, step.n_tokens),
        )
        return per_token.total(checkpointing=False) * step.n_tokens

    def add(self, step: StepBatches) -> None:
        """A step was computed."""
        self._tokens += step.n_tokens
        self._flops += self.flops_of(step)

    def pause(self, seconds: float) -> None:
        """Time that went into something else."""
        self._paused += seconds

    @property
    def n_tokens(self) -> int:
        """Tokens of every step so far, over all processes."""
        return self._all_tokens + self._tokens

    @property
    def mean_tokens_per_s(self) -> float | None:
        """Over all log lines since the run was begun or resumed; None before the first."""
        return round(self._all_tokens / self._all_seconds, 1) if self._all_seconds else None

    def lap(self) -> dict[str, float]:
        """Figures since the last call, and a new start."""
        now = time.perf_counter()
        seconds = max(1e-9, now - self._since - self._paused)
        figures = {
            "tokens_per_s": round(self._tokens / seconds, 1),
            "tflops_per_s": round(self._flops / seconds / 1e12, 6),
        }
        if self._card is not None:
            peak = self._card.tflops * 1e12 * self._n_processes
            figures["mfu"] = round(self._flops / seconds / peak, 4)
        if torch.cuda.is_available():
            figures["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        self._all_tokens += self._tokens
        self._all_seconds += seconds
        self._since, self._tokens, self._flops, self._paused = now, 0, 0.0, 0.0
        return figures


def this_card() -> Card | None:
    """The named card in use; None on a CPU or a card that is not in the list."""
    if not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return card_of_device(device.name, device.total_memory)
