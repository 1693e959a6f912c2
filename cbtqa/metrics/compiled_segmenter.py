"""jieba's segmentation over arrays of code points, compiled; equal to `segmentation` to the word.

The dictionary becomes a trie in flat arrays; no Python object is made per word. A word is known
by its character or by its node in the trie; only the rest, such as names that the hidden Markov
model puts together, are told apart by comparing characters. Each distinct word becomes a string
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cbtqa.metrics.compiled import compiled
from cbtqa.metrics.compiled_trie import IS_WORD, LEADS_ON, PLANE, Trie, child, make_trie
from cbtqa.metrics.text.segmentation import BLOCK, MIN_FLOAT, STATES, JiebaTables
from cbtqa.metrics.text.sequences import LAST_CODE_POINT, Ints, Sequences, Vocabulary, code_points

Array = Any
"""A numpy array inside compiled code, whose types numba infers."""
OTHER, WORD_CHARACTER, HAN = 0, 1, 2
FIRST_HAN, LAST_HAN = 0x4E00, 0x9FD5
B, M, E, S = 0, 1, 2, 3
FIRST_NODE = LAST_CODE_POINT + 1
"""Key of the trie's node 0; the key of a single character is its code point."""
NO_KEY = -1
"""Of a word that is neither a character nor a word the trie led to."""


class Model(NamedTuple):
    """The hidden Markov model: emission by character and state, start, transition."""

    emit: Array
    start: Array
    trans: Array


class Scratch(NamedTuple):
    """Working memory as long as the longest text."""

    score: Array
    lengths: Array
    nodes: Array
    back: Array
    state: Array


class Words(NamedTuple):
    """Where each word ends, and its key."""

    ends: Array
    keys: Array


@compiled
def _add(words: Words, n_words: int, codes: Array, start: int, end: int) -> int:
    """One more word that the trie did not give."""
    words.ends[n_words] = end
    words.keys[n_words] = codes[start] if end - start == 1 else NO_KEY
    return n_words + 1


@compiled
def _find_best_path(codes: Array, first: int, last: int, trie: Trie, work: Scratch) -> None:
    """Fills in length and node of the word at each place of the best path; node 0 for none."""
    # arrays out of their tuples first: numba counts references at each access inside one
    entries, roots, weights, unknown = trie
    score, lengths, nodes = work.score, work.lengths, work.nodes
    size = last - first
    score[size] = 0.0
    for place in range(size - 1, -1, -1):
        step: Array = np.int64(roots[codes[first + place]])
        best = unknown + score[place + 1]
        best_length = best_node = 0
        length = 1
        while step != 0:
            if step & IS_WORD:
                total = weights[step >> 2] + score[place + length]
                if best_length == 0 or total >= best:
                    best = total
                    best_length = length
                    best_node = step >> 2
            if not step & LEADS_ON or place + length >= size:
                break
            step = child(entries, step >> 2, codes[first + place + length])
            length += 1
        score[place] = best
        lengths[place] = max(best_length, 1)
        nodes[place] = best_node


@compiled
def _find_states(codes: Array, first: int, last: int, model: Model, work: Scratch) -> None:
    """Fills `work.state` by Viterbi; of equal paths the one from the later letter, B E M S.

    Each of the four states can be reached from two, so one bit a state says where it came from.
    """
    back, states = work.back, work.state
    emit, start, trans = model
    code = codes[first] - FIRST_HAN
    b, m = start[B] + emit[code, B], start[M] + emit[code, M]
    e, s = start[E] + emit[code, E], start[S] + emit[code, S]
    for place in range(1, last - first):
        code = codes[first + place] - FIRST_HAN
        b_e, b_s = e + trans[E, B] + emit[code, B], s + trans[S, B] + emit[code, B]
        m_b, m_m = b + trans[B, M] + emit[code, M], m + trans[M, M] + emit[code, M]
        e_b, e_m = b + trans[B, E] + emit[code, E], m + trans[M, E] + emit[code, E]
        s_e, s_s = e + trans[E, S] + emit[code, S], s + trans[S, S] + emit[code, S]
        back[place] = (b_s >= b_e) | (m_m >= m_b) << M | (e_m >= e_b) << E | (s_s >= s_e) << S
        b = b_s if b_s >= b_e else b_e
        m = m_m if m_m >= m_b else m_b
        e = e_m if e_m >= e_b else e_b
        s = s_s if s_s >= s_e else s_e
    state = S if s >= e else E
    for place in range(last - first - 1, -1, -1):
        states[place] = state
        is_later = back[place] >> state & 1
        if state in (B, S):
            state = S if is_later else E
        elif is_later:
            state = M
        else:
            state = B


@compiled
def _is_word(codes: Array, first: int, last: int, trie: Trie) -> Array:
    entries, roots, _, _ = trie
    step = np.int64(roots[codes[first]])
    for place in range(first + 1, last):
        if not step & LEADS_ON:
            return False
        step = child(entries, step >> 2, codes[place])
    return step & IS_WORD != 0


@compiled
def _is_digit(code: int) -> bool:
    return 48 <= code <= 57


@compiled
def _is_latin(code: int) -> bool:
    return _is_digit(code) or 65 <= code <= 90 or 97 <= code <= 122


@compiled
def _cut_latin(codes: Array, first: int, last: int, words: Words, n_words: int) -> int:
    """Letters and digits with `.5` and `%` behind them are words; so is what stands between."""
    rest = place = first
    while place < last:
        if not _is_latin(codes[place]):
            place += 1
            continue
        if rest < place:
            n_words = _add(words, n_words, codes, rest, place)
        rest = place
        while place < last and _is_latin(codes[place]):
            place += 1
        if place + 1 < last and codes[place] == 46 and _is_digit(codes[place + 1]):
            place += 1
            while place < last and _is_digit(codes[place]):
                place += 1
        if place < last and codes[place] == 37:
            place += 1
        n_words = _add(words, n_words, codes, rest, place)
        rest = place
    return _add(words, n_words, codes, rest, last) if rest < last else n_words


@compiled
def _cut_han(
    codes: Array, first: int, last: int, model: Model, work: Scratch, words: Words, n_words: int
) -> int:
    _find_states(codes, first, last, model, work)
    states = work.state
    end = first
    for place in range(first, last):
        if states[place - first] >= E:
            n_words = _add(words, n_words, codes, end, place + 1)
            end = place + 1
    return _add(words, n_words, codes, end, last) if end < last else n_words


@compiled
def _cut_singles(
    codes: Array,
    first: int,
    last: int,
    trie: Trie,
    model: Model,
    kinds: Array,
    work: Scratch,
    words: Words,
    n_words: int,
) -> int:
    """A run of single characters: split if it is a word, else through the model."""
    if last - first < 2 or _is_word(codes, first, last, trie):
        for place in range(first, last):
            n_words = _add(words, n_words, codes, place, place + 1)
        return n_words
    while first < last:
        stop = first
        is_han = kinds[codes[first]] == HAN
        while stop < last and (kinds[codes[stop]] == HAN) == is_han:
            stop += 1
        if is_han:
            n_words = _cut_han(codes, first, stop, model, work, words, n_words)
        else:
            n_words = _cut_latin(codes, first, stop, words, n_words)
        first = stop
    return n_words


@compiled
def _cut_block(
    codes: Array,
    first: int,
    last: int,
    trie: Trie,
    model: Model,
    kinds: Array,
    work: Scratch,
    words: Words,
    n_words: int,
) -> int:
    _find_best_path(codes, first, last, trie, work)
    lengths, nodes = work.lengths, work.nodes
    ends, keys = words
    place = singles = first
    while place < last:
        length = lengths[place - first]
        if length > 1:
            if place - singles == 1:  # the commonest run by far, not worth a call
                ends[n_words] = place
                keys[n_words] = codes[singles]
                n_words += 1
            elif place > singles:
                n_words = _cut_singles(
                    codes, singles, place, trie, model, kinds, work, words, n_words
                )
            ends[n_words] = singles = place + length
            keys[n_words] = FIRST_NODE + nodes[place - first]
            n_words += 1
        place += length
    return _cut_singles(codes, singles, last, trie, model, kinds, work, words, n_words)


@compiled
def _cut_texts(codes: Array, offsets: Array, trie: Trie, model: Model, kinds: Array) -> Array:
    """End and key of every word, and the number of words before each text."""
    longest = 1
    for text in range(offsets.shape[0] - 1):
        longest = max(longest, offsets[text + 1] - offsets[text])
    work = Scratch(
        np.empty(longest + 1),
        np.empty(longest + 1, np.int32),
        np.empty(longest + 1, np.int32),
        np.zeros(longest + 1, np.uint8),
        np.empty(longest + 1, np.int8),
    )
    words = Words(np.empty(codes.shape[0], np.int64), np.empty(codes.shape[0], np.int32))
    before = np.zeros(offsets.shape[0], np.int64)
    n_words = 0
    for text in range(offsets.shape[0] - 1):
        place, last = offsets[text], offsets[text + 1]
        while place < last:
            stop = place
            while stop < last and codes[stop] < PLANE and kinds[codes[stop]] != OTHER:
                stop += 1
            if stop > place:
                n_words = _cut_block(codes, place, stop, trie, model, kinds, work, words, n_words)
            else:
                is_line_end = codes[place] == 13 and place + 1 < last and codes[place + 1] == 10
                stop = place + 2 if is_line_end else place + 1
                n_words = _add(words, n_words, codes, place, stop)
            place = stop
        before[text + 1] = n_words
    return words.ends[:n_words].copy(), words.keys[:n_words].copy(), before


@compiled
def _number_words(codes: Array, starts: Array, ends: Array) -> Array:
    """A number for each distinct word, and which of them is the first of its kind."""
    capacity = 1024
    while capacity < 2 * ends.shape[0]:
        capacity *= 2
    table = np.full(capacity, -1, np.int32)
    number = np.empty(ends.shape[0], np.int32)
    first_of = np.empty(ends.shape[0], np.int64)
    n_words = 0
    for word in range(ends.shape[0]):
        start, size = starts[word], ends[word] - starts[word]
        mixed = np.uint64(0xCBF29CE484222325)
        for step in range(size):
            mixed = (mixed ^ np.uint64(codes[start + step])) * np.uint64(0x100000001B3)
        slot = np.int64((mixed ^ (mixed >> np.uint64(29))) & np.uint64(capacity - 1))
        while table[slot] != -1:
            other = first_of[table[slot]]
            step = 0
            if ends[other] - starts[other] == size:
                while step < size and codes[starts[other] + step] == codes[start + step]:
                    step += 1
            if step == size:
                break
            slot = (slot + 1) & (capacity - 1)
        if table[slot] == -1:
            table[slot] = n_words
            first_of[n_words] = word
            n_words += 1
        number[word] = table[slot]
    return number, first_of[:n_words].copy()


class CompiledSegmenter:
    """Cuts blocks of texts straight into numbered words."""

    def __init__(self, tables: JiebaTables) -> None:
        self._trie = make_trie(tables)
        emit = np.full((LAST_HAN - FIRST_HAN + 1, len(STATES)), MIN_FLOAT)
        for column, state in enumerate(STATES):
            for character, weight in tables.emit[state].items():
                if FIRST_HAN <= ord(character) <= LAST_HAN:
                    emit[ord(character) - FIRST_HAN, column] = weight
        self._model = Model(
            emit,
            np.array([tables.start[state] for state in STATES]),
            np.array([[tables.trans[one].get(to, MIN_FLOAT) for to in STATES] for one in STATES]),
        )
        self._kinds = np.zeros(PLANE, np.uint8)
        self._kinds[[ord(c) for c in map(chr, range(128)) if BLOCK.match(c)]] = WORD_CHARACTER
        self._kinds[FIRST_HAN : LAST_HAN + 1] = HAN
        self._vocabulary: Vocabulary | None = None
        self._by_key = np.empty(0, np.int64)

    def sequences(self, texts: Sequence[str], vocabulary: Vocabulary) -> Sequences:
        """The words of each text, whitespace included, as numbers of `vocabulary`."""
        if vocabulary is not self._vocabulary:
            self._vocabulary = vocabulary
            self._by_key = np.full(FIRST_NODE + len(self._trie.weights), -1, np.int64)
        codes = code_points(texts)
        ends, keys, before = _cut_texts(
            codes.symbols, codes.offsets, self._trie, self._model, self._kinds
        )
        starts = np.concatenate([[0], ends[:-1]])
        joined = "".join(texts)

        def numbers(words: Ints) -> list[int]:
            bounds = zip(starts[words].tolist(), ends[words].tolist(), strict=True)
            return [vocabulary[joined[start:end]] for start, end in bounds]

        symbols = self._by_key[keys]
        keyless = np.flatnonzero(keys == NO_KEY)
        if len(keyless):
            kind, first_of = _number_words(codes.symbols, starts[keyless], ends[keyless])
            symbols[keyless] = np.array(numbers(keyless[first_of]), np.int64)[kind]
        unknown = np.flatnonzero((symbols < 0) & (keys != NO_KEY))
        if len(unknown):
            new, first_of = np.unique(keys[unknown], return_index=True)
            self._by_key[new] = numbers(unknown[first_of])
            symbols[unknown] = self._by_key[keys[unknown]]
        return Sequences(symbols, before)
