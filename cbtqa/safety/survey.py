"""Screens or scrubs a whole file: counts for people, one line an item for machines."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from cbtqa.dataset_folder import text_rows
from cbtqa.errors import DataError
from cbtqa.files import write_jsonl
from cbtqa.paths import refuse_existing
from cbtqa.records import Record, Risk
from cbtqa.safety.personal_data import scrub, what_is_missed
from cbtqa.safety.screen import FoundDanger, Hit, Screening


class ScreenedText(Record):
    """One screened item, to show."""

    id: str
    where: str
    risk: Risk
    text: str
    hits: tuple[Hit, ...]
    dangers: tuple[FoundDanger, ...] = ()


class ScreenSurvey(Record):
    """What a screened file holds."""

    n_texts: int
    """Rows that hold a text."""
    n_empty: int
    """Rows without one; they are graded nothing."""
    empty: tuple[str, ...]
    """Where the first of them are, as `file:line:column`."""
    n_by_risk: dict[Risk, int]
    n_by_rule: dict[str, int]
    """Counted hits (not suppressed ones) by rule, most frequent first."""
    n_suppressed: dict[str, int]
    """Hits that did not count, by why, most frequent first."""
    n_by_danger: dict[str, int]
    """Texts that speak of another danger, by its class."""
    n_minors: int
    """Texts whose writer says to be under 18."""
    shown: tuple[ScreenedText, ...] = Field(default=(), exclude=True)
    """The first flagged items, for people; not part of the figures."""


class ScrubSurvey(Record):
    """What personal data a file holds."""

    n_texts: int
    """Rows that hold a text."""
    n_empty: int
    """Rows without one; they are written as they are."""
    n_texts_with_data: int
    n_by_kind: dict[str, int]
    """Found places by kind, most frequent first; kinds without any are left out."""
    misses: dict[str, str]
    """Every kind to what of it is not found, for people."""


def screen_rows(
    graded: Iterable[tuple[TextRow, Screening]],
    *,
    out: Path | None = None,
    overwrite: bool = False,
    max_shown: int = 0,
) -> ScreenSurvey:
    """Counts the rows of a table with their grades.

    Args:
        out: JSONL to write, a line an item: id, where, risk and every hit with its span; the
            text itself is not repeated. A row without a text has the risk null. None writes
            nothing.
        max_shown: how many flagged items to keep whole in `shown`.

    Raises:
        UsageError: `out` exists already, without `overwrite`.
    """
    risks: Counter[Risk] = Counter({"none": 0, "concern": 0, "explicit": 0})
    rules: Counter[str] = Counter()
    suppressed: Counter[str] = Counter()
    dangers: Counter[str] = Counter()
    n_minors = 0
    empty: list[str] = []
    shown: list[ScreenedText] = []

    def lines() -> Iterator[dict[str, Any]]:
        nonlocal n_minors
        for item, screening in graded:
            if item.is_empty:
                empty.append(f"{item.where}:{item.columns[0]}")
                yield {"id": item.id, "where": item.where, "risk": None, "why": "no text"}
                continue
            dangers.update(danger.kind for danger in screening.dangers)
            n_minors += screening.is_minor
            risks[screening.risk] += 1
            rules.update(hit.rule for hit in screening.hits if hit.risk != "none")
            suppressed.update(hit.outcome for hit in screening.hits if hit.risk == "none")
            line = {"id": item.id, "where": item.where, "risk": screening.risk}
            is_flagged = screening.risk != "none" or screening.dangers
            if is_flagged and len(shown) < max_shown:
                places = {"hits": screening.hits, "dangers": screening.dangers}
                shown.append(ScreenedText(**line, text=item.text, **places))
            listed = {
                "hits": [asdict(hit) for hit in screening.hits],
                "dangers": [asdict(danger) for danger in screening.dangers],
            }
            yield {**line, **listed, "is_minor": screening.is_minor}

    _write_or_run(lines(), out, overwrite)
    return ScreenSurvey(
        n_texts=risks.total(),
        n_empty=len(empty),
        empty=tuple(empty[:MOST_NAMED]),
        n_by_risk=dict(risks),
        n_by_rule=dict(rules.most_common()),
        n_suppressed=dict(suppressed.most_common()),
        n_by_danger=dict(dangers.most_common()),
        n_minors=n_minors,
        shown=tuple(shown),
    )


def scrub_file(
    path: Path,
    *,
    columns: Sequence[str] = (),
    encoding: str = "utf-8",
    out: Path | None = None,
    overwrite: bool = False,
) -> ScrubSurvey:
    """Masks personal data in every row of a table.

    Args:
        out: JSONL to write, a line a row with all its columns, the text columns masked; None
            only counts.

    Raises:
        DataError: see `read_texts`.
        UsageError: `out` exists already, without `overwrite`.
    """
    kinds: Counter[str] = Counter()
    n_texts = n_empty = n_touched = 0

    def lines() -> Iterator[dict[str, Any]]:
        nonlocal n_texts, n_empty, n_touched
        for item in read_texts(path, columns, encoding):
            masked = {name: scrub(item.row[name]) for name in item.columns if item.row[name]}
            found = [place.kind for scrubbed in masked.values() for place in scrubbed.found]
            kinds.update(found)
            n_texts += not item.is_empty
            n_empty += item.is_empty
            n_touched += bool(found)
            yield {**item.row, **{name: scrubbed.text for name, scrubbed in masked.items()}}

    _write_or_run(lines(), out, overwrite)
    return ScrubSurvey(
        n_texts=n_texts,
        n_empty=n_empty,
        n_texts_with_data=n_touched,
        n_by_kind=dict(kinds.most_common()),
        misses=dict(what_is_missed()),
    )


def _write_or_run(lines: Iterator[dict[str, Any]], out: Path | None, overwrite: bool) -> None:
    if out is None:
        deque(lines, maxlen=0)
    else:
        refuse_existing(out, overwrite=overwrite)
        write_jsonl(out, lines)


MOST_NAMED = 5
"""Rows without a text that are named."""


# --- texts ---------------------------------------------------------------------------------------
_USUAL = (("question", "description"), ("text",), ("answer_text",), ("answer",))
_ID_COLUMNS = ("id", "question_id", "questionID")


@dataclass(frozen=True, slots=True)
class TextRow:
    """One row's text and its place."""

    id: str
    """The row's own id, or its place when it has none."""
    where: str
    """`file:line`."""
    text: str
    """The columns' texts joined by newlines."""
    columns: tuple[str, ...]
    """The text columns of the file."""
    row: Mapping[str, Any]

    @property
    def is_empty(self) -> bool:
        """Whether it holds no text: null, or blanks alone."""
        return not self.text.strip()


def read_texts(
    path: Path, columns: Sequence[str] = (), encoding: str = "utf-8"
) -> Iterator[TextRow]:
    """Every row's text in order; memory does not grow with the file (a JSON array is read whole).

    Args:
        columns: the text columns; empty means the usual ones, decided by the first row.

    Raises:
        DataError: the file holds no text at all, a column is missing, or holds other than text.
    """
    chosen = tuple(columns)
    where: str | None = None
    has_text = False
    for where, row in text_rows(path, encoding=encoding):
        chosen = chosen or _usual_columns(row, where)
        parts = [_cell(row, column, where) for column in chosen]
        text = "\n".join(part for part in parts if part)
        found = next((str(row[name]) for name in _ID_COLUMNS if row.get(name) is not None), where)
        item = TextRow(found, where, text, chosen, row)
        has_text |= not item.is_empty
        yield item
    if where is None:
        raise DataError("the file holds no rows", where=str(path))
    if not has_text:
        raise DataError("no row holds a text", where=f"{path}:{chosen[0]}")


def _usual_columns(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    for usual in _USUAL:
        if usual[0] in row:
            return tuple(column for column in usual if column in row)
    hint = "name the text column with --column NAME"
    raise DataError(f"no text column among {sorted(row)}", where=where, hint=hint)


def _cell(row: Mapping[str, Any], column: str, where: str) -> str:
    if column not in row:
        found = f"no column '{column}' among {sorted(row)}"
        raise DataError(found, where=where, hint="--column NAME")
    value = row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"expected text, found {type(value).__name__}", where=f"{where}:{column}")
    return value
