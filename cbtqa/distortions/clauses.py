"""Clauses and sentences of Chinese text, as spans: the units that evidence is quoted in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

_CLAUSE_END = re.compile(
    r"[，。！？；：…,.!?;:~～　\t-\r\x1c-\x1f\x85\u2028\u2029]+|(?<=[^\x00-\x7f]) +(?=[^\x00-\x7f])"
)
_CLAUSE = re.compile(r"[^，。！？；：…,.!?;:~～　\s]+")
"""A clause of a text without spaces: the same as between `_CLAUSE_END`, in one pass."""
_SENTENCE_END = re.compile(r"(?:[。！？…\n\r!?]|\.(?=\s|$)|;{2,})+[”’」』\"')）]*")


Bounds: TypeAlias = Sequence[tuple[int, int]]
"""Starts and ends of parts of a text, in order."""


class Span(NamedTuple):
    """A part of a text, in code points; `end` is exclusive."""

    start: int
    end: int

    def of(self, text: str) -> str:
        return text[self.start : self.end]


def split_clauses(text: str) -> list[Span]:
    """Parts between punctuation marks, in order, without blanks at the ends; none is empty."""
    return [Span(*bound) for bound in clause_bounds(text)]


def clause_bounds(text: str) -> Bounds:
    """The same as plain pairs, which are faster to make."""
    if " " not in text:
        return [found.span() for found in _CLAUSE.finditer(text)]
    return _between(text, _CLAUSE_END, keep_mark=False)


def split_sentences(text: str) -> list[Span]:
    """Sentences with their closing marks, in order; none is empty."""
    return _between(text, _SENTENCE_END, keep_mark=True)


def _between(text: str, mark: re.Pattern[str], *, keep_mark: bool) -> list[Span]:
    spans, start = [], 0
    cuts = [(found.start(), found.end()) for found in mark.finditer(text)]
    for cut_start, cut_end in [*cuts, (len(text), len(text))]:
        part = text[start : cut_end if keep_mark else cut_start]
        if stripped := part.strip():
            start += len(part) - len(part.lstrip())
            spans.append(Span(start, start + len(stripped)))
        start = cut_end
    return spans
