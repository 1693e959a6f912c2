"""The texts of one side of a comparison, and each way of reading them, made once and shared.

BLEU, METEOR and ROUGE on jieba words all read the same `words`; the references are read once for
all systems.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cbtqa.metrics.text.porter import stem
from cbtqa.metrics.text.segmentation import rust_segmenter
from cbtqa.records import Risk

# --- sequences -----------------------------------------------------------------------------------
# What every n-gram, alignment and subsequence count reads. A dictionary hands out the numbers,
# never a hash, so that equal symbols are equal tokens:
#     words = Sequences.of([["我", "很", "好"], ["好"]], Vocabulary())
#     words.symbols.tolist() == [0, 1, 2, 2] and words.offsets.tolist() == [0, 3, 4]

Ints = NDArray[np.int64]
LAST_CODE_POINT = 0x10FFFF


class Vocabulary(dict[str, int]):
    """Tokens numbered in the order in which they first came."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[str] = []
        """By number."""

    def __missing__(self, token: str) -> int:
        number = self[token] = len(self)
        self.tokens.append(token)
        return number


@dataclass(frozen=True)
class Sequences:
    """Token sequences of many texts, laid end to end."""

    symbols: Ints
    """Shape (tokens of all texts,); small non-negative numbers."""
    offsets: Ints
    """Shape (texts + 1,); text i is `symbols[offsets[i]:offsets[i + 1]]`."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """Tokens per text."""
        return np.diff(self.offsets)

    def rows(self) -> list[list[int]]:
        """The symbols of each text as a list."""
        flat, ends = self.symbols.tolist(), self.offsets.tolist()
        return [flat[start:end] for start, end in pairwise(ends)]

    def kept(self, keep: NDArray[np.bool_]) -> Sequences:
        """Without the tokens where `keep`, shape (tokens,), is False."""
        before = np.zeros(len(keep) + 1, np.int64)
        np.cumsum(keep, out=before[1:])
        return Sequences(self.symbols[keep], before[self.offsets])

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]], vocabulary: Vocabulary) -> Sequences:
        """From ready tokens."""
        number = vocabulary.__getitem__
        flat: list[int] = []
        ends = [0]
        for tokens in texts:
            flat.extend(map(number, tokens))
            ends.append(len(flat))
        return cls(np.array(flat, np.int64), np.array(ends, np.int64))


def code_points(texts: Sequence[str]) -> Sequences:
    """Each character as its Unicode code point; a lone surrogate counts as a character."""
    joined = "".join(texts).encode("utf-32-le", "surrogatepass")
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return Sequences(np.frombuffer(joined, np.uint32).astype(np.int64), offsets)


def _whitespace() -> NDArray[np.bool_]:
    table = np.zeros(LAST_CODE_POINT + 1, np.bool_)
    # Unicode has no whitespace outside the basic plane
    table[[code for code in range(0x10000) if chr(code).isspace()]] = True
    return table


IS_WHITESPACE = _whitespace()
"""By code point, as `str.isspace` and `str.split` see it."""


# --- texts ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """What is known of one answer, predicted or reference."""

    text: str
    has_steps: bool | None = None
    """Whether the record itself holds all five steps; None when nothing in its file does."""
    labels: frozenset[str] | None = None
    """Ids of the distortions; None when the source holds no label in any row."""
    is_labelled_by_question: bool = False
    """Whether the labels were read from the question alone, so that no answer can change them."""
    risk: Risk | None = None
    """Risk of the question; None when the source does not give it."""
    question_id: str = ""
    """Of the question it answers; empty where only the text is known."""


class Reading:
    """The numberings that all sides of one run share."""

    def __init__(self) -> None:
        self.words = Vocabulary()
        self.zh = ZhTokens()
        self._n_read = 0
        self._lower = np.empty(0, np.int64)
        self._stem = np.empty(0, np.int64)
        self._is_space = np.empty(0, np.bool_)

    def _grow(self) -> None:
        """Reads lower case and stem of the words that came since the last call.

        Both are words of the same vocabulary; of nearly every Chinese word, itself.
        """
        while self._n_read < len(self.words):
            first, last = self._n_read, len(self.words)
            self._reserve(last)
            self._lower[first:last] = self._stem[first:last] = np.arange(first, last)
            for number, word in enumerate(self.words.tokens[first:last], first):
                lower = word.lower()
                if lower != word:
                    self._lower[number] = self._stem[number] = self.words[lower]
                if "a" <= lower[-1:] <= "z":
                    self._stem[number] = self.words[stem(lower)]
                elif word.isspace():
                    self._is_space[number] = True
            self._n_read = last

    def _reserve(self, size: int) -> None:
        """Room for so many words, doubled when it runs out."""
        if size > len(self._lower):
            room = 2 * size - len(self._lower)
            self._lower = np.append(self._lower, np.zeros(room, np.int64))
            self._stem = np.append(self._stem, np.zeros(room, np.int64))
            self._is_space = np.append(self._is_space, np.zeros(room, np.bool_))

    def words_of(self, texts: Sequence[str]) -> Sequences:
        """jieba's words of each text, without whitespace."""
        words = Sequences.of(map(rust_segmenter().cut, texts), self.words)
        self._grow()
        return words.kept(~self._is_space[words.symbols])

    def folded(self, words: Sequences) -> tuple[Sequences, Ints]:
        """The words in lower case, and the number of each one's stem in the same numbering."""
        self._grow()
        lower = Sequences(self._lower[words.symbols], words.offsets)
        return lower, self._stem[words.symbols]


class Texts:
    """One side of a block of pairs."""

    def __init__(self, items: Sequence[Item], reading: Reading) -> None:
        self.items = items
        self.reading = reading
        self.texts = [item.text for item in items]

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def words(self) -> Sequences:
        """jieba's words without whitespace."""
        return self.reading.words_of(self.texts)

    @cached_property
    def points(self) -> Sequences:
        """Code points of every character."""
        return code_points(self.texts)

    @cached_property
    def characters(self) -> Sequences:
        """Code points without whitespace."""
        return self.points.kept(~IS_WHITESPACE[self.points.symbols])

    @cached_property
    def zh(self) -> Sequences:
        """sacrebleu's `zh` tokens."""
        return self.reading.zh.sequences(self.texts, self.points)

    @cached_property
    def folded_words(self) -> tuple[Sequences, Ints]:
        """Words in lower case and their stems, for METEOR."""
        return self.reading.folded(self.words)

    @cached_property
    def folded_characters(self) -> tuple[Sequences, Ints]:
        """Characters in lower case and their stems (themselves), for METEOR."""
        codes, inverse = np.unique(self.characters.symbols, return_inverse=True)
        number = self.reading.words.__getitem__
        ids = np.array([number(chr(code)) for code in codes.tolist()], np.int64)
        return self.reading.folded(Sequences(ids[inverse], self.characters.offsets))


# Every character that sacrebleu counts as Chinese is a token; the runs between them go through
# the rules of `mteval-v13a` (punctuation split off, but `3.5`, `3,000` and `GPT-4` stay whole).
# Source: sacrebleu 2.6.0, `tokenizer_zh.py` and `tokenizer_re.py`; equality is tested.

CHINESE_RANGES = (
    "3400-4DB5 4E00-9FBB F900-FA2D FA30-FA6A FA70-FAD9 FF00-FFEF 2E80-2EFF 3000-303F 31C0-31EF "
    "2F00-2FDF 2FF0-2FFF 3100-312F 31A0-31BF FE10-FE1F FE30-FE4F 2600-26FF 2700-27BF 3200-32FF "
    # sacrebleu writes Extension B with four hexadecimal digits and a stray fifth, which makes it
    # two other ranges: curly quotes, dashes, arrows are "Chinese", Extension B is not
    "3300-33FF 2001-2A6D 2F81-2FA1"
)
RUN_RULES = (
    # punctuation stands alone, except `.`, `,`, `-` and the apostrophe; the space is in the class
    (re.compile(r"([ !\"#$%&()*+/:;<=>?@\[\\\]^_`{|}~])"), r" \1 "),
    # a point or comma stands alone unless between digits
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    # a hyphen after a digit stands alone
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
MEMO_SIZE = 1 << 16


def _is_chinese() -> NDArray[np.bool_]:
    table = np.zeros(LAST_CODE_POINT + 1, np.bool_)
    for span in CHINESE_RANGES.split():
        first, last = (int(code, 16) for code in span.split("-"))
        table[first : last + 1] = True
    return table


IS_CHINESE = _is_chinese()


class ZhTokens:
    """Turns texts into `zh` symbols; keeps the numbers of the tokens it has seen."""

    def __init__(self) -> None:
        self._runs = Vocabulary()
        self._memo: dict[str, list[int]] = {}

    def sequences(self, texts: Sequence[str], points: Sequences) -> Sequences:
        """One symbol a token: a Chinese character's code point, else a number above them all."""
        stripped = [text.strip() for text in texts]
        if stripped != texts:
            texts, points = stripped, code_points(stripped)
        codes, offsets = points.symbols, points.offsets
        is_chinese = IS_CHINESE[codes]
        starts, stops = _runs(~is_chinese, offsets)
        counts = (is_chinese & ~IS_WHITESPACE[codes]).astype(np.int64)
        tokens = self._run_tokens("".join(texts), starts, stops, offsets)
        run_lengths = np.array([len(run) for run in tokens], np.int64)
        counts[starts] = run_lengths
        ends = np.zeros(len(codes) + 1, np.int64)
        np.cumsum(counts, out=ends[1:])
        symbols = np.empty(int(ends[-1]), np.int64)
        single = np.flatnonzero(is_chinese & (counts == 1))
        symbols[ends[single]] = codes[single]
        flat = np.array([number for run in tokens for number in run], np.int64)
        before = np.cumsum(run_lengths) - run_lengths
        symbols[np.repeat(ends[starts] - before, run_lengths) + np.arange(len(flat))] = flat
        return Sequences(symbols, ends[offsets])

    def _run_tokens(self, joined: str, starts: Ints, stops: Ints, edges: Ints) -> list[list[int]]:
        is_edge = np.zeros(len(joined) + 1, np.bool_)
        is_edge[edges] = True
        tokens = []
        for start, stop, is_first, is_last in zip(
            starts.tolist(),
            stops.tolist(),
            is_edge[starts].tolist(),
            is_edge[stops].tolist(),
            strict=True,
        ):
            # a Chinese neighbour has spaces round it; the edge of a text has not
            run = f"{'' if is_first else ' '}{joined[start:stop]}{'' if is_last else ' '}"
            known = self._memo.get(run)
            if known is None:
                known = self._memo[run] = self._tokens(run)
                if len(self._memo) > MEMO_SIZE:
                    self._memo.clear()
            tokens.append(known)
        return tokens

    def _tokens(self, run: str) -> list[int]:
        for rule, replacement in RUN_RULES:
            run = rule.sub(replacement, run)
        return [LAST_CODE_POINT + 1 + self._runs[token] for token in run.split()]


def _runs(inside: NDArray[np.bool_], offsets: Ints) -> tuple[Ints, Ints]:
    """Starts and stops of the longest stretches of True that cross no text's edge."""
    edge = np.zeros(len(inside) + 1, np.bool_)
    edge[offsets] = True
    before = np.concatenate([[False], inside[:-1]])
    after = np.concatenate([inside[1:], [False]])
    starts = np.flatnonzero(inside & (~before | edge[:-1]))
    stops = np.flatnonzero(inside & (~after | edge[1:])) + 1
    return starts, stops
