"""How much a dataset's answers look as if one template wrote them.

Measured on a sample of fixed size, chosen by a hash of the question id: distinct counts fall as
texts grow in number, so only samples of one size compare.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from itertools import pairwise
from typing import Any

from cbtqa.records import STEP_NAMES, Record

SAMPLE_SIZE = 2_000
OPENING = 8
SHORT_OPENING = 6
TOP_OPENINGS = 5


class Openings(Record):
    """How varied the first characters of one step (or of the whole answer) are in the sample."""

    column: str
    n: int
    n_distinct_short: int
    """Distinct first 6 characters."""
    n_distinct: int
    """Distinct first 8 characters."""
    most_common: tuple[tuple[str, int], ...]
    """Openings of 8 characters that occur more than once, most frequent first."""


class TemplateLikeness(Record):
    """Signs that the answers come from a template, on a sample of at most 2,000."""

    n_sampled: int
    distinct_2: float | None
    """Distinct character pairs over all pairs of the sampled answers; None without any pair."""
    n_repeated_answers: int
    """Sampled answers whose whole text another sampled answer has too."""
    openings: tuple[Openings, ...]


def sample_key(item_id: str, salt: str = "") -> int:
    """A number that depends on the id alone: the smallest N make a repeatable random sample."""
    return int.from_bytes(blake2b(f"{salt}\0{item_id}".encode(), digest_size=8).digest())


class AnswerSample:
    """The `size` rows with the smallest hash of their id: the same whatever the order."""

    def __init__(self, size: int = SAMPLE_SIZE) -> None:
        self._size = size
        self._heap: list[tuple[int, str, tuple[str, ...]]] = []

    def offer(self, row: Mapping[str, Any]) -> None:
        """Takes the row if it belongs to the sample of all rows offered so far."""
        key = -sample_key(row["id"], "likeness")
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, self._entry(key, row))
        elif key > self._heap[0][0]:
            heapq.heapreplace(self._heap, self._entry(key, row))

    def _entry(self, key: int, row: Mapping[str, Any]) -> tuple[int, str, tuple[str, ...]]:
        heads = tuple((row[name] or "")[:OPENING] for name in STEP_NAMES)
        return key, row["answer"], heads

    def likeness(self) -> TemplateLikeness:
        """What the sampled answers have in common."""
        answers = [answer for _, answer, _ in self._heap]
        pairs: set[str] = set()
        n_pairs = 0
        for text in answers:
            pairs.update(map("".join, pairwise(text)))
            n_pairs += max(0, len(text) - 1)
        columns = {"answer": [answer[:OPENING] for answer in answers]}
        for place, name in enumerate(STEP_NAMES):
            columns[name] = [heads[place] for _, _, heads in self._heap if heads[place]]
        return TemplateLikeness(
            n_sampled=len(answers),
            distinct_2=len(pairs) / n_pairs if n_pairs else None,
            n_repeated_answers=sum(n for n in Counter(answers).values() if n > 1),
            openings=tuple(_openings(name, found) for name, found in columns.items() if found),
        )


def _openings(column: str, found: list[str]) -> Openings:
    counts = Counter(found)
    return Openings(
        column=column,
        n=len(found),
        n_distinct_short=len({text[:SHORT_OPENING] for text in found}),
        n_distinct=len(counts),
        most_common=tuple(
            item
            for item in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TOP_OPENINGS]
            if item[1] > 1
        ),
    )
