"""How many n-grams each text has, and how many a prediction shares with its reference.

Equal grams find each other through a scattered table, which costs a fifth of a sort; a gram of
order k can only be shared when both grams of order k - 1 inside it are, so high orders cost little.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cbtqa.metrics.text.texts import Ints, Sequences

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


# nltk walks the prediction from its end and gives each word the last free occurrence in the
# reference. So the k-th last occurrence of a word meets the k-th last occurrence: done here for
# all pairs at once, last occurrences first, then the last of those that are left, and so on.


def aligned_counts(
    predictions: Sequences, references: Sequences, prediction_stems: Ints, reference_stems: Ints
) -> tuple[Ints, Ints]:
    """Aligned words and chunks per pair: exact words first, then stems, in the words' numbering."""
    matches = np.zeros(len(predictions), np.int64)
    chunks = np.zeros(len(predictions), np.int64)
    for first, last in blocks_of_pairs(predictions, references):
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
    place_a = np.flatnonzero(partner < 0)
    is_free_b = np.ones(len(symbols_b), np.bool_)
    is_free_b[partner[partner >= 0]] = False
    place_b = np.flatnonzero(is_free_b)
    symbols = np.concatenate([symbols_a[place_a], symbols_b[place_b]])
    pairs = np.concatenate([pair_a[place_a], pair_b[place_b]])
    word = numbers_of((pairs << int(symbols.max(initial=1)).bit_length()) | symbols)
    word_a, word_b = word[: len(place_a)], word[len(place_a) :]
    last_a, last_b = np.full(len(word), -1, np.int64), np.full(len(word), -1, np.int64)
    while len(word_a) and len(word_b):
        # of several places written for one word, the last one stays
        last_a[word_a], last_b[word_b] = place_a, place_b
        is_last_a, is_last_b = last_a[word_a] == place_a, last_b[word_b] == place_b
        other = last_b[word_a]
        is_met = is_last_a & (other >= 0)
        partner[place_a[is_met]] = other[is_met]
        # words that either side has run out of are done
        keep_a, keep_b = ~is_last_a & (other >= 0), ~is_last_b & (last_a[word_b] >= 0)
        last_a[word_a] = -1
        last_b[word_b] = -1
        place_a, word_a = place_a[keep_a], word_a[keep_a]
        place_b, word_b = place_b[keep_b], word_b[keep_b]


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


# Bit-parallel: one big integer holds a whole row of the classic table. Source: Hyyrö,
# Bit-parallel LCS-length computation revisited, AWOCA 2004.


def common_lengths(predictions: Sequences, references: Sequences) -> Ints:
    """Shape (pairs,): tokens of the longest common subsequence."""
    lengths = map(_common_length, predictions.rows(), references.rows())
    return np.array(list(lengths), np.int64)


def _common_length(prediction: list[int], reference: list[int]) -> int:
    places: dict[int, int] = {}
    for position, symbol in enumerate(reference):
        places[symbol] = places.get(symbol, 0) | (1 << position)
    full = (1 << len(reference)) - 1
    row = full
    for symbol in prediction:
        if symbol in places:
            met = row & places[symbol]
            row = ((row + met) | (row - met)) & full
    return len(reference) - row.bit_count()
