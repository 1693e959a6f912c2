"""Which items go through the model together: optimiser steps, and micro-batches within a step.

A step is `batch_size` items of a shuffled epoch. Its division into micro-batches and among
processes follows from the token budget and changes speed and memory only: the same seed gives the
same steps on one process or eight, with any budget.

    plan = StepPlan(lengths, batch_size=16, epochs=3, seed=0, budget=8192)
    plan.step(0).micro_batches[0]        # of process 0: lists of item numbers
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cbtqa.tuning.attention import pack_inputs
from cbtqa.tuning.data.encoding import Document, Item
from cbtqa.tuning.settings import FinetuneSettings

Members = list[int]


@dataclass(frozen=True)
class Step:
    """One optimiser step."""

    members: tuple[int, ...]
    """Item numbers, over all processes."""
    micro_batches: tuple[tuple[tuple[int, ...], ...], ...]
    """Item numbers per process, then per micro-batch, of which every process has as many."""


class StepPlan:
    """The steps of a whole run, in order; each is found without making those before it.

    Args:
        lengths: tokens of each item.
        batch_size: items per step, all processes together.
        epochs: passes over the items; may end inside one. `max_steps` replaces it.
        budget: tokens of one micro-batch; a longer item goes alone.
        is_packed: False for padded micro-batches, whose cost is items times the longest.
        is_shuffled: False keeps the order, as an evaluation does.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        epochs: float = 1.0,
        max_steps: int | None = None,
        seed: int = 0,
        budget: int = 8192,
        n_processes: int = 1,
        is_packed: bool = True,
        is_shuffled: bool = True,
    ) -> None:
        self._lengths = list(lengths)
        self._batch_size, self._seed, self._budget = batch_size, seed, budget
        self._n_processes, self._is_packed, self._is_shuffled = n_processes, is_packed, is_shuffled
        self.steps_per_epoch = math.ceil(len(self._lengths) / batch_size)
        self.n_steps = max_steps or math.ceil(round(epochs * self.steps_per_epoch, 6))
        self._order = lru_cache(maxsize=2)(self._make_order)

    def __len__(self) -> int:
        return self.n_steps

    def step(self, number: int) -> Step:
        """The step of this number, from 0."""
        epoch, place = divmod(number, self.steps_per_epoch)
        start = place * self._batch_size
        members = self._order(epoch)[start : start + self._batch_size]
        lengths = [self._lengths[member] for member in members]
        divided = divide(lengths, self._budget, self._n_processes, is_packed=self._is_packed)
        micro_batches = tuple(
            tuple(tuple(members[place] for place in group) for group in of_process)
            for of_process in divided
        )
        return Step(members, micro_batches)

    def _make_order(self, epoch: int) -> tuple[int, ...]:
        n = len(self._lengths)
        if not self._is_shuffled:
            return tuple(range(n))
        return tuple(np.random.default_rng([self._seed, epoch]).permutation(n).tolist())


def divide(
    lengths: Sequence[int], budget: int, n_processes: int = 1, *, is_packed: bool = True
) -> list[list[Members]]:
    """Places in `lengths` per process, then per micro-batch, as many for every process.

    The k-th micro-batches of all processes are of similar size, so that none waits for another. One
    is empty only when there are fewer items than micro-batches.
    """
    groups = (best_fit if is_packed else group_by_length)(lengths, budget)
    while len(groups) % n_processes:
        largest = max(groups, key=lambda group: (len(group) > 1, _sum(lengths, group)))
        if len(largest) > 1:
            groups.remove(largest)
            groups += _halves(lengths, largest)
        else:
            groups.append([])
    groups.sort(key=lambda group: _sum(lengths, group), reverse=True)
    return [groups[rank::n_processes] for rank in range(n_processes)]


def best_fit(lengths: Sequence[int], budget: int) -> list[Members]:
    """Places packed into groups of at most `budget` tokens, longest first, each into the group
    with the least room that still takes it. A place longer than the budget is a group alone."""
    groups: list[Members] = []
    room: list[tuple[int, int]] = []  # (tokens left, group), sorted
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        found = bisect.bisect_left(room, (lengths[place], -1))
        if found == len(room):
            groups.append([place])
            bisect.insort(room, (max(0, budget - lengths[place]), len(groups) - 1))
        else:
            left, group = room.pop(found)
            groups[group].append(place)
            bisect.insort(room, (left - lengths[place], group))
    return groups


def group_by_length(lengths: Sequence[int], budget: int) -> list[Members]:
    """Places grouped with those of similar length, items times the longest within the budget."""
    groups: list[Members] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _sum(lengths: Sequence[int], group: Members) -> int:
    return sum(lengths[place] for place in group)


def _halves(lengths: Sequence[int], group: Members) -> list[Members]:
    halves: list[Members] = [[], []]
    for place in sorted(group, key=lambda place: -lengths[place]):
        min(halves, key=lambda half: _sum(lengths, half)).append(place)
    return halves


def first_learnt(settings: FinetuneSettings, document: Document, place: int) -> int:
    """Number of the first learnt token of the `place`-th document of an item.

    A rejected answer's prompt is never learnt; the first token of a document never is.
    """
    tokens = settings.orpo_nll if settings.objective == "orpo" else settings.loss_on
    return 1 if tokens == "text" and place == 0 else max(1, document.n_prompt)


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
    items: Sequence[Item], settings: FinetuneSettings, *, is_packed: bool = True, pad_id: int = 0
) -> Batch:
    """A micro-batch of items: packed rows or padded ones, with the places of the learnt tokens.

    The state at each of `learn_at`, places in the flattened rows, predicts its target. Padding is
    on the right and needs no mask: a causal model never looks there.
    """
    documents = list(chain.from_iterable(item.documents for item in items))
    n_each = len(items[0].documents)
    lengths = [len(document) for document in documents]
    if is_packed:
        inputs = pack_inputs([document.ids.tolist() for document in documents])
        offsets = [0, *np.cumsum(lengths)[:-1].tolist()]
    else:
        ids = np.full((len(documents), max(lengths)), pad_id, np.int64)
        for row, document in zip(ids, documents, strict=True):
            row[: len(document)] = document.ids
        inputs = {"input_ids": torch.from_numpy(ids), "use_cache": False}
        offsets = [row * max(lengths) for row in range(len(documents))]
    places, targets, owners, answers = [], [], [], []
    for number, (document, offset) in enumerate(zip(documents, offsets, strict=True)):
        learnt = np.arange(first_learnt(settings, document, number % n_each), len(document))
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


def make_filler(item: Item, settings: FinetuneSettings, **words: Any) -> Batch:
    """A micro-batch that is computed but learns nothing; takes the words of `make_batch`."""
    batch = make_batch([item], settings, **words)
    for name in ("learn_at", "targets"):
        batch.inputs[name] = batch.inputs[name][:0]
    return Batch(batch.inputs, 0, batch.n_tokens, batch.document[:0], batch.in_answer[:0])


@dataclass(frozen=True)
class StepBatches:
    """What one process computes in one step, and what the step holds over all processes."""

    batches: tuple[Batch, ...]
    n_items: int
    """Items of the step, all processes."""
    n_learnt: int
    """Tokens of the likelihood term (of the answers, in ORPO of the chosen ones), all processes."""
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
        settings: FinetuneSettings,
        *,
        process: int = 0,
        is_packed: bool = True,
        pad_id: int = 0,
    ) -> None:
        self.plan, self.settings = plan, settings
        self._items, self._process = items, process
        self._words: dict[str, Any] = {"is_packed": is_packed, "pad_id": pad_id}

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> StepBatches:
        step = self.plan.step(number)
        items = [self._items[member] for member in step.members]
        firsts = [item.documents[0] for item in items]
        return StepBatches(
            tuple(self._batch(step, members) for members in step.micro_batches[self._process]),
            n_items=len(items),
            n_learnt=sum(len(first) - first_learnt(self.settings, first, 0) for first in firsts),
            n_tokens=sum(item.n_tokens for item in items),
            documents=tuple(len(document) for item in items for document in item.documents),
        )

    def _batch(self, step: Step, members: Sequence[int]) -> Batch:
        if members:
            items = [self._items[member] for member in members]
            return make_batch(items, self.settings, **self._words)
        all_items = (self._items[member] for member in step.members)
        shortest = min(all_items, key=lambda item: item.n_tokens)
        return make_filler(shortest, self.settings, **self._words)
