"""Report on a file of questions: counts, lengths, tags, answers, and rejections.

Memory does not grow with the file: lengths are kept as histograms, examples are bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from pydantic import Field

from cbtqa.psyqa.damage import (
    has_entities,
    has_replacement,
    is_hardly_chinese,
    is_long_number,
    is_rounded,
)
from cbtqa.psyqa.questions import MAX_CHARS, QuestionReader, SourceItem, read_questions
from cbtqa.records import Question, Record, Rejection

GRADED_TOGETHER = 256
N_EXAMPLES = 3
N_KEYWORDS = 20
MAX_DISTINCT_KEYWORDS = 100_000


class Spread(Record):
    """Distribution of a count; all None when there is nothing to count."""

    n: int
    """How many were measured; empty texts are not."""
    min: int | None = None
    median: float | None = None
    mean: float | None = None
    p95: int | None = None
    """Smallest value that at least 95 % do not exceed."""
    max: int | None = None


class Fault(Record):
    """One kind of rejected row or answer."""

    n: int
    examples: tuple[str, ...]
    """The first few, each `file:line:field: what is wrong`."""


class DataReport(Record):
    """What `check_file` found. Lengths are in characters (Unicode code points)."""

    file: str
    format: str
    encoding: str
    has_bom: bool
    n_bytes: int
    columns: dict[str, str]
    """Field to the column it was read from."""
    unused_columns: tuple[str, ...]
    makes_ids: bool
    """True when no row has an id, and ids are made from the content."""
    n_rows: int
    n_usable: int
    """Questions; n_rows = n_usable + n_further + the sum of `rejected`."""
    n_further: int = 0
    """Rows of an earlier row's question: another answer, another conversation."""
    rejected: dict[str, Fault] = Field(default_factory=dict)
    """Rows by `Reason`."""
    id_range: tuple[int, int] | None = None
    """Smallest and largest id, when all ids are whole numbers."""
    lengths: dict[str, Spread]
    """Of `question`, `description`, `answer`."""
    n_without_description: int
    n_without_keywords: int
    n_distinct_keywords: int
    top_keywords: dict[str, int]
    """How many questions carry each, most frequent first."""
    answers_per_question: Spread
    n_answers: int
    n_labelled_answers: int
    """Answers with strategy spans."""
    strategies: dict[str, int]
    """Strategy spans by type, most frequent first."""
    rejected_answers: Fault | None = None
    """Answers that do not fit; their questions stay usable."""
    n_cleaned: int
    """Questions from which control or invisible characters were taken."""
    n_replacement: int
    """Questions holding U+FFFD: traces of a wrong decoding before this file was written."""
    n_entities: int = 0
    """Questions holding HTML entities such as `&nbsp;`, which stay as they are."""
    n_hardly_chinese: int = 0
    """Questions of which less than a fifth is Chinese."""
    n_long_ids: int = 0
    """Ids of more digits than a spreadsheet keeps."""
    n_rounded_ids: int = 0
    """Those of them that are zeros where a spreadsheet writes zeros."""
    risk: dict[str, int] | None = None
    """Questions by risk grade; None when no screen was given."""


def check_file(
    path: Path,
    *,
    encoding: str = "utf-8",
    columns: Mapping[str, str] | None = None,
    first_turn: bool = False,
    max_chars: int = MAX_CHARS,
    grade: Callable[[list[Question]], list[str]] | None = None,
) -> DataReport:
    """Reads the whole file once and reports on it.

    Args:
        grade: gives the risk grades of some questions, such as `cbtqa.safety` does.

    Raises:
        DataError: as `read_questions` does.
    """
    reader = read_questions(
        path,
        encoding=encoding,
        columns=columns,
        first_turn=first_turn,
        with_answers=True,
        max_chars=max_chars,
    )
    tally = _Tally(grade)
    for row in reader:
        if isinstance(row, Rejection):
            tally.add_rejection(row)
        else:
            tally.add(row)
    return tally.report(reader)


def _count_fault(faults: dict[str, Fault], kind: str, rejection: Rejection) -> None:
    known = faults.get(kind, Fault(n=0, examples=()))
    examples = (*known.examples, f"{rejection.where}: {rejection.detail}")[:N_EXAMPLES]
    faults[kind] = Fault(n=known.n + 1, examples=examples)


class _Tally:
    def __init__(self, grade: Callable[[list[Question]], list[str]] | None) -> None:
        self._grade = grade
        self._waiting: list[Question] = []
        self._risk: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._lengths: dict[str, Counter[int]] = {
            name: Counter() for name in ("question", "description", "answer", "answers")
        }
        self._keywords: Counter[str] = Counter()
        self._strategies: Counter[str] = Counter()
        self._rejected: dict[str, Fault] = {}
        self._bad_answers: dict[str, Fault] = {}
        self._ids: tuple[int, int] | None = None
        self._are_ids_numbers = True
        self._further: Counter[str] = Counter()  # by question, in a file of one answer a row

    def add_rejection(self, rejection: Rejection) -> None:
        _count_fault(self._rejected, str(rejection.reason), rejection)

    def add(self, item: SourceItem) -> None:
        if item.is_further:
            self._counts["further"] += 1
            self._further[item.question.id] += len(item.answers)
            self._add_answers(item)
            return
        question = item.question
        self._counts["usable"] += 1
        self._counts["cleaned"] += item.n_cleaned > 0
        self._counts["replacement"] += has_replacement(question.source_text)
        self._counts["entities"] += has_entities(question.source_text)
        self._counts["hardly_chinese"] += is_hardly_chinese(question.source_text)
        self._counts["long_ids"] += is_long_number(question.id)
        self._counts["rounded_ids"] += is_rounded(question.id)
        self._counts["without_description"] += not question.description
        self._counts["without_keywords"] += not question.keywords
        self._lengths["question"][len(question.question)] += 1
        if question.description:
            self._lengths["description"][len(question.description)] += 1
        for keyword in question.keywords:
            if keyword in self._keywords or len(self._keywords) < MAX_DISTINCT_KEYWORDS:
                self._keywords[keyword] += 1
        self._add_id(question.id)
        self._add_answers(item)
        if self._grade is not None:
            self._waiting.append(question)
            if len(self._waiting) == GRADED_TOGETHER:
                self._count_risk(self._grade)

    def _count_risk(self, grade: Callable[[list[Question]], list[str]]) -> None:
        self._risk.update(grade(self._waiting))
        self._waiting.clear()

    def _add_id(self, item_id: str) -> None:
        if not (item_id.isascii() and item_id.isdigit() and len(item_id) < 19):
            self._are_ids_numbers = False
            return
        number = int(item_id)
        low, high = self._ids or (number, number)
        self._ids = min(low, number), max(high, number)

    def _add_answers(self, item: SourceItem) -> None:
        if not item.is_further:
            self._lengths["answers"][len(item.answers)] += 1
        for answer in item.answers:
            self._lengths["answer"][len(answer.text)] += 1
            self._counts["labelled"] += bool(answer.strategies)
            self._strategies.update(span.type for span in answer.strategies)
        for rejection in item.rejected_answers:
            _count_fault(self._bad_answers, "answers", rejection)

    def report(self, reader: QuestionReader) -> DataReport:
        if self._grade is not None:
            self._count_risk(self._grade)
        source, counts = reader.source, self._counts
        each = self._lengths["answers"]
        for n in filter(None, self._further.values()):
            n_first = min(1, each[1])  # the first row of such a question has one, or none
            each[n_first] -= 1
            each[n_first + n] += 1
        self._lengths["answers"] = +each
        spreads = {name: _spread(lengths) for name, lengths in self._lengths.items()}
        answers_per_question = spreads.pop("answers")
        return DataReport(
            file=source.path.name,
            format=source.format,
            encoding=source.encoding,
            has_bom=source.has_bom,
            n_bytes=source.n_bytes,
            columns=reader.columns,
            unused_columns=tuple(reader.unused_columns),
            makes_ids=reader.makes_ids,
            n_rows=reader.n_rows,
            n_usable=counts["usable"],
            n_further=counts["further"],
            rejected=self._rejected,
            id_range=self._ids if self._are_ids_numbers else None,
            lengths=spreads,
            n_without_description=counts["without_description"],
            n_without_keywords=counts["without_keywords"],
            n_distinct_keywords=len(self._keywords),
            top_keywords=dict(self._keywords.most_common(N_KEYWORDS)),
            answers_per_question=answers_per_question,
            n_answers=self._lengths["answer"].total(),
            n_labelled_answers=counts["labelled"],
            strategies=dict(self._strategies.most_common()),
            rejected_answers=self._bad_answers.get("answers"),
            n_cleaned=counts["cleaned"],
            n_replacement=counts["replacement"],
            n_entities=counts["entities"],
            n_hardly_chinese=counts["hardly_chinese"],
            n_long_ids=counts["long_ids"],
            n_rounded_ids=counts["rounded_ids"],
            risk=dict(self._risk) if self._grade is not None else None,
        )


def _spread(histogram: Counter[int]) -> Spread:
    n = histogram.total()
    if not n:
        return Spread(n=0)
    values, times = np.array(sorted(histogram.items())).T
    # the values at these places of the sorted list
    places = [(n - 1) // 2, n // 2, -(-n * 95 // 100) - 1]
    low, high, p95 = values[np.searchsorted(np.cumsum(times), places, side="right")].tolist()
    return Spread(
        n=n,
        min=int(values[0]),
        median=(low + high) / 2,
        mean=round(int(values @ times) / n, 2),
        p95=p95,
        max=int(values[-1]),
    )
