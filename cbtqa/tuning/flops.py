"""Arithmetic of LoRA training, and the time it takes on a card.

A frozen matrix costs 2 operations a weight forward and 2 backward (only the gradient of its
input is wanted); an adapter 6; causal attention 4 * length/2 * width a layer forward and 2.5
times that backward. The output head runs on labelled tokens only.

Source: the accounting of NVIDIA's NeMo AutoModel for LoRA fits 4 operations a weight and token
(402 TFLOP/s at 12,473 tokens/s on 8.03 G weights); attention's backward factor is that of
FlashAttention-2 (arXiv 2307.08691, section 3.1: 5 matrix products against 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Sizes(Protocol):
    """What of a model decides its arithmetic; `counting.ShapeCount` is one."""

    @property
    def body_weights(self) -> int: ...
    @property
    def adapter_weights(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def attention_width(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...


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


def flops_per_token(sizes: Sizes, *, length: float, labelled: float) -> TokenFlops:
    """Operations per token.

    Args:
        length: mean length of the document that a token stands in, in tokens: the sum of squared
            lengths divided by the sum of lengths.
        labelled: share of tokens in the loss, 0 to 1.
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


def expected_seconds(
    n_tokens: float, flops: float, *, tflops: float, share: float, n_cards: int = 1
) -> float:
    """Seconds for so many tokens at a share of the cards' throughput."""
    return n_tokens * flops / (tflops * 1e12 * share * n_cards)
