"""Words of the question inside an answer: masked before publishing, put back by `cbtqa join`.

    masked, quotes = mask_quotes(answer, source_text)
    restore_quotes(masked, quotes, source_text) == answer

Only verbatim runs are masked, so that the places alone give the words back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MASK = "〔原文〕"
"""Stands for words of the question."""
SHORTEST_QUOTE = 8
"""Characters; shorter common runs stay, or set phrases would be masked."""


class Quote(NamedTuple):
    """One masked stretch: a span of the question's source text, in code points."""

    start: int
    end: int


def mask_quotes(text: str, source_text: str) -> tuple[str, tuple[Quote, ...]]:
    """The text with every verbatim run of the source masked, and where the runs come from.

    Raises:
        ValueError: the text holds the mask already, so the places could not be told apart.
    """
    if MASK in text:
        raise ValueError(f"the text holds {MASK}")
    places = _places_of(source_text)
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
    """The text as it was before `mask_quotes`.

    Raises:
        ValueError: the number of masks is not that of the quotes, or a place is out of range.
    """
    parts = text.split(MASK)
    if len(parts) != len(quotes) + 1:
        raise ValueError(f"{len(parts) - 1} masks and {len(quotes)} places")
    restored = [parts[0]]
    for quote, part in zip(quotes, parts[1:], strict=True):
        if not 0 <= quote.start < quote.end <= len(source_text):
            raise ValueError(f"place {quote.start}-{quote.end} lies outside the question")
        restored += [source_text[quote.start : quote.end], part]
    return "".join(restored)


def _places_of(source_text: str) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for start in range(len(source_text) - SHORTEST_QUOTE + 1):
        places.setdefault(source_text[start : start + SHORTEST_QUOTE], []).append(start)
    return places


def _longest_run(
    text: str, position: int, source_text: str, places: dict[str, list[int]]
) -> Quote | None:
    best: Quote | None = None
    for start in places.get(text[position : position + SHORTEST_QUOTE], ()):
        length = SHORTEST_QUOTE
        while (
            start + length < len(source_text)
            and position + length < len(text)
            and source_text[start + length] == text[position + length]
        ):
            length += 1
        if best is None or length > best.end - best.start:
            best = Quote(start, start + length)
    return best
