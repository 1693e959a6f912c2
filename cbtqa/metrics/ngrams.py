"""How many n-grams each text has, and how many a prediction shares with its reference.

Exact and free of Python objects per token. A gram gets a dense number by sorting packed keys;
a gram of order k can only be shared when both grams of order k - 1 inside it are, so high orders
cost little.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbtqa.metrics.sequences import Ints, Sequences, renumbered

PAIRS_PER_BLOCK = 512
"""Keeps a packed key (pair, symbol, position) inside 63 bits and the sort inside the cache."""


def ngram_counts(predictions: Sequences, references: Sequences, max_order: int) -> Ints:
    """Per pair and order: grams of the prediction, of the reference, and shared (clipped).

    Returns:
        Shape (pairs, 3 * max_order): `[prediction, reference, shared]` for order 1, 2, ...
    """
    ours, theirs, n_symbols = renumbered(predictions, references)
    counts = np.zeros((len(predictions), 3 * max_order), np.int64)
    for order in range(max_order):
        counts[:, 3 * order] = np.maximum(predictions.lengths - order, 0)
        counts[:, 3 * order + 1] = np.maximum(references.lengths - order, 0)
    for first in range(0, len(predictions), PAIRS_PER_BLOCK):
        last = min(first + PAIRS_PER_BLOCK, len(predictions))
        block = slice(first, last + 1)
        a, b = predictions.offsets[block], references.offsets[block]
        counts[first:last, 2::3] = _shared(
            np.concatenate([ours[a[0] : a[-1]], theirs[b[0] : b[-1]]]),
            np.concatenate([np.diff(a), np.diff(b)]),
            n_symbols,
            max_order,
        )
    return counts


def _shared(symbols: Ints, lengths: Ints, n_symbols: int, max_order: int) -> Ints:
    """Shared grams per pair and order; predictions come first, then their references."""
    n_pairs = len(lengths) // 2
    pair_of_text = np.concatenate([np.arange(n_pairs), np.arange(n_pairs)])
    pair = np.repeat(pair_of_text, lengths)
    end_of = np.repeat(np.cumsum(lengths), lengths)
    is_reference = np.arange(len(symbols)) >= lengths[:n_pairs].sum()
    symbol_bits = max(1, (n_symbols - 1).bit_length())
    starts = np.arange(len(symbols))
    keys, key_bits = (pair << symbol_bits) | symbols, n_pairs.bit_length() + symbol_bits
    number = np.empty(len(symbols), np.int64)
    shared = np.zeros((n_pairs, max_order), np.int64)
    for order in range(1, max_order + 1):
        if not len(starts):
            break
        gram, n_grams = dense_numbers(keys, key_bits)
        from_reference = is_reference[starts]
        both = np.minimum(
            np.bincount(gram[~from_reference], minlength=n_grams),
            np.bincount(gram[from_reference], minlength=n_grams),
        )
        owner = np.zeros(n_grams, np.int64)
        owner[gram] = pair[starts]
        shared[:, order - 1] = np.bincount(owner, weights=both, minlength=n_pairs)
        is_live = both[gram] > 0
        number.fill(-1)
        number[starts[is_live]] = gram[is_live]
        starts = starts[is_live]
        starts = starts[starts + order < end_of[starts]]
        starts = starts[number[starts + 1] >= 0]
        # the pair need not be packed again: a gram's number belongs to one pair only
        keys = (number[starts] << symbol_bits) | symbols[starts + order]
        key_bits = n_grams.bit_length() + symbol_bits
    return shared


def dense_numbers(keys: Ints, key_bits: int) -> tuple[Ints, int]:
    """Numbers equal keys equally, from 0 in the order of the keys; also how many there are.

    Args:
        key_bits: every key is below two to this power.
    """
    position_bits = max(1, (len(keys) - 1).bit_length())
    if key_bits + position_bits <= 63:
        # one sort of plain integers is several times faster than an argsort
        packed = np.sort((keys << position_bits) | np.arange(len(keys)))
        position = packed & ((1 << position_bits) - 1)
        ordered = packed >> position_bits
    else:
        position = np.argsort(keys, kind="stable")
        ordered = keys[position]
    is_new: NDArray[np.bool_] = np.empty(len(keys), np.bool_)
    is_new[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
    rank = np.cumsum(is_new) - 1
    numbers = np.empty(len(keys), np.int64)
    numbers[position] = rank
    return numbers, int(rank[-1]) + 1 if len(keys) else 0
