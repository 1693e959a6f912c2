"""Tokens per second and the share of the card's arithmetic that a run reaches (MFU).

Counted over all processes, without the time of evaluations and checkpoints. MFU counts the
arithmetic the model needs; what gradient checkpointing computes twice is not counted twice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from cbtqa.tuning.batches import StepBatches
from cbtqa.tuning.cards import Card, card_of_device
from cbtqa.tuning.flops import flops_per_token


@dataclass(frozen=True)
class ModelSizes:
    """What of a model decides its arithmetic."""

    body_weights: int
    adapter_weights: int
    n_layers: int
    hidden: int
    attention_width: int
    vocabulary: int

    @classmethod
    def of(cls, model: Any) -> ModelSizes:
        """Counted on a model with adapters, quantised or not."""
        config = model.config.get_text_config()
        n_adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
        head_dim = getattr(config, "head_dim", None)
        width = head_dim or config.hidden_size // config.num_attention_heads
        linear = [
            getattr(module, "base_layer", module)
            for name, module in model.named_modules()
            if _is_linear(module) and ".lora_" not in name and not name.endswith("base_layer")
        ]
        n_linear = sum(layer.in_features * layer.out_features for layer in linear)
        n_head = config.vocab_size * config.hidden_size
        return cls(
            body_weights=n_linear - n_head,
            adapter_weights=n_adapter,
            n_layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            attention_width=width * config.num_attention_heads,
            vocabulary=config.vocab_size,
        )


def _is_linear(module: Any) -> bool:
    layer = getattr(module, "base_layer", module)
    return isinstance(layer, torch.nn.Linear)


class Speed:
    """Counts steps between log lines."""

    def __init__(self, sizes: ModelSizes, card: Card | None, n_processes: int = 1) -> None:
        self._sizes, self._card, self._n_processes = sizes, card, n_processes
        self._tokens, self._flops, self._paused = 0, 0.0, 0.0
        self._since = time.perf_counter()
        self._all_tokens, self._all_seconds = 0, 0.0

    def begin(self) -> None:
        """Training begins now; what came before does not count."""
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
    def mean_tokens_per_s(self) -> float | None:
        """Over all log lines since the run was begun or continued; None before the first."""
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
