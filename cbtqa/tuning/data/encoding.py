"""Examples as tokens: what the model sees, and which of it is learnt.

    encoded = encode(examples, chat, settings)
    encoded.items[0].documents[0].ids, encoded.dropped

A row that is too long is left out and counted under `too_long`, or, with `shorten_prompts`, its
description loses characters at the beginning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtqa.errors import DataError
from cbtqa.records import Question
from cbtqa.text_faults import find_machine_text
from cbtqa.tuning.data.chat_format import ChatFormat
from cbtqa.tuning.data.examples import Example, ExampleSet, prompt_messages
from cbtqa.tuning.settings import FinetuneSettings

IGNORED = -100
"""The label of a token that is not learnt. Source: torch's cross entropy."""
ROWS_AT_ONCE = 512
SHORTEST_DESCRIPTION = 20
"""Characters of a description that shortening leaves at least. assumed"""


@dataclass(frozen=True, slots=True)
class Document:
    """One prompt with one answer."""

    ids: npt.NDArray[np.int32]
    """Shape (tokens,): prompt, answer, end of turn."""
    n_prompt: int
    """Tokens of the prompt."""

    def __len__(self) -> int:
        return len(self.ids)

    def labels(self, loss_on: str = "answer") -> npt.NDArray[np.int64]:
        """Shape (tokens,): the token itself where it is learnt, else `IGNORED`."""
        labels = self.ids.astype(np.int64)
        # the first is never learnt: in a packed row it follows another document
        labels[: max(1, self.n_prompt) if loss_on == "answer" else 1] = IGNORED
        return labels


@dataclass(frozen=True, slots=True)
class Item:
    """What a training step draws: one document, or in ORPO the chosen and the rejected one."""

    id: str
    documents: tuple[Document, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of all its documents."""
        return sum(map(len, self.documents))


@dataclass
class EncodedSet:
    """The items of one split, and what was left out."""

    name: str
    items: list[Item] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    """The example of each item, for samples."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason to number, those of reading included."""
    n_in: int = 0
    n_shortened: int = 0
    """Prompts that lost the beginning of their description."""

    @property
    def rows(self) -> Iterator[npt.NDArray[np.int32]]:
        """The tokens of every document."""
        return (one.ids for item in self.items for one in item.documents)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each item."""
        return [item.n_tokens for item in self.items]

    def statistics(self, loss_on: str = "answer") -> dict[str, Any]:
        """Counts and token statistics under stable keys."""
        documents = list(chain.from_iterable(item.documents for item in self.items))
        whole = np.array([len(document) for document in documents] or [0])
        prompts = np.array([document.n_prompt for document in documents] or [0])
        n_learnt = int((whole - prompts).sum() if loss_on == "answer" else (whole - 1).sum())
        return {
            "n_in": self.n_in,
            "n_items": len(self.items),
            "n_dropped": sum(self.dropped.values()),
            "dropped": dict(sorted(self.dropped.items())),
            "n_shortened": self.n_shortened,
            "n_tokens": int(whole.sum()),
            "n_learnt_tokens": max(0, n_learnt),
            "tokens": _spread(whole),
            "prompt_tokens": _spread(prompts),
            "answer_tokens": _spread(whole - prompts),
        }


def _spread(counts: npt.NDArray[np.int64]) -> dict[str, float]:
    shares = {f"p{share}": float(np.percentile(counts, share)) for share in (5, 50, 95)}
    return {"mean": round(float(counts.mean()), 1), **shares, "max": int(counts.max())}


def encode(
    found: ExampleSet, chat: ChatFormat, settings: FinetuneSettings, context: int | None = None
) -> EncodedSet:
    """Tokenises examples, counts those that do not fit; raises DataError when nothing is left.

    Args:
        context: tokens that the backbone takes, for the hint; the limit is `settings.max_length`.
    """
    encoded = EncodedSet(found.name, dropped=Counter(found.dropped), n_in=found.n_in)
    for start in range(0, len(found.examples), ROWS_AT_ONCE):
        clean = []
        for example in found.examples[start : start + ROWS_AT_ONCE]:
            prompt = (turn["content"] for turn in example.prompt)
            texts = (example.answer, example.rejected or "", *prompt)
            machine = find_machine_text(example.answer)
            # rows of a file may mean to teach reasoning, a built dataset's never do
            is_taught = example.question is None and chat.takes_reasoning
            if machine and not (machine.kind == "reasoning" and is_taught):
                encoded.dropped[machine.kind] += 1
            elif any(map(chat.holds_special_token, texts)):
                encoded.dropped["special_token_in_text"] += 1
            else:
                clean.append(example)
        for example, item in zip(clean, _items(clean, chat), strict=True):
            _add(encoded, example, item, chat, settings)
    return checked(encoded, settings, context)


def _items(examples: Sequence[Example], chat: ChatFormat) -> list[Item]:
    prompts = chat.prompt_ids([example.prompt for example in examples])
    answers = [chat.answer_ids([example.answer for example in examples])]
    if examples and examples[0].rejected is not None:
        answers.append(chat.answer_ids([example.rejected or "" for example in examples]))
    return [
        Item(example.id, tuple(_document(prompt, answer) for answer in of_example))
        for example, prompt, *of_example in zip(examples, prompts, *answers, strict=True)
    ]


def _document(prompt: Iterable[int], answer: Iterable[int]) -> Document:
    start = np.fromiter(prompt, np.int32)
    return Document(np.concatenate([start, np.fromiter(answer, np.int32)]), len(start))


def _add(
    encoded: EncodedSet, example: Example, item: Item, chat: ChatFormat, settings: FinetuneSettings
) -> None:
    n_over = max(map(len, item.documents)) - settings.max_length
    if n_over > 0 and settings.shorten_prompts and example.question:
        shorter = _shortened(example.question, n_over, chat, settings)
        if shorter is not None:
            parts = (_document(shorter, one.ids[one.n_prompt :]) for one in item.documents)
            item = Item(item.id, tuple(parts))
            encoded.n_shortened += 1
    add_if_short(encoded, example, item, settings)


def add_if_short(
    encoded: EncodedSet, example: Example, item: Item, settings: FinetuneSettings
) -> None:
    """Adds an item, or counts it as too long."""
    if max(map(len, item.documents)) > settings.max_length:
        encoded.dropped["too_long"] += 1
    else:
        encoded.items.append(item)
        encoded.examples.append(example)


def _shortened(
    question: Question, n_over: int, chat: ChatFormat, settings: FinetuneSettings
) -> list[int] | None:
    """Prompt tokens at least `n_over` fewer; None when the description cannot give that many."""

    def ids_without(n_characters: int) -> list[int]:
        rest = "…" * (n_characters > 0) + question.description[n_characters:]
        cut = question.model_copy(update={"description": rest})
        messages = prompt_messages(cut, settings.mode, settings.system_prompt)
        return chat.prompt_ids([messages])[0]

    whole = len(ids_without(0))
    low, high = 1, len(question.description) - SHORTEST_DESCRIPTION
    if high < low:
        return None
    while low < high:  # the fewest characters to cut, by halving
        middle = (low + high) // 2
        is_enough = whole - len(ids_without(middle)) >= n_over
        low, high = (low, middle) if is_enough else (middle + 1, high)
    ids = ids_without(low)
    return ids if whole - len(ids) >= n_over else None


def checked(
    encoded: EncodedSet, settings: FinetuneSettings, context: int | None = None
) -> EncodedSet:
    """The set itself; raises DataError when nothing is left in it."""
    if encoded.items:
        return encoded
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(encoded.dropped.items()))
    hint = None
    if "too_long" in encoded.dropped:
        limit = settings.max_length
        is_context = context is not None and context <= limit
        hint = (
            f"the backbone takes {context:,} tokens: name one that takes more"
            if is_context
            else f"raise --max-length (now {limit:,})"
        ) + ", or add --shorten-prompts" * (not settings.shorten_prompts)
    elif "reasoning" in encoded.dropped and settings.thinking == "off":
        hint = "these answers hold reasoning: --thinking on learns it"
    elif "no_steps" in encoded.dropped:
        hint = "these answers have no steps: use --mode answer"
    elif "risk" in encoded.dropped:
        hint = "these questions show a risk: to learn from them all the same, add --with-risk"
    words = f"no example is left of {encoded.n_in:,} rows: {reasons or 'no rows'}"
    raise DataError(words, where=encoded.name, hint=hint)
