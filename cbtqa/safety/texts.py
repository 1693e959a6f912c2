"""Reads the texts of any table for screening and scrubbing: one text a row, with its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtqa.dataset_folder import source_rows
from cbtqa.errors import DataError

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


def read_texts(
    path: Path, columns: Sequence[str] = (), encoding: str = "utf-8"
) -> Iterator[TextRow]:
    """Every row's text in order; memory does not grow with the file (a JSON array is read whole).

    Args:
        columns: the text columns; empty means the usual ones, decided by the first row.

    Raises:
        DataError: the file is empty, a column is missing, or a row holds no text.
    """
    chosen = tuple(columns)
    where: str | None = None
    for where, row in source_rows(path, encoding=encoding):
        chosen = chosen or _usual_columns(row, where)
        parts = [_cell(row, column, where, column == chosen[0]) for column in chosen]
        text = "\n".join(part for part in parts if part)
        if not text.strip():
            raise DataError("no text in this row", where=f"{where}:{chosen[0]}")
        found = next((str(row[name]) for name in _ID_COLUMNS if row.get(name) is not None), where)
        yield TextRow(found, where, text, chosen, row)
    if where is None:
        raise DataError("the file holds no rows", where=str(path))


def _usual_columns(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    for usual in _USUAL:
        if usual[0] in row:
            return tuple(column for column in usual if column in row)
    hint = "name the text column with --column NAME"
    raise DataError(f"no text column among {sorted(row)}", where=where, hint=hint)


def _cell(row: Mapping[str, Any], column: str, where: str, is_required: bool) -> str:
    if column not in row:
        found = f"no column '{column}' among {sorted(row)}"
        raise DataError(found, where=where, hint="--column NAME")
    value = row[column]
    if value is None and not is_required:
        return ""
    if not isinstance(value, str):
        raise DataError(f"expected text, found {type(value).__name__}", where=f"{where}:{column}")
    return value
