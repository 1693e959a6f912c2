"""Whether a text repeats protected text: runs of characters looked up by hash.

    index = SourceIndex()
    index.add("...description of a question...")
    index.hits(["...an answer..."])         # [(0, start, end)] in code points, or []

Compared are letters and digits only, folded (width, case, traditional forms), so that changed
punctuation does not hide a copy. The index keeps 8 bytes a character and never the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cbtqa.safety.normalise import fold

QUESTION_RUN = 12
"""Characters in common with a question that count as its text. Assumed: below this, set phrases
and a quoted thought of a few words; PsyQA's titles have 13 to 25 characters."""
ANSWER_RUN = 20
"""The same for human answers, whose greetings and wishes repeat all over the collection."""
SHORTEST_RUN = 8
"""A text between this and the run's length counts when it is repeated whole."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_IGNORED = re.compile(r"[\W_]+")
Hashes = npt.NDArray[np.uint64]


class SourceIndex:
    """Hashes of every run of characters of the texts that must not be repeated."""

    def __init__(self) -> None:
        self._pending: dict[int, list[Hashes]] = {}
        self._sorted: dict[int, Hashes] = {}

    def __bool__(self) -> bool:
        return bool(self._pending or self._sorted)

    def add(self, text: str, run: int = QUESTION_RUN) -> None:
        """Adds one text; shorter than `SHORTEST_RUN` letters it is too common to protect."""
        plain = _IGNORED.sub("", fold(text))
        length = min(run, len(plain))
        if length >= SHORTEST_RUN:
            self._pending.setdefault(length, []).append(np.unique(_hashes(_codes(plain), length)))

    def _tables(self) -> dict[int, Hashes]:
        for length, parts in self._pending.items():
            known = [self._sorted[length]] if length in self._sorted else []
            self._sorted[length] = np.unique(np.concatenate([*known, *parts]))
        self._pending.clear()
        return self._sorted

    def hits(self, texts: Sequence[str]) -> list[tuple[int, int, int]]:
        """`(number of the text, start, end)` of the first repeated run of each text with one."""
        tables = self._tables()
        plain = [_IGNORED.sub("", fold(text)) for text in texts]
        # one array for all texts: a 0 between them keeps runs from crossing
        joined = _codes("\0".join(plain))
        starts = np.cumsum([0, *(len(text) + 1 for text in plain)])
        first: dict[int, tuple[int, int]] = {}
        for length, table in tables.items():
            windows = _hashes(joined, length)
            nearest = np.take(table, np.searchsorted(table, windows), mode="clip")
            for place in np.flatnonzero(nearest == windows).tolist():
                number = int(np.searchsorted(starts, place, side="right")) - 1
                start = place - int(starts[number])
                if start + length > len(plain[number]):
                    continue
                if number not in first or start < first[number][0]:
                    first[number] = (start, start + length)
        return [(number, *_unplain_span(texts[number], *first[number])) for number in sorted(first)]


def _codes(text: str) -> Hashes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)


def _hashes(codes: Hashes, length: int) -> Hashes:
    """A 64-bit hash of each window of `length` codes."""
    n_windows = len(codes) - length + 1
    if n_windows <= 0:
        return np.zeros(0, np.uint64)
    value = np.zeros(n_windows, np.uint64)
    for offset in range(length):
        value = value * _FACTOR + codes[offset : offset + n_windows]
    return value ^ (value >> np.uint64(29))


def _unplain_span(text: str, start: int, end: int) -> tuple[int, int]:
    """A span of the compared letters as a span of the text itself."""
    folded = fold(text)  # same length, same offsets
    kept = [place for place, char in enumerate(folded) if not _IGNORED.match(char)]
    return kept[start], kept[end - 1] + 1


# --- quotes --------------------------------------------------------------------------------------
# Only verbatim runs are masked, so that `cbtqa join` can put them back from their places alone.

MASK = "〔原文〕"
"""In place of words of the question."""
SHORTEST_QUOTE = 8
"""Characters; shorter common runs stay, or set phrases would be masked."""


class Quote(NamedTuple):
    """One masked stretch: a span of the question's source text, in code points."""

    start: int
    end: int


def mask_quotes(text: str, source_text: str) -> tuple[str, tuple[Quote, ...]]:
    """The text with every verbatim run of the source masked, and where the runs come from.

    A text that holds the mask already is a ValueError: the places could not be told apart.
    """
    if MASK in text:
        raise ValueError(f"the text holds {MASK}")
    places: dict[str, list[int]] = {}
    for start in range(len(source_text) - SHORTEST_QUOTE + 1):
        places.setdefault(source_text[start : start + SHORTEST_QUOTE], []).append(start)
    parts: list[str] = []
    quotes: list[Quote] = []
    position = kept_from = 0
    while position <= len(text) - SHORTEST_QUOTE:
        found = _longest_run(text, position, source_text, places)
        if found is None:
            position += 1
            continue
        quotes.append(found)
        parts += [text[kept_from:position], MASK]
        position = kept_from = position + found.end - found.start
    return "".join([*parts, text[kept_from:]]), tuple(quotes)


def restore_quotes(text: str, quotes: Sequence[Quote], source_text: str) -> str:
    """The text as it was before `mask_quotes`; ValueError where masks and quotes do not fit."""
    parts = text.split(MASK)
    if len(parts) != len(quotes) + 1:
        raise ValueError(f"{len(parts) - 1} masks and {len(quotes)} places")
    restored = [parts[0]]
    for quote, part in zip(quotes, parts[1:], strict=True):
        if not 0 <= quote.start < quote.end <= len(source_text):
            raise ValueError(f"place {quote.start}-{quote.end} lies outside the question")
        restored += [source_text[quote.start : quote.end], part]
    return "".join(restored)


def _longest_run(
    text: str, position: int, source_text: str, places: dict[str, list[int]]
) -> Quote | None:
    runs = []
    for start in places.get(text[position : position + SHORTEST_QUOTE], ()):
        pairs = zip(source_text[start:], text[position:], strict=False)
        length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        runs.append(Quote(start, start + length))
    return max(runs, key=lambda run: run.end - run.start, default=None)
