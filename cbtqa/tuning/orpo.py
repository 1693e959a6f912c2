"""ORPO: likelihood of the chosen answer, and its odds against the rejected one.

    loss = NLL - beta * mean(log sigmoid(log odds(chosen) - log odds(rejected)))

with odds from the mean log-probability of the answer's tokens. Source: arXiv 2403.07691, equations
4, 6 and 7; values as in TRL 1.16, where the likelihood term counts prompt and chosen answer
(`text`); `answer` counts the answer alone. A step's terms are means over the whole step: over its
tokens, and over its pairs, however it was divided into micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LOG_HALF = -0.6931471805599453


@dataclass(frozen=True)
class OrpoTerms:
    """A micro-batch's share of a step, and what is told of it."""

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
    """The loss of packed pairs.

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
