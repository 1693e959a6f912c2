"""Scores that lie in a table already: CSV, TSV, JSONL or Parquet, one row per session.

    read_scores(Path("scores.csv"), load_instrument("ctrs-ladder"), ScoreColumns(arm="system"))

The columns are named by `ScoreColumns`; item columns find their item by id or name, or by words
that begin like the item's id ("Focusing on Key Cognitions" is `focus`), each item once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError, UsageError
from cbtqa.files import read_rows
from cbtqa.simulation.instruments import Instrument
from cbtqa.simulation.session_scores import SessionScore, all_totals

MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "-"})


@dataclass(frozen=True)
class ScoreColumns:
    """Which column holds what."""

    patient: str = "patient"
    arm: str = "arm"
    session: str = "session"
    """May be absent: then every row is session 1."""
    words: str | None = None
    """Words of the therapist, for the length audit."""
    items: tuple[str, ...] = ()
    """`COLUMN=item`, where the name alone does not tell."""
    arm_factors: tuple[str, ...] = ()
    """Names of the factors that arm names are made of."""
    separator: str = "_"
    """Between them."""


@dataclass(frozen=True)
class ScoreFile:
    """What was read."""

    scores: tuple[SessionScore, ...]
    mapping: Mapping[str, str]
    """Column to item."""


def read_scores(path: Path, instrument: Instrument, columns: ScoreColumns) -> ScoreFile:
    """Scores of sessions from a table.

    Raises:
        DataError: `file:line:column` of a value that is no rating on the item's scale, a missing
            column, or no row at all.
        UsageError: columns that cannot be matched to the instrument's items.
    """
    mapping: dict[str, str] = {}
    scores: list[SessionScore] = []
    for where, row in read_rows(path):
        if not mapping:
            mapping = match_items(list(row), instrument, columns)
            for name in (columns.patient, columns.arm):
                if name not in row:
                    hint = f"columns: {', '.join(row)}"
                    raise DataError(f"no column '{name}'", where=where, hint=hint)
        scores.append(_score(where, row, len(scores) + 1, mapping, instrument, columns))
    if not scores:
        raise DataError("holds no row", where=str(path))
    return ScoreFile(tuple(scores), mapping)


def _score(
    where: str,
    row: Mapping[str, Any],
    number: int,
    mapping: Mapping[str, str],
    instrument: Instrument,
    columns: ScoreColumns,
) -> SessionScore:
    values = {
        item: _rating(row.get(column), instrument.scales[item], f"{where}:{column}")
        for column, item in mapping.items()
    }
    arm = str(row[columns.arm]).strip()
    if not arm or not str(row[columns.patient]).strip():
        raise DataError("an empty arm or patient", where=where)
    numbers = {"session": 1.0}
    for name, column in (("session", columns.session), ("words", columns.words)):
        if column is not None and column in row:
            numbers[name] = _number(row[column], f"{where}:{column}")
    return SessionScore(
        session_id=f"row {number}",
        arm=arm,
        patient=str(row[columns.patient]).strip(),
        number=int(numbers["session"]),
        values=values,
        totals=all_totals(instrument, values),
        factors=_factors(arm, columns, where),
        numbers=numbers,
    )


def _factors(arm: str, columns: ScoreColumns, where: str) -> dict[str, str]:
    if not columns.arm_factors:
        return {}
    parts = arm.split(columns.separator)
    if len(parts) != len(columns.arm_factors):
        raise DataError(
            f"arm '{arm}' has {len(parts)} parts at '{columns.separator}', expected "
            f"{', '.join(columns.arm_factors)}",
            where=where,
        )
    return dict(zip(columns.arm_factors, parts, strict=True))


def _rating(value: object, scale: tuple[int, int], where: str) -> float | None:
    text = str(value).strip() if value is not None else ""
    if text.lower() in MISSING:
        return None
    number = _number(value, where)
    if not scale[0] <= number <= scale[1]:
        raise DataError(f"{text} lies outside {scale[0]}-{scale[1]}", where=where)
    return number


def _number(value: object, where: str) -> float:
    try:
        number = float(str(value))
    except ValueError:
        raise DataError(f"{value!r} is no number", where=where) from None
    if number != number or abs(number) == float("inf"):
        raise DataError(f"{value!r} is no number", where=where)
    return number


def match_items(
    names: Sequence[str], instrument: Instrument, columns: ScoreColumns
) -> dict[str, str]:
    """Column to item.

    Raises:
        UsageError: an item without a column, with two, or a mapping that names nothing.
    """
    given = _given(names, instrument, columns.items)
    taken = {columns.patient, columns.arm, columns.session, columns.words}
    free = [name for name in names if name not in given and name not in taken]
    mapping = dict(given)
    for item in instrument.items:
        if item.id in mapping.values():
            continue
        exact = {item.id, item.name.en.lower(), item.name.zh}
        hits = [name for name in free if name.strip().lower() in exact]
        hits = hits or [name for name in free if _begins_alike(item.id, name)]
        if len(hits) != 1:
            found = f"several columns ({', '.join(hits)})" if hits else "no column"
            raise UsageError(
                f"{instrument.id}: {found} for the item '{item.id}'",
                hint=f"add --item 'COLUMN={item.id}'; columns: {', '.join(free)}",
            )
        mapping[hits[0]] = item.id
        free.remove(hits[0])
    return mapping


def _given(names: Sequence[str], instrument: Instrument, given: Sequence[str]) -> dict[str, str]:
    mapping = {}
    for entry in given:
        column, _, item = entry.rpartition("=")
        if column not in names or item not in instrument.scales:
            raise UsageError(
                f"--item {entry}: expected COLUMN=item",
                hint=f"items: {', '.join(instrument.scales)}; columns: {', '.join(names)}",
            )
        mapping[column] = item
    return mapping


def _begins_alike(item: str, column: str) -> bool:
    """True when every word of the id begins a word of the column."""
    words = re.findall(r"[a-z0-9]+", column.lower())
    return all(any(word.startswith(part) for word in words) for part in item.split("_"))
