"""Examples as tokens: what the model sees, and which of it is learnt.

    encoded = encode(examples, chat, settings)
    encoded.items[0].documents[0].ids, encoded.dropped

Nothing is cut without being counted: a row that is too long is left out under `too_long`, or, with
`shorten_prompts`, its description loses characters at the beginning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtqa.errors import DataError
from cbtqa.records import Question
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
        """Shape (tokens,): the token itself where it is learnt, else `IGNORED`.

        The first token is never learnt: in a packed row it follows another document.
        """
        labels = self.ids.astype(np.int64)
        labels[: self.n_prompt if loss_on == "answer" else 1] = IGNORED
        labels[:1] = IGNORED
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
    low, middle, high = np.percentile(counts, (5, 50, 95))
    return {
        "mean": round(float(counts.mean()), 1),
        "p5": float(low),
        "p50": float(middle),
        "p95": float(high),
        "max": int(counts.max()),
    }


def encode(found: ExampleSet, chat: ChatFormat, settings: FinetuneSettings) -> EncodedSet:
    """Tokenises examples; those that do not fit are counted.

    Raises:
        DataError: nothing is left.
    """
    encoded = EncodedSet(found.name, dropped=Counter(found.dropped), n_in=found.n_in)
    for start in range(0, len(found.examples), ROWS_AT_ONCE):
        chunk = found.examples[start : start + ROWS_AT_ONCE]
        clean = [example for example in chunk if not _spells_a_token(example, chat)]
        encoded.dropped["special_token_in_text"] += len(chunk) - len(clean)
        for example, item in zip(clean, _items(clean, chat), strict=True):
            _add(encoded, example, item, chat, settings)
    encoded.dropped = +encoded.dropped
    if not encoded.items:
        raise nothing_left(encoded, settings)
    return encoded


def _spells_a_token(example: Example, chat: ChatFormat) -> bool:
    texts = (example.answer, example.rejected or "", *(turn["content"] for turn in example.prompt))
    return any(map(chat.holds_special_token, texts))


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
    encoded: EncodedSet,
    example: Example,
    item: Item,
    chat: ChatFormat,
    settings: FinetuneSettings,
) -> None:
    longest = max(map(len, item.documents))
    if longest > settings.max_length and settings.shorten_prompts and example.question:
        shorter = _shortened(example.question, longest - settings.max_length, chat, settings)
        if shorter is not None:
            item = Item(
                item.id,
                tuple(
                    _document(shorter, document.ids[document.n_prompt :])
                    for document in item.documents
                ),
            )
            encoded.n_shortened += 1
            longest = max(map(len, item.documents))
    if longest > settings.max_length:
        encoded.dropped["too_long"] += 1
        return
    encoded.items.append(item)
    encoded.examples.append(example)


def _shortened(
    question: Question, n_over: int, chat: ChatFormat, settings: FinetuneSettings
) -> list[int] | None:
    """Prompt tokens at least `n_over` fewer; None when the description cannot give that many."""
    whole = len(_question_ids(question, chat, settings))
    low, high = 1, len(question.description) - SHORTEST_DESCRIPTION
    if high < low:
        return None
    while low < high:  # the fewest characters to cut, by halving
        middle = (low + high) // 2
        ids = _question_ids(_cut(question, middle), chat, settings)
        low, high = (low, middle) if whole - len(ids) >= n_over else (middle + 1, high)
    ids = _question_ids(_cut(question, low), chat, settings)
    return ids if whole - len(ids) >= n_over else None


def _cut(question: Question, n_characters: int) -> Question:
    return question.model_copy(update={"description": "…" + question.description[n_characters:]})


def _question_ids(question: Question, chat: ChatFormat, settings: FinetuneSettings) -> list[int]:
    messages = prompt_messages(question, settings.mode, settings.system_prompt)
    return chat.prompt_ids([messages])[0]


def nothing_left(encoded: EncodedSet, settings: FinetuneSettings) -> DataError:
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(encoded.dropped.items()))
    hint = None
    if "too_long" in encoded.dropped:
        hint = f"raise --max-length (now {settings.max_length}) or add --shorten-prompts"
    elif "no_steps" in encoded.dropped:
        hint = "these answers have no steps: use --mode answer"
    return DataError(
        f"no example is left of {encoded.n_in:,} rows: {reasons or 'no rows'}",
        where=encoded.name,
        hint=hint,
    )
