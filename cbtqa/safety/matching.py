"""Finds a rule book's anchors in a text and grades each by its surroundings.

The automaton runs once over the squeezed text; regexes only look at the sentence of a found
anchor, so a text without anchors costs next to nothing.

    find(load_rules("zh"), "我 想 自*殺")[0].case.rule     # "act.intent"
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cbtqa.safety.normalise import Offsets, fold, squeeze
from cbtqa.safety.rules import Case, RuleBook, Subject

_SENTENCE_END = "。!?\n"
_SENTENCE_MARK = re.compile(f"[{_SENTENCE_END}]")
_CLAUSE_END = re.compile(r"[,。!?;、:\n]")
_LEFT_REACH, _RIGHT_REACH = 48, 32  # characters of context; longer ones only cost time


class Found(NamedTuple):
    """A found anchor and the case that its surroundings fit."""

    case: Case
    start: int
    end: int
    """Span in code points of the text as given."""


def find(book: RuleBook, text: str, folded: str | None = None) -> list[Found]:
    """Every anchor of the book in the text, in order of appearance.

    Spaces may split a word or replace a comma. Both readings are tried; where they find the
    same place, the one with commas decides, because it knows where clauses end. `folded` saves
    a second `fold` of the text.
    """
    folded = fold(text) if folded is None else folded
    found = _find(book, folded, squeeze(folded, book.language, keep_pauses=True), True)
    if book.language == "zh" and " " in folded:
        tight = squeeze(folded, book.language)
        for place in _find(book, folded, tight, False):
            if not any(place.start < other.end and other.start < place.end for other in found):
                found.append(place)
        found.sort(key=lambda place: place.start)
    return found


def _find(book: RuleBook, folded: str, squeezed: str, keep_pauses: bool) -> list[Found]:
    places = _longest(book, squeezed)
    if not places:
        return []
    decided = [_decide(book, family, squeezed, start, end) for start, end, family in places]
    if len(squeezed) == len(folded):
        return [Found(case, low, high) for case, low, high in decided]
    offsets = Offsets(folded, book.language, keep_pauses=keep_pauses)
    return [
        Found(case, offsets.original(low), offsets.original(high - 1) + 1)
        for case, low, high in decided
    ]


def _longest(book: RuleBook, squeezed: str) -> list[tuple[int, int, int]]:
    """Found anchors as (start, end, family); one inside another of its family is dropped."""
    found: list[tuple[int, int, int]] = []
    last_of: dict[int, int] = {}
    for last, (length, families) in book.automaton.iter(squeezed):
        start, end = last + 1 - length, last + 1
        for family in families:
            place = last_of.get(family)
            if place is not None:
                before = found[place]
                if before[0] <= start and end <= before[1]:
                    continue
                if start <= before[0]:
                    found[place] = (start, end, family)
                    continue
            last_of[family] = len(found)
            found.append((start, end, family))
    return found


def _decide(
    book: RuleBook, family: int, squeezed: str, start: int, end: int
) -> tuple[Case, int, int]:
    """The case that fits, and the span in the squeezed text that it rests on."""
    left_start, left, right = _sentence(squeezed, start, end)
    masked: str | None = None
    subject: Subject | None = None
    for case in book.families[family]:
        low, high = start, end
        if case.subject is not None:
            subject = subject or _subject(book, left)
            if subject not in case.subject:
                continue
        if case.anchor is not None and not case.anchor.fullmatch(squeezed, start, end):
            continue
        before = left
        if case.outcome == "negated" and book.masks is not None:
            before = masked = masked or book.masks.sub(_hidden, left)
        if case.left is not None:
            match = case.left.search(before)
            if match is None:
                continue
            low = left_start + match.start() if match.end() == len(left) else start
        if case.right is not None:
            match = case.right.match(right)
            if match is None:
                continue
            high = end + match.end()
        if case.not_left is not None and case.not_left.search(before):
            continue
        if case.not_right is not None and case.not_right.match(right):
            continue
        if case.text is not None and not case.text.search(squeezed):
            continue
        return case, low, high
    raise AssertionError("a family ends with a case without conditions")


def _sentence(squeezed: str, start: int, end: int) -> tuple[int, str, str]:
    """Where the anchor's sentence begins, and its text before and after the anchor."""
    left_start = max(0, start - _LEFT_REACH)
    for mark in _SENTENCE_END:
        left_start = max(left_start, squeezed.rfind(mark, left_start, start) + 1)
    limit = end + _RIGHT_REACH
    found = _SENTENCE_MARK.search(squeezed, end, limit)
    right_end = found.start() if found else limit
    return left_start, squeezed[left_start:start], squeezed[end : right_end + 1]


def _hidden(match: re.Match[str]) -> str:
    return "〇" * len(match[0])


def _subject(book: RuleBook, left: str) -> Subject:
    """Who the clause that ends at the anchor speaks of; `none` when nobody is named."""
    last = None
    for match in book.mentions.finditer(left):
        if match.lastgroup != "skip":
            last = match
    if last is None:
        return "none"
    if last.lastgroup == "self":
        return "self"
    between = left[last.end() :]
    clause = _CLAUSE_END.search(between)
    if clause is None:
        return "third"
    # a new clause without a subject: it is the writer's own unless the talk was of that person
    if book.expressive.search(left[last.end() + clause.end() :]):
        return "none"
    return "third" if book.topic_of_third.search(between) else "none"
