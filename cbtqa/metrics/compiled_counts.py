"""The counts of `ngrams`, `alignment` and `subsequences` as compiled loops, with equal results.

Each pair gets dense numbers for its own symbols from a small hash table that is never cleared:
an entry counts only if its stamp is that of the current use.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cbtqa.metrics.compiled import compiled
from cbtqa.metrics.text.sequences import Ints, Sequences

Array = Any
"""A numpy array inside compiled code, whose types numba infers."""


class Table(NamedTuple):
    """A hash table from key to small number."""

    keys: Array
    stamps: Array
    numbers: Array


@compiled
def _longest(offsets: Array, others: Array) -> int:
    longest = 1
    for pair in range(offsets.shape[0] - 1):
        longest = max(longest, offsets[pair + 1] - offsets[pair])
        longest = max(longest, others[pair + 1] - others[pair])
    return longest


@compiled
def _table(longest: int) -> Table:
    # at most half full, and small enough for the first cache
    capacity = 256
    while capacity < 2 * longest:
        capacity *= 2
    return Table(
        np.zeros(capacity, np.int64), np.zeros(capacity, np.int32), np.zeros(capacity, np.int32)
    )


@compiled
def _slot(keys: Array, stamps: Array, stamp: int, key: int) -> Array:
    mask = keys.shape[0] - 1
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    place = np.int64(mixed >> np.uint64(44)) & mask
    while stamps[place] == stamp and keys[place] != key:
        place = (place + 1) & mask
    return place


class Grams(NamedTuple):
    """Places of one text whose grams are shared so far, ascending, and the grams' numbers."""

    places: Array
    numbers: Array


class Tally(NamedTuple):
    """What is known of each gram, by number."""

    free: Array
    """How often it occurs in the reference and is not yet taken."""
    is_met: Array


@compiled
def _extend(grams: Grams, n_grams: int, size: int, order: int, keys: Array) -> int:
    """Joins neighbouring grams to grams of the next order; how many there are, keys filled in.

    Two grams side by side differ in one token only, so their two numbers tell them apart.
    """
    places, numbers = grams
    kept = 0
    for index in range(n_grams - 1):
        place = places[index]
        if places[index + 1] == place + 1 and place + order <= size:
            keys[kept] = (np.int64(numbers[index]) << 32) | numbers[index + 1]
            places[kept] = place
            kept += 1
    return kept


@compiled
def _number_grams(
    keys: Array, n_grams: int, grams: Grams, tally: Tally, table: Table, stamp: int
) -> None:
    """Numbers the reference's grams."""
    # arrays out of their tuples first: numba counts references at each access inside one
    known, stamps, numbers = table
    free, is_met = tally
    found = grams.numbers
    n_known = 0
    for index in range(n_grams):
        slot = _slot(known, stamps, stamp, keys[index])
        if stamps[slot] != stamp:
            stamps[slot] = stamp
            known[slot] = keys[index]
            numbers[slot] = n_known
            free[n_known] = 0
            is_met[n_known] = False
            n_known += 1
        found[index] = numbers[slot]
        free[numbers[slot]] += 1


@compiled
def _meet_grams(
    keys: Array, n_grams: int, grams: Grams, tally: Tally, table: Table, stamp: int
) -> tuple[int, int]:
    """Keeps the prediction's grams that are shared; how many, and each occurrence taken once."""
    known, stamps, numbers = table
    free, is_met = tally
    places, found = grams
    kept = shared = 0
    for index in range(n_grams):
        slot = _slot(known, stamps, stamp, keys[index])
        if stamps[slot] == stamp:
            number = numbers[slot]
            is_met[number] = True
            if free[number] > 0:
                free[number] -= 1
                shared += 1
            places[kept] = places[index]
            found[kept] = number
            kept += 1
    return kept, shared


@compiled
def _keep_met(grams: Grams, n_grams: int, is_met: Array) -> int:
    """Keeps the reference's grams that are shared."""
    places, numbers = grams
    kept = 0
    for index in range(n_grams):
        if is_met[numbers[index]]:
            places[kept] = places[index]
            numbers[kept] = numbers[index]
            kept += 1
    return kept


@compiled
def _count_ngrams(
    symbols_a: Array, offsets_a: Array, symbols_b: Array, offsets_b: Array, counts: Array
) -> None:
    longest = _longest(offsets_a, offsets_b)
    table = _table(longest)
    ours = Grams(np.empty(longest, np.int32), np.empty(longest, np.int32))
    theirs = Grams(np.empty(longest, np.int32), np.empty(longest, np.int32))
    tally = Tally(np.empty(longest, np.int32), np.empty(longest, np.bool_))
    keys = np.empty(longest, np.int64)
    stamp = 0
    for pair in range(counts.shape[0]):
        words = symbols_a[offsets_a[pair] : offsets_a[pair + 1]]
        others = symbols_b[offsets_b[pair] : offsets_b[pair + 1]]
        n_ours, n_theirs = words.shape[0], others.shape[0]
        for order in range(1, counts.shape[1] // 3 + 1):
            counts[pair, 3 * order - 3] = max(0, words.shape[0] - order + 1)
            counts[pair, 3 * order - 2] = max(0, others.shape[0] - order + 1)
            stamp += 1
            if order == 1:
                theirs.places[:n_theirs] = np.arange(n_theirs)
                _number_grams(others, n_theirs, theirs, tally, table, stamp)
                ours.places[:n_ours] = np.arange(n_ours)
                n_ours, shared = _meet_grams(words, n_ours, ours, tally, table, stamp)
            else:
                n_theirs = _extend(theirs, n_theirs, others.shape[0], order, keys)
                _number_grams(keys, n_theirs, theirs, tally, table, stamp)
                n_ours = _extend(ours, n_ours, words.shape[0], order, keys)
                n_ours, shared = _meet_grams(keys, n_ours, ours, tally, table, stamp)
            n_theirs = _keep_met(theirs, n_theirs, tally.is_met)
            counts[pair, 3 * order - 1] = shared


def ngram_counts(predictions: Sequences, references: Sequences, max_order: int) -> Ints:
    """As `ngrams.ngram_counts`."""
    counts = np.zeros((len(predictions), 3 * max_order), np.int64)
    _count_ngrams(
        predictions.symbols, predictions.offsets, references.symbols, references.offsets, counts
    )
    return counts


class Stacks(NamedTuple):
    """The free places of each word of a reference, last place on top."""

    top: Array
    below: Array


@compiled
def _align(
    ours: Array,
    theirs: Array,
    partner: Array,
    is_taken: Array,
    stacks: Stacks,
    table: Table,
    stamp: int,
) -> int:
    """Gives each free word of the prediction, from its end, the last free equal word."""
    keys, stamps, numbers = table
    top, below = stacks
    n_known = 0
    for place in range(theirs.shape[0]):
        if is_taken[place]:
            continue
        slot = _slot(keys, stamps, stamp, theirs[place])
        if stamps[slot] != stamp:
            stamps[slot] = stamp
            keys[slot] = theirs[place]
            numbers[slot] = n_known
            top[n_known] = -1
            n_known += 1
        word = numbers[slot]
        below[place] = top[word]
        top[word] = place
    n_aligned = 0
    for place in range(ours.shape[0] - 1, -1, -1):
        if partner[place] >= 0:
            continue
        slot = _slot(keys, stamps, stamp, ours[place])
        if stamps[slot] == stamp and top[numbers[slot]] >= 0:
            other = top[numbers[slot]]
            top[numbers[slot]] = below[other]
            partner[place] = other
            is_taken[other] = True
            n_aligned += 1
    return n_aligned


@compiled
def _align_pairs(
    symbols_a: Array,
    stems_a: Array,
    offsets_a: Array,
    symbols_b: Array,
    stems_b: Array,
    offsets_b: Array,
    matches: Array,
    chunks: Array,
) -> None:
    longest = _longest(offsets_a, offsets_b)
    table = _table(longest)
    stacks = Stacks(np.empty(longest, np.int32), np.empty(longest, np.int32))
    partner = np.empty(longest, np.int32)
    is_taken = np.empty(longest, np.bool_)
    for pair in range(matches.shape[0]):
        a, end_a = offsets_a[pair], offsets_a[pair + 1]
        b, end_b = offsets_b[pair], offsets_b[pair + 1]
        partner[: end_a - a] = -1
        is_taken[: end_b - b] = False
        words, others = symbols_a[a:end_a], symbols_b[b:end_b]
        matches[pair] = _align(words, others, partner, is_taken, stacks, table, 2 * pair + 1)
        stems, other_stems = stems_a[a:end_a], stems_b[b:end_b]
        if not (np.array_equal(words, stems) and np.array_equal(others, other_stems)):
            matches[pair] += _align(
                stems, other_stems, partner, is_taken, stacks, table, 2 * pair + 2
            )
        last = last_partner = -2
        for place in range(end_a - a):
            if partner[place] >= 0:
                if place != last + 1 or partner[place] != last_partner + 1:
                    chunks[pair] += 1
                last, last_partner = place, partner[place]


def aligned_counts(
    predictions: Sequences,
    references: Sequences,
    prediction_stems: Ints,
    reference_stems: Ints,
) -> tuple[Ints, Ints]:
    """As `alignment.aligned_counts`."""
    matches = np.zeros(len(predictions), np.int64)
    chunks = np.zeros(len(predictions), np.int64)
    _align_pairs(
        predictions.symbols,
        prediction_stems,
        predictions.offsets,
        references.symbols,
        reference_stems,
        references.offsets,
        matches,
        chunks,
    )
    return matches, chunks


@compiled
def _count_common(
    symbols_a: Array, offsets_a: Array, symbols_b: Array, offsets_b: Array, lengths: Array
) -> None:
    longest = _longest(offsets_a, offsets_b)
    keys, stamps, numbers = _table(longest)
    n_limbs = (longest + 63) // 64
    places = np.zeros((longest, n_limbs), np.uint64)
    row = np.empty(n_limbs, np.uint64)
    one = np.uint64(1)
    for pair in range(lengths.shape[0]):
        theirs = symbols_b[offsets_b[pair] : offsets_b[pair + 1]]
        limbs = (theirs.shape[0] + 63) // 64
        n_known = 0
        for place in range(theirs.shape[0]):
            slot = _slot(keys, stamps, pair + 1, theirs[place])
            if stamps[slot] != pair + 1:
                stamps[slot] = pair + 1
                keys[slot] = theirs[place]
                numbers[slot] = n_known
                places[n_known, :limbs] = 0
                n_known += 1
            places[numbers[slot], place // 64] |= one << np.uint64(place % 64)
        row[:limbs] = ~np.uint64(0)
        for place in range(offsets_a[pair], offsets_a[pair + 1]):
            slot = _slot(keys, stamps, pair + 1, symbols_a[place])
            if stamps[slot] != pair + 1:
                continue
            carry = np.uint64(0)
            for limb in range(limbs):
                old = row[limb]
                met = old & places[numbers[slot], limb]
                added = old + met
                total = added + carry
                carry = np.uint64(added < old) | np.uint64(total < added)
                row[limb] = total | (old & ~met)
        for place in range(theirs.shape[0]):
            lengths[pair] += 1 - np.int64((row[place // 64] >> np.uint64(place % 64)) & one)


def common_lengths(predictions: Sequences, references: Sequences) -> Ints:
    """As `subsequences.common_lengths`."""
    lengths = np.zeros(len(predictions), np.int64)
    _count_common(
        predictions.symbols, predictions.offsets, references.symbols, references.offsets, lengths
    )
    return lengths
