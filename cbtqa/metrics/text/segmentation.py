"""Chinese words exactly as jieba 0.42.1 cuts them, by our own reading of its algorithm.

`RustSegmenter` hands the bulk to rjieba, which gives the same words about fourteen times faster
except in some runs of Latin, digits and symbols and for characters outside U+4E00-9FD5: there it
gets a disguise of the text, or `PythonSegmenter` does the work.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from math import log
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError, MissingExtraError, require

BLOCK = re.compile(r"([\u4E00-\u9FD5a-zA-Z0-9+#&._%\-]+)")
"""Stretches that may hold words; all else is one token a character. Source: jieba `re_han`."""
SPACE = re.compile(r"(\r\n|\s)")
HAN = re.compile(r"([\u4E00-\u9FD5]+)")
LATIN = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)")
RUST_DIFFERS = re.compile(
    # all but characters seen to be cut alike, which hold those of `BLOCK`
    r"((?:\r\n|[^\u4E00-\u9FD5a-zA-Z0-9+#&._%\- \n!\"'()*,/:;<=>?@\[\]·\u2010-\u2027\u3000-\u301F"
    r"\uFF01-\uFF65])+)"
)
GLUED = re.compile(r"[_\-]|(?<![a-zA-Z0-9])\.|\.(?![0-9])")
"""Symbols that rjieba glues to letters and digits beside them: `b.A`, `GPT-4`, `a_b`."""
UNGLUED = "&"
"""Cut alike by both, and to jieba no other symbol than those, but for the word `AT&T`."""
STAYS = re.compile(r"AT[._\-]T|\.[0-9]+[a-zA-Z.]|常在")
"""Where no disguise helps: `AT-T` would become that word, `1.2.3` or `3.5kg` stay whole, and
`常在` before a single character is a tie to the seventh digit, which rjieba's rounded tables of
the hidden Markov model decide otherwise; the only one among frequent characters."""


class PythonSegmenter:
    """jieba's accurate mode with its hidden Markov model, in plain Python."""

    def __init__(self, tables: JiebaTables) -> None:
        self._tables = tables

    def cut(self, text: str) -> list[str]:
        """The words in order, whitespace and punctuation included."""
        return _cut_by(BLOCK, text, self.cut_block, cut_rest)

    def cut_block(self, block: str) -> list[str]:
        """The words of one stretch that `BLOCK` matches.

        The most probable path through the dictionary; runs of single characters on it, unless
        they are a word, go through the hidden Markov model.
        """
        words: list[str] = []
        singles_from = position = 0
        ends = self._best_ends(block)
        while position < len(block):
            end = ends[position]
            if end - position > 1:
                words += self._cut_singles(block[singles_from:position])
                words.append(block[position:end])
                singles_from = end
            position = end
        return words + self._cut_singles(block[singles_from:])

    def _best_ends(self, block: str) -> list[int]:
        """For every position, where the word that starts there ends on the best path."""
        tables = self._tables
        counts, longest, log_total = tables.counts, tables.longest, tables.log_total
        size = len(block)
        ends = [0] * size
        score = [0.0] * (size + 1)
        for start in range(size - 1, -1, -1):
            best, best_end = None, start + 1
            for end in range(start + 1, min(size, start + longest.get(block[start], 0)) + 1):
                if not (count := counts.get(block[start:end])):
                    continue
                total = log(count) - log_total + score[end]
                if best is None or total >= best:  # a tie goes to the longer word
                    best, best_end = total, end
            # a character outside the dictionary counts as a word of frequency one
            score[start] = -log_total + score[start + 1] if best is None else best
            ends[start] = best_end
        return ends

    def _cut_singles(self, run: str) -> list[str]:
        if len(run) < 2 or self._tables.counts.get(run):
            return list(run)
        return _cut_by(HAN, run, self._cut_by_model, _latin)

    def _cut_by_model(self, run: str) -> list[str]:
        words: list[str] = []
        begin = 0
        for index, state in enumerate(self._states(run)):
            if state in "ES":
                words.append(run[begin : index + 1])
                begin = index + 1
        return [*words, run[begin:]] if begin < len(run) else words

    def _states(self, run: str) -> str:
        """The most probable states of the characters (Viterbi); ties go to the later letter."""
        emit_b, emit_m, emit_e, emit_s = (self._tables.emit[state] for state in "BMES")
        start, trans = self._tables.start, self._tables.trans
        eb, sb = trans["E"]["B"], trans["S"]["B"]
        mm, bm = trans["M"]["M"], trans["B"]["M"]
        be, me = trans["B"]["E"], trans["M"]["E"]
        ss, es = trans["S"]["S"], trans["E"]["S"]
        first = run[0]
        b, m, e, s = (
            start[state] + self._tables.emit[state].get(first, MIN_FLOAT) for state in "BMES"
        )
        back: list[tuple[str, str, str, str]] = []
        for character in run[1:]:
            pb, pm = emit_b.get(character, MIN_FLOAT), emit_m.get(character, MIN_FLOAT)
            pe, ps = emit_e.get(character, MIN_FLOAT), emit_s.get(character, MIN_FLOAT)
            to_b = max((e + eb + pb, "E"), (s + sb + pb, "S"))
            to_m = max((m + mm + pm, "M"), (b + bm + pm, "B"))
            to_e = max((b + be + pe, "B"), (m + me + pe, "M"))
            to_s = max((s + ss + ps, "S"), (e + es + ps, "E"))
            (b, from_b), (m, from_m), (e, from_e), (s, from_s) = to_b, to_m, to_e, to_s
            back.append((from_b, from_m, from_e, from_s))
        state = max((e, "E"), (s, "S"))[1]
        path = [state]
        for choices in reversed(back):
            state = choices["BMES".index(state)]
            path.append(state)
        return "".join(reversed(path))


class RustSegmenter:
    """rjieba where it is known to agree with jieba, `PythonSegmenter` for the rest."""

    def __init__(self, rust: Any) -> None:
        self._rust = rust
        self._python: PythonSegmenter | None = None

    def cut(self, text: str) -> list[str]:
        """The words in order, whitespace and punctuation included."""
        if RUST_DIFFERS.search(text) is None:
            return self._cut_part(text)
        return _cut_by(RUST_DIFFERS, text, cut_rest, self._cut_part)

    def _cut_part(self, part: str) -> list[str]:
        if STAYS.search(part):
            return _cut_by(BLOCK, part, self._cut_block, cut_rest)
        disguise = GLUED.sub(UNGLUED, part)
        words: list[str] = self._rust.cut(disguise)
        if disguise == part:
            return words
        ends = list(accumulate(map(len, words)))
        return [part[start:end] for start, end in pairwise([0, *ends])]

    def _cut_block(self, block: str) -> list[str]:
        if not STAYS.search(block):
            return self._cut_part(block)
        if self._python is None:
            self._python = PythonSegmenter(jieba_tables())
        return self._python.cut_block(block)


def cut_rest(part: str) -> list[str]:
    """Text between blocks: one token a character, but `\\r\\n` is one token."""
    if "\r\n" not in part:
        return list(part)
    return _cut_by(SPACE, part, lambda space: [space], list)


def _latin(part: str) -> list[str]:
    return [piece for piece in LATIN.split(part) if piece]


def _cut_by(
    pattern: re.Pattern[str],
    text: str,
    cut_match: Callable[[str], list[str]],
    cut_between: Callable[[str], list[str]],
) -> list[str]:
    """The words of the stretches that match and of those between them, in order."""
    words: list[str] = []
    for index, part in enumerate(pattern.split(text)):
        words += cut_match(part) if index % 2 else cut_between(part)
    return words


@cache
def rust_segmenter() -> RustSegmenter:
    """The segmenter of this process, on an rjieba object of its own, or a MissingExtraError."""
    return RustSegmenter(require("rjieba", "metrics").Jieba())


# jieba itself is not asked to segment anything: its tokenizer object is global and mutable (a
# `load_userdict` elsewhere changes scores), and its start-up loads a file from the shared
# temporary folder with `marshal`, which any user of the machine may have put there.

MIN_FLOAT = -3.14e100
"""what jieba takes for the logarithm of zero. Source: `jieba/finalseg/__init__.py`."""


@dataclass(frozen=True)
class JiebaTables:
    """Everything that decides a segmentation."""

    counts: dict[str, int]
    """Word to frequency; few texts reach these tables, so no logarithm is taken ahead."""
    log_total: float
    longest: dict[str, int]
    """First character to the length of the longest word that starts with it."""
    start: dict[str, float]
    trans: dict[str, dict[str, float]]
    emit: dict[str, dict[str, float]]


@cache
def words_signature() -> str:
    """Signature fields that name a segmentation: jieba's version and its dictionary's hash."""
    digest = hashlib.sha256(_dictionary()).hexdigest()
    return f"tok:jieba-{importlib.metadata.version('jieba')}+hmm|dict:{digest[:12]}"


def _dictionary() -> bytes:
    # found through the metadata: importing jieba for its folder costs more than reading the file
    try:
        place = importlib.metadata.distribution("jieba").locate_file("jieba/dict.txt")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError("jieba", "metrics") from None
    return Path(str(place)).read_bytes()


@cache
def jieba_tables() -> JiebaTables:
    """The tables of the installed jieba; a MissingExtraError or DataError without them."""
    with warnings.catch_warnings():
        # jieba's own source warns on import: escapes (Python 3.12) and pkg_resources
        warnings.simplefilter("ignore")
        model = require("jieba.finalseg", "metrics")
    fields = _dictionary().decode("utf-8").split()
    words, frequencies = fields[0::3], fields[1::3]
    try:
        counts = [int(frequency) for frequency in frequencies]
    except ValueError:
        raise DataError("expected `word frequency tag` per line", where="jieba/dict.txt") from None
    by_length = sorted(words, key=len)
    return JiebaTables(
        counts=dict(zip(words, counts, strict=True)),
        log_total=log(sum(counts)),
        longest=dict(zip((word[0] for word in by_length), map(len, by_length), strict=True)),
        start=model.prob_start.P,
        trans=model.prob_trans.P,
        emit=model.prob_emit.P,
    )
