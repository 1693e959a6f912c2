"""N-grams of many texts at once, hashed with numpy: the features of the light models.

Three blocks are of characters (n = 1, 2, 3). Two are of a reading (n = 1, 2) in which every word
of a class (看不起, 嘲笑...) is replaced by its class, so that one word's weight holds for all.
Letters and digits are folded one for one, so that positions stay those of the text. Punctuation
keeps its width, which is informative (see docs/log.md). A batch of texts is one array per block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ahocorasick
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Buckets = npt.NDArray[np.uint32]

START, END = "\x02", "\x03"
BUCKET_BITS = 20
N_BUCKETS = 1 << BUCKET_BITS
NO_BUCKET = N_BUCKETS
"""For an n-gram that would reach into the next text."""
BLOCK_WEIGHTS = (1.0, 1.0, 0.7, 0.5, 0.6)
"""Weight of each block: characters by ones, twos, threes, then classes by ones and twos; measured,
see docs/log.md."""
_LONGEST = 3
_FIRST_CLASS = 0x110000
"""Classes are code points beyond the last one."""
_CLASS_SEED = np.uint32(97)
_LENGTH_BITS = 6
_PRIME = np.uint32(16777619)
_MIX = np.uint32(2654435769)


class EncodedTexts(NamedTuple):
    """A batch of texts as one array of code points."""

    codes: Buckets
    """`(characters,)`, marks included."""
    starts: Ints
    """`(texts,)`: the place of each text's start mark."""
    text_of: Ints
    """`(characters,)`: which text each character belongs to."""


def encode_texts(texts: Sequence[str]) -> EncodedTexts:
    """Code points of all texts, each between its marks. Lone surrogates become question marks."""
    joined = START + (END + START).join(texts) + END
    codes = np.frombuffer(joined.encode("utf-32-le", "replace"), dtype=np.uint32).copy()
    lengths = np.fromiter((len(text) + 2 for text in texts), np.int64, len(texts))
    for first, last in ("０９", "ＡＺ", "ａｚ"):
        codes[(codes >= ord(first)) & (codes <= ord(last))] -= np.uint32(0xFEE0)
    codes[(codes >= 65) & (codes <= 90)] += np.uint32(32)
    codes[(codes == 0x3000) | ((codes >= 9) & (codes <= 13))] = 32
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    return EncodedTexts(codes, starts, np.repeat(np.arange(len(texts)), lengths))


class Block(NamedTuple):
    """The n-grams of one kind in a batch of texts; units are characters or words of a class."""

    buckets: Buckets
    """`(units,)`: the n-gram that begins at each unit; `NO_BUCKET` where it leaves its text."""
    text_of: Ints
    """`(units,)`: which text each unit belongs to."""
    starts: Ints
    """`(texts,)`: where each text's units begin."""
    places: Ints | None
    """`(units,)`: the character that each unit begins at; None where units are characters."""


class WordClasses:
    """Finds words of named classes, the longest first, from left to right.

    Args:
        words: words of each class; a word in several belongs to the first. Empty words are left
            out, and so are words of more than 63 characters.
    """

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self._automaton: Any = ahocorasick.Automaton()
        for number, members in enumerate(words.values()):
            for word in members:
                if 0 < len(word) < 1 << _LENGTH_BITS and word not in self._automaton:
                    self._automaton.add_word(word, number << _LENGTH_BITS | len(word))
        self._automaton.make_automaton()

    def read_blocks(self, encoded: EncodedTexts) -> list[Block]:
        """All blocks of the texts, in the order of `BLOCK_WEIGHTS`."""
        blocks = [
            Block(buckets, encoded.text_of, encoded.starts, None)
            for buckets in hash_ngrams(encoded, _LONGEST)
        ]
        classed, places = self._classed(encoded)
        return blocks + [
            Block(buckets, classed.text_of, classed.starts, places)
            for buckets in hash_ngrams(classed, 2, seed=_CLASS_SEED)
        ]

    def _classed(self, encoded: EncodedTexts) -> tuple[EncodedTexts, Ints]:
        """The texts with each word of a class as one unit, and where each unit begins."""
        joined = encoded.codes.tobytes().decode("utf-32-le")
        found = np.array([*self._automaton.iter_long(joined)], np.int64).reshape(-1, 2)
        ends, values = found[:, 0] + 1, found[:, 1]
        begins = ends - (values & ((1 << _LENGTH_BITS) - 1))
        codes = encoded.codes.copy()
        codes[begins] = _FIRST_CLASS + (values >> _LENGTH_BITS)
        depth = np.zeros(len(codes) + 1, np.int8)
        depth[begins + 1] += 1
        depth[ends] -= 1
        places = np.flatnonzero(np.cumsum(depth[:-1], dtype=np.int8) == 0)
        starts = np.searchsorted(places, encoded.starts)
        return EncodedTexts(codes[places], starts, encoded.text_of[places]), places


def hash_ngrams(encoded: EncodedTexts, longest: int, *, seed: np.uint32 | int = 0) -> list[Buckets]:
    """For n = 1 to `longest`, the bucket of the n-gram that begins at each character.

    Each array is `(characters,)`; `NO_BUCKET` where the n-gram would leave its text. N-grams of
    different seeds share no bucket but by accident.
    """
    codes, _, text_of = encoded
    found = []
    rolling = np.full(len(codes), seed, np.uint32)
    for n in range(1, longest + 1):
        n_whole = max(0, len(codes) - n + 1)
        shifted = np.zeros(len(codes), np.uint32)
        shifted[:n_whole] = codes[n - 1 :]
        rolling = rolling * _PRIME + shifted + np.uint32(n)
        mixed = rolling ^ (rolling >> np.uint32(15))
        buckets = (mixed * _MIX) >> np.uint32(32 - BUCKET_BITS)
        inside = np.zeros(len(codes), bool)
        inside[:n_whole] = text_of[:n_whole] == text_of[n - 1 :]
        buckets[~inside] = NO_BUCKET
        found.append(buckets)
    return found
