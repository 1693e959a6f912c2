"""Which words of a prediction METEOR pairs with which words of the reference, and in how many runs.

nltk walks the prediction from its end and gives each word the last free occurrence in the
reference. So the k-th last occurrence of a word meets the k-th last occurrence: a join, done
here for all pairs at once by sorting.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbtqa.metrics.ngrams import dense_numbers
from cbtqa.metrics.sequences import Ints, Sequences

PAIRS_PER_BLOCK = 512


def aligned_counts(
    predictions: Sequences,
    references: Sequences,
    prediction_stems: Ints,
    reference_stems: Ints,
) -> tuple[Ints, Ints]:
    """Aligned words and their chunks per pair: exact words first, then equal stems.

    Args:
        prediction_stems: a stem's number for every symbol of `predictions`, in one numbering
            with its symbols.
    """
    matches = np.zeros(len(predictions), np.int64)
    chunks = np.zeros(len(predictions), np.int64)
    for first in range(0, len(predictions), PAIRS_PER_BLOCK):
        last = min(first + PAIRS_PER_BLOCK, len(predictions))
        a, b = predictions.offsets[first : last + 1], references.offsets[first : last + 1]
        ours, theirs = slice(a[0], a[-1]), slice(b[0], b[-1])
        partner = np.full(int(a[-1] - a[0]), -1, np.int64)
        pair_a = np.repeat(np.arange(last - first), np.diff(a))
        pair_b = np.repeat(np.arange(last - first), np.diff(b))
        for symbols_a, symbols_b in (
            (predictions.symbols[ours], references.symbols[theirs]),
            (prediction_stems[ours], reference_stems[theirs]),
        ):
            _join(partner, pair_a, pair_b, symbols_a, symbols_b)
        is_aligned = partner >= 0
        matches[first:last] = np.bincount(pair_a[is_aligned], minlength=last - first)
        chunks[first:last] = _chunks(partner, pair_a, last - first)
    return matches, chunks


def _join(partner: Ints, pair_a: Ints, pair_b: Ints, symbols_a: Ints, symbols_b: Ints) -> None:
    """Fills `partner` for the words of the prediction that are still free."""
    free_a = np.flatnonzero(partner < 0)
    is_free_b = np.ones(len(symbols_b), np.bool_)
    is_free_b[partner[partner >= 0]] = False
    free_b = np.flatnonzero(is_free_b)
    symbols = np.concatenate([symbols_a[free_a], symbols_b[free_b]])
    if not len(free_a) or not len(free_b):
        return
    bits = max(1, int(symbols.max()).bit_length())
    pairs = np.concatenate([pair_a[free_a], pair_b[free_b]])
    group, n_groups = dense_numbers((pairs << bits) | symbols, bits + int(pairs.max()).bit_length())
    group_a, group_b = group[: len(free_a)], group[len(free_a) :]
    order_a, rank_a = _ranks_from_end(group_a, n_groups)
    order_b, rank_b = _ranks_from_end(group_b, n_groups)
    longest = 1 + max(int(rank_a.max()), int(rank_b.max()))
    # both key lists ascend: within a group, ranks count up from the end of the text
    key_a, key_b = group_a[order_a] * longest + rank_a, group_b[order_b] * longest + rank_b
    place = np.searchsorted(key_b, key_a)
    place[place == len(key_b)] = 0
    is_met = key_b[place] == key_a
    partner[free_a[order_a[is_met]]] = free_b[order_b[place[is_met]]]


def _ranks_from_end(group: Ints, n_groups: int) -> tuple[Ints, Ints]:
    """An order by group and, within it, from the last position; and each one's rank there."""
    bits = max(1, (len(group) - 1).bit_length())
    mirrored = len(group) - 1 - np.arange(len(group))
    if n_groups.bit_length() + bits <= 63:
        packed = np.sort((group << bits) | mirrored)
        order = len(group) - 1 - (packed & ((1 << bits) - 1))
    else:
        order = np.lexsort((mirrored, group))
    sizes = np.bincount(group, minlength=n_groups)
    before = np.cumsum(sizes) - sizes
    return order, np.arange(len(group)) - before[group[order]]


def _chunks(partner: Ints, pair: Ints, n_pairs: int) -> Ints:
    """Runs of aligned words that are adjacent and in the same order on both sides."""
    position = np.flatnonzero(partner >= 0)
    starts: NDArray[np.bool_] = np.ones(len(position), np.bool_)
    starts[1:] = (
        (np.diff(position) != 1)
        | (np.diff(partner[position]) != 1)
        | (np.diff(pair[position]) != 0)
    )
    return np.bincount(pair[position[starts]], minlength=n_pairs)
