"""Log-probabilities of the learnt tokens, without the logits of all others.

The head runs in chunks on the positions that are learnt, and the gradient of each log-probability
with respect to its hidden state is made in the same pass: no logits are kept, and none are made
twice. That holds for a frozen head, which adapters have.

    attach_log_probs(model)
    log_probs = model(**inputs, learn_at=places, targets=ids)      # shape (learnt tokens,)
    loss = -log_probs.sum() / n_learnt_in_step
"""

from __future__ import annotations

from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor

LOGITS_AT_ONCE = 1 << 26
"""Logits of a chunk: 256 MiB in float32."""


class _HeadLogProbs(torch.autograd.Function):
    """log p(target) from hidden states and a frozen head."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        n_rows = max(1, LOGITS_AT_ONCE // weight.shape[0])
        log_probs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), n_rows):
            part = slice(start, start + n_rows)
            logits = (hidden[part] @ weight.T).float()
            rows = torch.arange(len(logits), device=logits.device)
            total = logits.logsumexp(-1)
            log_probs[part] = logits[rows, targets[part]] - total
            if gradient is not None:
                slopes = logits.sub_(total[:, None]).exp_().neg_()
                slopes[rows, targets[part]] += 1
                gradient[part] = slopes.to(weight.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return log_probs

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * outer[0][:, None]).to(gradient.dtype), None, None


def head_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log p(target | hidden), float32.

    Args:
        hidden: shape (n, width).
        weight: the frozen head, shape (vocabulary, width).
        targets: shape (n,).
    """
    with torch.autocast(hidden.device.type, enabled=False):
        applied = _HeadLogProbs.apply(  # type: ignore[no-untyped-call]
            hidden.to(weight.dtype), weight, targets
        )
    return cast(Tensor, applied)


def attach_log_probs(model: Any) -> bool:
    """Lets a causal language model give log-probabilities when called with `targets`.

    The model is then called through all wrappers (adapters, DDP, FSDP) as usual. Called without
    `targets` it does what it did before.

    Returns:
        True when the head is a plain matrix and runs in chunks; False when the model does more
        with its logits (bias, scaling, caps), so that its own are used, all of them at once.
    """
    is_plain = _head_is_plain(model)
    own_forward = model.forward

    def forward(
        self: Any, *args: Any, targets: Tensor | None = None, learn_at: Any = None, **inputs: Any
    ) -> Any:
        if targets is None:
            return own_forward(*args, **inputs)
        weight = self.get_output_embeddings().weight
        if not is_plain or hasattr(weight, "ds_id"):  # ZeRO-3 gathers a weight in its own module
            logits = own_forward(*args, **inputs).logits
            rows = logits.flatten(0, 1)[learn_at].float().log_softmax(-1)
            return rows.gather(-1, targets[:, None])[:, 0]
        for unused in ("labels", "inputs_embeds"):
            if inputs.get(unused) is None:
                inputs.pop(unused, None)
        body = getattr(self, self.base_model_prefix)
        hidden = body(*args, **inputs).last_hidden_state
        return head_log_probs(hidden.flatten(0, 1)[learn_at], weight, targets)

    model.forward = MethodType(forward, model)
    return is_plain


def _head_is_plain(model: Any) -> bool:
    """True when hidden states times the head's weight are the model's own logits."""
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None or not head.weight.dtype.is_floating_point:
        return False
    ids = torch.arange(1, 5, device=model.device)[None]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        hidden = getattr(model, model.base_model_prefix)(ids, use_cache=False).last_hidden_state
        own = model(ids, use_cache=False).logits.float()
        plain = (hidden.to(head.weight.dtype) @ head.weight.T).float()
    model.train(was_training)
    tolerance = 1e-3 if head.weight.dtype == torch.float32 else 3e-2
    return bool((own - plain).norm() <= tolerance * own.norm())


def sft_loss(log_probs: Tensor, n_learnt: int) -> Tensor:
    """A micro-batch's share of a step's loss: mean over the learnt tokens of the whole step."""
    return -log_probs.sum() / max(1, n_learnt)
