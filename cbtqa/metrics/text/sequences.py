"""Texts as arrays of small integers: what every n-gram, alignment and subsequence count reads.

    words = Sequences.of([["我", "很", "好"], ["好"]], Vocabulary())
    words.symbols.tolist() == [0, 1, 2, 2] and words.offsets.tolist() == [0, 3, 4]

A dictionary hands out the numbers, never a hash, so that equal symbols are equal tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
LAST_CODE_POINT = 0x10FFFF


class Vocabulary(dict[str, int]):
    """Tokens numbered in the order in which they first came."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[str] = []
        """By number."""

    def __missing__(self, token: str) -> int:
        number = self[token] = len(self)
        self.tokens.append(token)
        return number


@dataclass(frozen=True)
class Sequences:
    """Token sequences of many texts, laid end to end."""

    symbols: Ints
    """Shape (tokens of all texts,); small non-negative numbers."""
    offsets: Ints
    """Shape (texts + 1,); text i is `symbols[offsets[i]:offsets[i + 1]]`."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """Tokens per text."""
        return np.diff(self.offsets)

    def rows(self) -> list[list[int]]:
        """The symbols of each text as a list."""
        flat, ends = self.symbols.tolist(), self.offsets.tolist()
        return [flat[start:end] for start, end in pairwise(ends)]

    def kept(self, keep: NDArray[np.bool_]) -> Sequences:
        """Without the tokens where `keep`, shape (tokens,), is False."""
        before = np.zeros(len(keep) + 1, np.int64)
        np.cumsum(keep, out=before[1:])
        return Sequences(self.symbols[keep], before[self.offsets])

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]], vocabulary: Vocabulary) -> Sequences:
        """From ready tokens."""
        number = vocabulary.__getitem__
        flat: list[int] = []
        ends = [0]
        for tokens in texts:
            flat.extend(map(number, tokens))
            ends.append(len(flat))
        return cls(np.array(flat, np.int64), np.array(ends, np.int64))


def code_points(texts: Sequence[str]) -> Sequences:
    """Each character as its Unicode code point; a lone surrogate counts as a character."""
    joined = "".join(texts).encode("utf-32-le", "surrogatepass")
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return Sequences(np.frombuffer(joined, np.uint32).astype(np.int64), offsets)


def _whitespace() -> NDArray[np.bool_]:
    table = np.zeros(LAST_CODE_POINT + 1, np.bool_)
    # Unicode has no whitespace outside the basic plane
    table[[code for code in range(0x10000) if chr(code).isspace()]] = True
    return table


IS_WHITESPACE = _whitespace()
"""By code point, as `str.isspace` and `str.split` see it."""
