"""Micro-batches as tensors: packed rows or padded ones, with the places of the learnt tokens.

    batch = make_batch([item, item], objective="sft", loss_on="answer")
    log_probs = model(**batch.inputs)

`learn_at` are places in the flattened rows: the state there predicts the target. Padding stands on
the right and needs no mask: a causal model never looks there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cbtqa.tuning.attention import pack_inputs
from cbtqa.tuning.encoding import Document, Item
from cbtqa.tuning.packing import Step, StepPlan
from cbtqa.tuning.settings import FinetuneSettings


@dataclass(frozen=True)
class LossChoice:
    """What is learnt, as the settings say."""

    objective: str
    loss_on: str
    orpo_nll: str
    beta: float

    @classmethod
    def of(cls, settings: FinetuneSettings) -> LossChoice:
        """The choice that settings make."""
        return cls(settings.objective, settings.loss_on, settings.orpo_nll, settings.beta)

    @property
    def is_orpo(self) -> bool:
        """True for pairs of chosen and rejected answers."""
        return self.objective == "orpo"

    def first_learnt(self, document: Document, place: int) -> int:
        """Number of the first learnt token of the `place`-th document of an item.

        A rejected answer's prompt is never learnt; the first token of a document never is.
        """
        whole = self.orpo_nll == "text" if self.is_orpo else self.loss_on == "text"
        return 1 if whole and place == 0 else max(1, document.n_prompt)

    def n_learnt(self, item: Item) -> int:
        """Tokens of an item in the likelihood term: of the answer, in ORPO of the chosen one."""
        first = item.documents[0]
        return len(first) - self.first_learnt(first, 0)


@dataclass
class Batch:
    """One micro-batch."""

    inputs: dict[str, Any]
    """Arguments of the model's call."""
    n_items: int
    """Items with learnt tokens: 0 for a filler that only keeps processes in step."""
    n_tokens: int
    """Tokens computed, padding included."""
    document: Tensor
    """Shape (learnt tokens,): which document each belongs to."""
    in_answer: Tensor
    """Shape (learnt tokens,): False for tokens of a prompt."""


def make_batch(
    items: Sequence[Item], choice: LossChoice, *, is_packed: bool = True, pad_id: int = 0
) -> Batch:
    """A micro-batch of items."""
    documents = list(chain.from_iterable(item.documents for item in items))
    n_each = len(items[0].documents)
    lengths = [len(document) for document in documents]
    if is_packed:
        inputs = pack_inputs([document.ids.tolist() for document in documents])
        offsets = [0, *np.cumsum(lengths)[:-1].tolist()]
    else:
        inputs = _padded(documents, pad_id)
        offsets = [row * max(lengths) for row in range(len(documents))]
    places, targets, owners, answers = [], [], [], []
    for number, (document, offset) in enumerate(zip(documents, offsets, strict=True)):
        learnt = np.arange(choice.first_learnt(document, number % n_each), len(document))
        places.append(offset + learnt - 1)
        targets.append(document.ids[learnt])
        owners.append(np.full(len(learnt), number))
        answers.append(learnt >= document.n_prompt)
    inputs["learn_at"] = torch.from_numpy(np.concatenate(places))
    inputs["targets"] = torch.from_numpy(np.concatenate(targets).astype(np.int64))
    return Batch(
        inputs,
        n_items=len(items),
        n_tokens=inputs["input_ids"].numel(),
        document=torch.from_numpy(np.concatenate(owners)),
        in_answer=torch.from_numpy(np.concatenate(answers)),
    )


def make_filler(item: Item, choice: LossChoice, *, is_packed: bool, pad_id: int) -> Batch:
    """A micro-batch that is computed but learns nothing."""
    batch = make_batch([item], choice, is_packed=is_packed, pad_id=pad_id)
    for name in ("learn_at", "targets"):
        batch.inputs[name] = batch.inputs[name][:0]
    return Batch(batch.inputs, 0, batch.n_tokens, batch.document[:0], batch.in_answer[:0])


def _padded(documents: Sequence[Document], pad_id: int) -> dict[str, Any]:
    ids = np.full((len(documents), max(map(len, documents))), pad_id, np.int64)
    for row, document in zip(ids, documents, strict=True):
        row[: len(document)] = document.ids
    return {"input_ids": torch.from_numpy(ids), "use_cache": False}


@dataclass(frozen=True)
class StepBatches:
    """What one process computes in one step, and what the step holds over all processes."""

    batches: tuple[Batch, ...]
    n_items: int
    """Items of the step, all processes."""
    n_learnt: int
    """Tokens of the likelihood term, all processes."""
    n_tokens: int
    """Real tokens, all processes."""
    documents: tuple[int, ...]
    """Tokens of each document, all processes: what the arithmetic is counted from."""


class StepData(torch.utils.data.Dataset[StepBatches]):
    """The steps of a plan as this process computes them."""

    def __init__(
        self,
        items: Sequence[Item],
        plan: StepPlan,
        choice: LossChoice,
        *,
        process: int = 0,
        is_packed: bool = True,
        pad_id: int = 0,
    ) -> None:
        self.plan, self.choice = plan, choice
        self._items, self._process = items, process
        self._is_packed, self._pad_id = is_packed, pad_id

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> StepBatches:
        step = self.plan.step(number)
        items = [self._items[member] for member in step.members]
        return StepBatches(
            tuple(self._batch(step, members) for members in step.micro_batches[self._process]),
            n_items=len(items),
            n_learnt=sum(map(self.choice.n_learnt, items)),
            n_tokens=sum(item.n_tokens for item in items),
            documents=tuple(len(document) for item in items for document in item.documents),
        )

    def _batch(self, step: Step, members: Sequence[int]) -> Batch:
        if members:
            return make_batch(
                [self._items[member] for member in members],
                self.choice,
                is_packed=self._is_packed,
                pad_id=self._pad_id,
            )
        shortest = min(
            (self._items[member] for member in step.members), key=lambda item: item.n_tokens
        )
        return make_filler(shortest, self.choice, is_packed=self._is_packed, pad_id=self._pad_id)
