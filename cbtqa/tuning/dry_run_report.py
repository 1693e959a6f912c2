"""What a dry run tells, as records: `DryRun` and its parts. `dry_run` fills them."""

from __future__ import annotations

from typing import Any, Literal

from cbtqa.manifest import SettingValue
from cbtqa.records import Record


class Piece(Record):
    """A stretch of one example."""

    text: str
    is_learnt: bool


class Layout(Record):
    """How the items go through the model."""

    n_items: int
    n_steps: int
    n_steps_laid_out: int
    """Steps that the figures below are taken from: a run is alike all through."""
    n_micro_batches: float
    """Per step and process, on average."""
    mean_tokens: float
    """Real tokens of a micro-batch, on average."""
    most_tokens: int
    """Of the largest micro-batch, padding included: what memory has to hold."""
    fill: float
    """Real tokens as a share of the token budget, 0 to 1; what is left is never computed."""
    padding: float
    """Padding as a share of what is computed, 0 to 1; 0 when packed."""


class MemoryParts(Record):
    """Bytes on one card at the highest moment; see `estimate.Memory`."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    temporaries: int
    overhead: int
    total: int


class CardEstimate(Record):
    """One kind of card."""

    card: str
    memory_bytes: int
    """What it has."""
    checkpointing: bool
    """What would be done: as set or, by `auto`, only where it does not fit otherwise."""
    needed_bytes: int
    """With or without checkpointing, as above."""
    fits: bool
    n_fsdp_cards: int | None = None
    """So many cards hold it together by FSDP; None where one holds it, or eight do not."""
    seconds: float | None
    """Of the whole training; None where it does not fit."""
    assumed_share: float
    """Of the card's throughput, behind `seconds`."""


class DryRun(Record):
    """Everything a dry run tells."""

    settings: dict[str, SettingValue]
    backbone: str
    licence: str
    notes: tuple[str, ...] = ()
    """What has to be done first, and what is approximate."""
    tokens_by: Literal["tokenizer", "approximation"]
    data: dict[str, dict[str, Any]]
    """Token statistics by split."""
    layout: Layout
    n_parameters: int
    n_trainable: int
    bytes_per_token: float
    """Activations kept for the backward pass."""
    checkpointed_bytes_per_token: float
    flops_per_token: float
    """Without gradient checkpointing."""
    total_tokens: int
    """Over all epochs."""
    n_processes: int
    """Cards that share each step."""
    memory: dict[Literal["plain", "checkpointed"], MemoryParts]
    cards: tuple[CardEstimate, ...]
    example: tuple[Piece, ...]
    """One training example as the model sees it."""
