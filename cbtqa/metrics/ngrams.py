"""How many n-grams each text has, and how many a prediction shares with its reference.

Exact and free of Python objects per token. Equal grams find each other through a scattered
table, which costs a fifth of a sort; a gram of order k can only be shared when both grams of
order k - 1 inside it are, so high orders cost little.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cbtqa.metrics.sequences import Ints, Sequences

TOKENS_PER_BLOCK = 1 << 15
"""Keeps the arrays of a block inside the second cache."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Spreads consecutive keys over the table. Source: Knuth, TAOCP 3, section 6.4."""
ROUNDS = 20
"""After these, sorting takes care of keys that still meet others; random ones need about four."""


def ngram_counts(predictions: Sequences, references: Sequences, max_order: int) -> Ints:
    """Per pair and order: grams of the prediction, of the reference, and shared (clipped).

    Returns:
        Shape (pairs, 3 * max_order): `[prediction, reference, shared]` for order 1, 2, ...
    """
    counts = np.zeros((len(predictions), 3 * max_order), np.int64)
    for order in range(max_order):
        counts[:, 3 * order] = np.maximum(predictions.lengths - order, 0)
        counts[:, 3 * order + 1] = np.maximum(references.lengths - order, 0)
    for first, last in blocks_of_pairs(predictions, references):
        a, b = predictions.offsets[first : last + 1], references.offsets[first : last + 1]
        counts[first:last, 2::3] = _shared(
            np.concatenate([predictions.symbols[a[0] : a[-1]], references.symbols[b[0] : b[-1]]]),
            np.concatenate([np.diff(a), np.diff(b)]),
            max_order,
        )
    return counts


def blocks_of_pairs(predictions: Sequences, references: Sequences) -> Iterator[tuple[int, int]]:
    """First and last pair (exclusive) of stretches with about `TOKENS_PER_BLOCK` tokens."""
    ends = predictions.offsets + references.offsets
    first = 0
    while first < len(predictions):
        last = int(np.searchsorted(ends, ends[first] + TOKENS_PER_BLOCK, side="right")) - 1
        last = min(max(last, first + 1), len(predictions))
        yield first, last
        first = last


def _shared(symbols: Ints, lengths: Ints, max_order: int) -> Ints:
    """Shared grams per pair and order; predictions come first, then their references."""
    n_pairs = len(lengths) // 2
    shared = np.zeros((n_pairs, max_order), np.int64)
    pair = np.repeat(np.concatenate([np.arange(n_pairs)] * 2), lengths)
    end_of = np.repeat(np.cumsum(lengths), lengths)
    first_reference = int(lengths[:n_pairs].sum())
    bits = int(symbols.max(initial=1)).bit_length()
    starts = np.arange(len(symbols))
    keys = (pair << bits) | symbols
    number = np.empty(len(symbols), np.int64)
    for order in range(1, max_order + 1):
        if not len(starts):
            break
        gram = numbers_of(keys)
        split = int(np.searchsorted(starts, first_reference))
        both = np.minimum(
            np.bincount(gram[:split], minlength=len(gram)),
            np.bincount(gram[split:], minlength=len(gram)),
        )
        # a gram's number is one of its own places, so its count stands beside its pair
        shared[:, order - 1] = np.bincount(pair[starts], weights=both, minlength=n_pairs)
        is_live = both[gram] > 0
        number.fill(-1)
        starts, gram = starts[is_live], gram[is_live]
        number[starts] = gram
        goes_on = starts + order < end_of[starts]
        goes_on[goes_on] = number[starts[goes_on] + 1] >= 0
        starts = starts[goes_on]
        # the pair need not be packed again: a gram's number belongs to one pair only
        keys = (gram[goes_on] << bits) | symbols[starts + order]
    return shared


def numbers_of(keys: Ints) -> Ints:
    """A number for each key, equal for equal keys: the place of one of them.

    Every key writes its place into a table where its hash says; whoever finds an equal key there
    takes that place as number, the others go round again.
    """
    numbers = np.empty(len(keys), np.int64)
    left, mine = np.arange(len(keys)), keys
    for turn in range(ROUNDS):
        mixed = mine ^ (mine >> (7 + turn)) if turn else mine  # other neighbours next time
        bits = len(left).bit_length() + 2  # a quarter full at most
        slot = ((mixed.view(np.uint64) * GOLDEN) >> np.uint64(64 - bits)).view(np.int64)
        table = np.empty(1 << bits, np.int64)
        table[slot] = left
        found = table[slot]
        is_met = keys[found] == mine
        numbers[left[is_met]] = found[is_met]
        left = left[~is_met]
        if not len(left):
            return numbers
        mine = keys[left]
    _, first, inverse = np.unique(mine, return_index=True, return_inverse=True)
    numbers[left] = left[first[inverse]]
    return numbers
