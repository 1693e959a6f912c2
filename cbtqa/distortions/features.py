"""Character n-grams of many texts at once, hashed with numpy: what the light models look at.

Every text is read as code points between a start and an end mark; Latin letters are lower-cased
and full-width forms made half-width, one for one, so that positions stay those of the text. An
n-gram is a bucket of a fixed table; nothing is looked up in a dictionary, and a batch of texts is
one array per n-gram length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Buckets = npt.NDArray[np.uint32]

START, END = "\x02", "\x03"
BUCKET_BITS = 20
N_BUCKETS = 1 << BUCKET_BITS
NO_BUCKET = N_BUCKETS
"""Stands where an n-gram would reach into the next text."""
_PRIME = np.uint32(16777619)
_MIX = np.uint32(2654435769)


class EncodedTexts(NamedTuple):
    """A batch of texts as one array of code points."""

    codes: Buckets
    """`(characters,)`, marks included."""
    starts: Ints
    """`(texts,)`: where each text's start mark stands."""
    text_of: Ints
    """`(characters,)`: which text each character belongs to."""


def encode_texts(texts: Sequence[str]) -> EncodedTexts:
    """Code points of all texts, each between its marks. Lone surrogates become question marks."""
    joined = START + (END + START).join(texts) + END
    codes = np.frombuffer(joined.encode("utf-32-le", "replace"), dtype=np.uint32).copy()
    lengths = np.fromiter((len(text) + 2 for text in texts), np.int64, len(texts))
    full_width = (codes >= 0xFF01) & (codes <= 0xFF5E)
    codes[full_width] -= np.uint32(0xFEE0)
    codes[(codes >= 65) & (codes <= 90)] += np.uint32(32)
    codes[(codes == 0x3000) | ((codes >= 9) & (codes <= 13))] = 32
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    return EncodedTexts(codes, starts, np.repeat(np.arange(len(texts)), lengths))


def hash_ngrams(encoded: EncodedTexts, longest: int) -> list[Buckets]:
    """For n = 1 to `longest`, the bucket of the n-gram that begins at each character.

    Each array is `(characters,)`; `NO_BUCKET` where the n-gram would leave its text.
    """
    codes, _, text_of = encoded
    found = []
    rolling = np.zeros(len(codes), np.uint32)
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
