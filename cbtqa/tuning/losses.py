"""Log-probabilities of the learnt tokens, without the logits of all others.

The head runs in chunks on the positions that are learnt, and the gradient of each log-probability
with respect to its hidden state is made in the same pass: no logits are kept, and none are made
twice. That holds for a frozen head, which adapters have.

    attach_log_probs(model)
    log_probs = model(**inputs, learn_at=places, targets=ids)      # shape (learnt tokens,)
    loss = -log_probs.sum() / n_learnt_in_step
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cbtqa.tuning.libraries import FAULTS, is_out_of_memory

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
    """log p(target | hidden), float32 `(n,)`, by the frozen head `weight` `(vocabulary, width)`."""
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
        # peft gives arguments that not every model knows, as None
        inputs = {name: value for name, value in inputs.items() if value is not None}
        weight = self.get_output_embeddings().weight if is_plain else None
        if weight is None or hasattr(weight, "ds_id"):  # ZeRO-3 gathers a weight in its own module
            logits = own_forward(*args, **inputs).logits
            rows = logits.flatten(0, 1)[learn_at].float().log_softmax(-1)
            return rows.gather(-1, targets[:, None])[:, 0]
        body = getattr(self, self.base_model_prefix)
        hidden = body(*args, **inputs).last_hidden_state
        return head_log_probs(hidden.flatten(0, 1)[learn_at], weight, targets)

    model.forward = MethodType(forward, model)
    return is_plain


def _head_is_plain(model: Any) -> bool:
    """True when hidden states times the head's weight are the model's own logits."""
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or getattr(head, "bias", None) is not None:
        return False
    if not weight.dtype.is_floating_point:
        return False
    ids = torch.arange(1, 5, device=model.device)[None]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            hidden = getattr(model, model.base_model_prefix)(ids, use_cache=False).last_hidden_state
            own = model(ids, use_cache=False).logits.float()
            plain = (hidden.to(weight.dtype) @ weight.T).float()
    except FAULTS as error:
        if is_out_of_memory(error):
            raise
        return False
    finally:
        model.train(was_training)
    tolerance = 1e-3 if weight.dtype == torch.float32 else 3e-2
    return own.shape == plain.shape and bool((own - plain).norm() <= tolerance * own.norm())


def sft_loss(log_probs: Tensor, n_learnt: int) -> Tensor:
    """A micro-batch's share of a step's loss: mean over the learnt tokens of the whole step."""
    return -log_probs.sum() / max(1, n_learnt)


LOG_HALF = -0.6931471805599453


@dataclass(frozen=True)
class OrpoTerms:
    """A micro-batch's share of an ORPO step, and its figures for the log."""

    loss: Tensor
    nll: Tensor
    """Share of the likelihood term."""
    n_preferred: Tensor
    """Pairs whose chosen answer is the likelier one."""
    margin: Tensor
    """Sum over pairs of beta times the difference of mean log-probabilities."""


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, without cancellation near 0."""
    return torch.where(x < LOG_HALF, torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x)))


def orpo_terms(
    log_probs: Tensor,
    document: Tensor,
    in_answer: Tensor,
    *,
    n_pairs: int,
    n_pairs_in_step: int,
    n_nll_in_step: int,
    beta: float,
) -> OrpoTerms:
    """The ORPO loss of packed pairs: the chosen answer's likelihood, its odds against the other's.

        loss = NLL - beta * mean(log sigmoid(log odds(chosen) - log odds(rejected)))

    with odds from the mean log-probability of the answer's tokens. Values as in TRL 1.16, where the
    likelihood counts prompt and chosen answer (`text`). Terms are means over the tokens and pairs
    of the whole step, however it was divided. Source: arXiv 2403.07691, equations 4, 6 and 7.

    Args:
        log_probs: shape (n,), of every learnt token.
        document: shape (n,): 2k for the chosen answer of pair k, 2k + 1 for its rejected one.
        in_answer: shape (n,): False for tokens of a prompt, which count in the likelihood only.
        n_pairs: pairs in this micro-batch.
        n_nll_in_step: tokens of the likelihood term in the whole step.
    """
    empty = log_probs.new_zeros(2 * n_pairs)
    weight = in_answer.to(log_probs.dtype)
    sums = empty.index_add(0, document, log_probs * weight)
    chosen, rejected = (sums / empty.index_add(0, document, weight)).view(-1, 2).unbind(1)
    log_odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
    nll = -(log_probs * (document % 2 == 0)).sum() / max(1, n_nll_in_step)
    odds = logsigmoid(log_odds).sum() / max(1, n_pairs_in_step)
    return OrpoTerms(
        loss=nll - beta * odds,
        nll=nll.detach(),
        n_preferred=(chosen > rejected).sum().detach(),
        margin=(beta * (chosen - rejected)).sum().detach(),
    )
