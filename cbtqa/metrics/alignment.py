"""Which words of a prediction METEOR pairs with which words of the reference, and in how many runs.

nltk walks the prediction from its end and gives each word the last free occurrence in the
reference. So the k-th last occurrence of a word meets the k-th last occurrence: done here for all
pairs at once, last occurrences first, then the last of those that are left, and so on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbtqa.metrics.ngrams import blocks_of_pairs, numbers_of
from cbtqa.metrics.sequences import Ints, Sequences


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
