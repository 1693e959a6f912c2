"""jieba's segmentation over arrays of code points, compiled; equal to `segmentation` to the word.

The dictionary becomes a trie in flat arrays; no Python object is made per word. Words are
numbered within a block by comparing characters, and each distinct word becomes a string once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cbtqa.metrics.compiled import compiled
from cbtqa.metrics.compiled_trie import NO_WORD, PLANE, Trie, child, make_trie
from cbtqa.metrics.jieba_tables import MIN_FLOAT, STATES, JiebaTables
from cbtqa.metrics.segmentation import BLOCK
from cbtqa.metrics.sequences import Sequences, Vocabulary, code_points

Array = Any
"""A numpy array inside compiled code, whose types numba infers."""
OTHER, WORD_CHARACTER, HAN = 0, 1, 2
FIRST_HAN, LAST_HAN = 0x4E00, 0x9FD5
B, M, E, S = 0, 1, 2, 3


class Model(NamedTuple):
    """The hidden Markov model: emission by state and character, start, transition."""

    emit: Array
    start: Array
    trans: Array


class Scratch(NamedTuple):
    """Working memory as long as the longest text."""

    score: Array
    ends: Array
    value: Array
    back: Array
    state: Array


@compiled
def _find_best_ends(codes: Array, first: int, last: int, trie: Trie, work: Scratch) -> None:
    """Fills `work.ends` with the length of the word at each place of the best path."""
    # arrays out of their tuples first: numba counts references at each access inside one
    entries, roots, weights, unknown = trie
    score, ends = work.score, work.ends
    size = last - first
    score[size] = 0.0
    for place in range(size - 1, -1, -1):
        node = roots[codes[first + place]]
        best = 0.0
        best_length = 0
        length = 1
        while node != 0:
            if weights[node] != NO_WORD:
                total = weights[node] + score[place + length]
                if best_length == 0 or total >= best:
                    best = total
                    best_length = length
            if place + length >= size:
                break
            node = child(entries, node, codes[first + place + length])
            length += 1
        if best_length == 0:
            best = unknown + score[place + 1]
            best_length = 1
        score[place] = best
        ends[place] = best_length


@compiled
def _find_states(codes: Array, first: int, last: int, model: Model, work: Scratch) -> None:
    """Fills `work.state` by Viterbi; of equal paths the one from the later letter, B E M S."""
    value, back, states = work.value, work.back, work.state
    emit, start, trans = model
    for state in range(4):
        value[0, state] = start[state] + emit[state, codes[first] - FIRST_HAN]
    for place in range(1, last - first):
        character = codes[first + place] - FIRST_HAN
        for state, one, other in ((B, E, S), (M, B, M), (E, B, M), (S, E, S)):
            emitted = emit[state, character]
            by_one = value[place - 1, one] + trans[one, state] + emitted
            by_other = value[place - 1, other] + trans[other, state] + emitted
            if by_other >= by_one:
                value[place, state] = by_other
                back[place, state] = other
            else:
                value[place, state] = by_one
                back[place, state] = one
    end = last - first - 1
    state = S if value[end, S] >= value[end, E] else E
    for place in range(end, -1, -1):
        states[place] = state
        if place > 0:
            state = back[place, state]


@compiled
def _is_word(codes: Array, first: int, last: int, trie: Trie) -> Array:
    entries, roots, weights, _ = trie
    node = roots[codes[first]]
    for place in range(first + 1, last):
        if node == 0:
            return False
        node = child(entries, node, codes[place])
    return node != 0 and weights[node] != NO_WORD


@compiled
def _is_digit(code: int) -> bool:
    return 48 <= code <= 57


@compiled
def _is_latin(code: int) -> bool:
    return _is_digit(code) or 65 <= code <= 90 or 97 <= code <= 122


@compiled
def _cut_latin(codes: Array, first: int, last: int, out: Array, n_out: int) -> int:
    """Letters and digits with `.5` and `%` behind them are words; so is what stands between."""
    rest = place = first
    while place < last:
        if not _is_latin(codes[place]):
            place += 1
            continue
        if rest < place:
            out[n_out] = place
            n_out += 1
        while place < last and _is_latin(codes[place]):
            place += 1
        if place + 1 < last and codes[place] == 46 and _is_digit(codes[place + 1]):
            place += 1
            while place < last and _is_digit(codes[place]):
                place += 1
        if place < last and codes[place] == 37:
            place += 1
        out[n_out] = rest = place
        n_out += 1
    if rest < last:
        out[n_out] = last
        n_out += 1
    return n_out


@compiled
def _cut_han(
    codes: Array, first: int, last: int, model: Model, work: Scratch, out: Array, n_out: int
) -> int:
    _find_states(codes, first, last, model, work)
    end = first
    for place in range(first, last):
        if work.state[place - first] >= E:
            end = place + 1
            out[n_out] = end
            n_out += 1
    if end < last:
        out[n_out] = last
        n_out += 1
    return n_out


@compiled
def _cut_singles(
    codes: Array,
    first: int,
    last: int,
    trie: Trie,
    model: Model,
    kinds: Array,
    work: Scratch,
    out: Array,
    n_out: int,
) -> int:
    """A run of single characters: split if it is a word, else through the model."""
    if last - first < 2 or _is_word(codes, first, last, trie):
        for place in range(first, last):
            out[n_out] = place + 1
            n_out += 1
        return n_out
    while first < last:
        stop = first
        is_han = kinds[codes[first]] == HAN
        while stop < last and (kinds[codes[stop]] == HAN) == is_han:
            stop += 1
        if is_han:
            n_out = _cut_han(codes, first, stop, model, work, out, n_out)
        else:
            n_out = _cut_latin(codes, first, stop, out, n_out)
        first = stop
    return n_out


@compiled
def _cut_block(
    codes: Array,
    first: int,
    last: int,
    trie: Trie,
    model: Model,
    kinds: Array,
    work: Scratch,
    out: Array,
    n_out: int,
) -> int:
    _find_best_ends(codes, first, last, trie, work)
    lengths = work.ends
    place = singles = first
    while place < last:
        length = lengths[place - first]
        if length > 1:
            if place - singles == 1:  # the commonest run by far, not worth a call
                out[n_out] = place
                n_out += 1
            elif place > singles:
                n_out = _cut_singles(codes, singles, place, trie, model, kinds, work, out, n_out)
            out[n_out] = singles = place + length
            n_out += 1
        place += length
    return _cut_singles(codes, singles, last, trie, model, kinds, work, out, n_out)


@compiled
def _cut_texts(codes: Array, offsets: Array, trie: Trie, model: Model, kinds: Array) -> Array:
    """End of every word, and the number of words before each text."""
    longest = 1
    for text in range(offsets.shape[0] - 1):
        longest = max(longest, offsets[text + 1] - offsets[text])
    work = Scratch(
        np.empty(longest + 1),
        np.empty(longest + 1, np.int64),
        np.empty((longest + 1, 4)),
        np.empty((longest + 1, 4), np.int8),
        np.empty(longest + 1, np.int8),
    )
    out = np.empty(codes.shape[0], np.int64)
    before = np.zeros(offsets.shape[0], np.int64)
    n_out = 0
    for text in range(offsets.shape[0] - 1):
        place, last = offsets[text], offsets[text + 1]
        while place < last:
            stop = place
            while stop < last and codes[stop] < PLANE and kinds[codes[stop]] != OTHER:
                stop += 1
            if stop > place:
                n_out = _cut_block(codes, place, stop, trie, model, kinds, work, out, n_out)
            else:
                is_line_end = codes[place] == 13 and place + 1 < last and codes[place + 1] == 10
                stop = place + 2 if is_line_end else place + 1
                out[n_out] = stop
                n_out += 1
            place = stop
        before[text + 1] = n_out
    return out[:n_out].copy(), before


@compiled
def _number_words(codes: Array, ends: Array) -> Array:
    """A number for each distinct word of the block, and where each first stands."""
    capacity = 1024
    while capacity < 2 * ends.shape[0]:
        capacity *= 2
    table = np.full(capacity, -1, np.int32)
    number = np.empty(ends.shape[0], np.int32)
    first_at = np.empty(ends.shape[0], np.int64)
    n_words = 0
    start = 0
    for token in range(ends.shape[0]):
        end = ends[token]
        mixed = np.uint64(0xCBF29CE484222325)
        for place in range(start, end):
            mixed = (mixed ^ np.uint64(codes[place])) * np.uint64(0x100000001B3)
        slot = np.int64((mixed ^ (mixed >> np.uint64(29))) & np.uint64(capacity - 1))
        while table[slot] != -1:
            other = first_at[table[slot]]
            other_start = 0 if other == 0 else ends[other - 1]
            is_same = ends[other] - other_start == end - start
            for step in range(end - start):
                if not is_same or codes[other_start + step] != codes[start + step]:
                    is_same = False
                    break
            if is_same:
                break
            slot = (slot + 1) & (capacity - 1)
        if table[slot] == -1:
            table[slot] = n_words
            first_at[n_words] = token
            n_words += 1
        number[token] = table[slot]
        start = end
    return number, first_at[:n_words].copy()


class CompiledSegmenter:
    """Cuts blocks of texts straight into numbered words."""

    def __init__(self, tables: JiebaTables) -> None:
        self._trie = make_trie(tables)
        emit = np.full((len(STATES), LAST_HAN - FIRST_HAN + 1), MIN_FLOAT)
        for row, state in enumerate(STATES):
            for character, weight in tables.emit[state].items():
                if FIRST_HAN <= ord(character) <= LAST_HAN:
                    emit[row, ord(character) - FIRST_HAN] = weight
        self._model = Model(
            emit,
            np.array([tables.start[state] for state in STATES]),
            np.array([[tables.trans[one].get(to, MIN_FLOAT) for to in STATES] for one in STATES]),
        )
        self._kinds = np.zeros(PLANE, np.uint8)
        self._kinds[[ord(c) for c in map(chr, range(128)) if BLOCK.match(c)]] = WORD_CHARACTER
        self._kinds[FIRST_HAN : LAST_HAN + 1] = HAN

    def sequences(self, texts: Sequence[str], vocabulary: Vocabulary) -> Sequences:
        """The words of each text, whitespace included, as numbers of `vocabulary`."""
        points = code_points(texts)
        ends, before = _cut_texts(
            points.symbols, points.offsets, self._trie, self._model, self._kinds
        )
        numbers, first_at = _number_words(points.symbols, ends)
        starts = np.concatenate([[0], ends[:-1]])
        joined = "".join(texts)
        words = [
            joined[start:end]
            for start, end in zip(starts[first_at].tolist(), ends[first_at].tolist(), strict=True)
        ]
        table = np.array([vocabulary[word] for word in words], np.int64)
        return Sequences(table[numbers], before)
