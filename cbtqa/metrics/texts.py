"""The texts of one side of a comparison, and each way of reading them, made once and shared.

BLEU, METEOR and ROUGE on jieba words all read the same `words`; the references are read once for
all systems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cbtqa.metrics.engines import Engine
from cbtqa.metrics.porter import stem
from cbtqa.metrics.sequences import IS_WHITESPACE, Ints, Sequences, Vocabulary, code_points
from cbtqa.metrics.zh_tokens import ZhTokens
from cbtqa.records import Risk


@dataclass(frozen=True, slots=True)
class Item:
    """What is known of one answer, predicted or reference."""

    text: str
    has_steps: bool | None = None
    """Whether the record itself holds all five steps; None when nothing
    in its file holds steps."""
    labels: frozenset[str] | None = None
    """Ids of the distortions; None when the source says nothing about distortions,
    or holds no label in any row."""
    is_labelled_by_question: bool = False
    """Whether the labels were read from the question alone, so that no answer can change them."""
    risk: Risk | None = None
    """Risk of the question; None when the source does not say."""
    question_id: str = ""
    """Of the question it answers; empty where only the text is known."""


class Reading:
    """The numberings that all sides of one run share, and the engine that counts."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.words = Vocabulary()
        self.zh = ZhTokens()
        self._n_read = 0
        self._lower = np.empty(0, np.int64)
        self._stem = np.empty(0, np.int64)
        self._is_space = np.empty(0, np.bool_)

    def _grow(self) -> None:
        """Reads lower case and stem of the words that came since the last call.

        Both are words of the same vocabulary; of nearly every Chinese word, itself.
        """
        while self._n_read < len(self.words):
            first, last = self._n_read, len(self.words)
            self._reserve(last)
            self._lower[first:last] = self._stem[first:last] = np.arange(first, last)
            for number, word in enumerate(self.words.tokens[first:last], first):
                lower = word.lower()
                if lower != word:
                    self._lower[number] = self._stem[number] = self.words[lower]
                if "a" <= lower[-1:] <= "z":
                    self._stem[number] = self.words[stem(lower)]
                elif word.isspace():
                    self._is_space[number] = True
            self._n_read = last

    def _reserve(self, size: int) -> None:
        """Room for so many words, doubled when it runs out."""
        if size > len(self._lower):
            room = 2 * size - len(self._lower)
            self._lower = np.append(self._lower, np.zeros(room, np.int64))
            self._stem = np.append(self._stem, np.zeros(room, np.int64))
            self._is_space = np.append(self._is_space, np.zeros(room, np.bool_))

    def without_spaces(self, words: Sequences) -> Sequences:
        """Words that are not whitespace."""
        self._grow()
        return words.kept(~self._is_space[words.symbols])

    def folded(self, words: Sequences) -> tuple[Sequences, Ints]:
        """The words in lower case, and the number of each one's stem in the same numbering."""
        self._grow()
        lower = Sequences(self._lower[words.symbols], words.offsets)
        return lower, self._stem[words.symbols]


class Texts:
    """One side of a block of pairs."""

    def __init__(self, items: Sequence[Item], reading: Reading) -> None:
        self.items = items
        self.reading = reading
        self.texts = [item.text for item in items]

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def words(self) -> Sequences:
        """jieba's words without whitespace."""
        return self.reading.without_spaces(
            self.reading.engine.words(self.texts, self.reading.words)
        )

    @cached_property
    def points(self) -> Sequences:
        """Code points of every character."""
        return code_points(self.texts)

    @cached_property
    def characters(self) -> Sequences:
        """Code points without whitespace."""
        return self.points.kept(~IS_WHITESPACE[self.points.symbols])

    @cached_property
    def zh(self) -> Sequences:
        """sacrebleu's `zh` tokens."""
        return self.reading.zh.sequences(self.texts, self.points)

    @cached_property
    def folded_words(self) -> tuple[Sequences, Ints]:
        """Words in lower case and their stems, for METEOR."""
        return self.reading.folded(self.words)

    @cached_property
    def folded_characters(self) -> tuple[Sequences, Ints]:
        """Characters in lower case and their stems (themselves), for METEOR."""
        codes, inverse = np.unique(self.characters.symbols, return_inverse=True)
        number = self.reading.words.__getitem__
        ids = np.array([number(chr(code)) for code in codes.tolist()], np.int64)
        return self.reading.folded(Sequences(ids[inverse], self.characters.offsets))
