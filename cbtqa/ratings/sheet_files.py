"""Opens a filled sheet, xlsx or CSV, without trusting it: caps, no macros, no entities.

Only this module knows the two formats; `collect` sees rows of addressed cells.
"""

from __future__ import annotations

import csv
import io
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError, MissingExtraError
from cbtqa.files import sha256_of
from cbtqa.paths import readable
from cbtqa.ratings.sheets import CODE, META_KEYS, META_TAB
from cbtqa.ratings.study import ShownTurn, column_letters, session_text

MAX_BYTES = 30 << 20
MAX_UNPACKED_BYTES = 300 << 20
MAX_PARTS = 500
MAX_ROWS = 100_000
MAX_COLUMNS = 300
_OLD_OR_LOCKED = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


@dataclass(frozen=True)
class Cell:
    where: str
    """`file:tab!G17` or `file:17:column`."""
    value: Any
    is_formula: bool = False

    @property
    def text(self) -> str:
        """The value as text, without outer blanks."""
        return "" if self.value is None else str(self.value).strip()


@dataclass(frozen=True)
class Sheet:
    name: str
    kind: str
    """`sheet` or `csv`, as the store names its sources."""
    study: str
    rubric: str
    rater: str
    sha256: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, Cell], ...]
    sessions: dict[str, str] | None = None
    """Session text by code, where sessions have a tab of their own."""


def read_sheet(path: Path) -> Sheet:
    """One filled sheet; a DataError where it is not ours, too large, damaged, or has macros."""
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError("no such file", where=str(path))
    if path.stat().st_size > MAX_BYTES:
        megabytes = path.stat().st_size >> 20
        raise DataError(f"{megabytes} MiB; a sheet has at most {MAX_BYTES >> 20}", where=path.name)
    if suffix == ".csv":
        return _read_csv(path)
    if suffix == ".xlsx":
        return _read_xlsx(path)
    raise DataError(
        f"'{suffix}' is not taken",
        where=path.name,
        hint="save it as .xlsx (Excel workbook, without macros) or .csv (UTF-8)",
    )


def _read_xlsx(path: Path) -> Sheet:
    _check_archive(path)
    book = _open_workbook(path)
    try:
        if META_TAB not in book.sheetnames:
            detail = "not a sheet of a rating study (its hidden tab is gone)"
            raise DataError(detail, where=path.name)
        meta = _read_meta(book[META_TAB], path.name)
        named = zip(book.sheetnames, book.worksheets, strict=True)
        found = [(tab, _ids_of(tab)) for name, tab in named if name != META_TAB]
        ratings = [(tab, ids) for tab, ids in found if CODE in ids and "note" in ids]
        if len(ratings) != 1:
            detail = "tabs of ratings, expected one; its hidden first row holds the column names"
            raise DataError(f"{len(ratings)} {detail}", where=path.name)
        tab, ids = ratings[0]
        rows = tuple(_rows_of(tab, ids, path.name))
        turns = next((tab for tab, ids in found if CODE in ids and "turn" in ids), None)
        sessions = None if turns is None else _sessions_of(turns)
    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        # what openpyxl raises on damaged parts; it has no error class of its own for them
        raise DataError(f"damaged: {error}", where=path.name) from None
    finally:
        book.close()
    return Sheet(path.name, "sheet", *meta, sha256_of(path), tuple(ids), rows, sessions)


def _check_archive(path: Path) -> None:
    with readable(path), path.open("rb") as stream:
        head = stream.read(8)
    if head == _OLD_OR_LOCKED:
        raise DataError(
            "an old .xls, or protected by a password",
            where=path.name,
            hint="save it as .xlsx without a password",
        )
    try:
        with zipfile.ZipFile(path) as archive:
            _check_parts(archive, path.name)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, zlib.error) as error:
        # RuntimeError is what zipfile raises for an encrypted part
        raise DataError(f"not an xlsx file: {error}", where=path.name) from None


def _check_parts(archive: zipfile.ZipFile, name: str) -> None:
    parts = archive.infolist()
    if any("vbaproject" in part.filename.lower() for part in parts):
        raise DataError(
            "holds macros; they are never run and the file is not taken",
            where=name,
            hint="save it as an .xlsx workbook without macros",
        )
    unpacked = sum(part.file_size for part in parts)
    if len(parts) > MAX_PARTS or unpacked > MAX_UNPACKED_BYTES:
        raise DataError(
            f"unpacks to {unpacked >> 20} MiB in {len(parts)} parts; more than a sheet has",
            where=name,
        )
    for part in parts:
        # the format knows no document types; with lxml installed openpyxl would let them pass
        if part.filename.endswith((".xml", ".rels")):
            plain = archive.read(part).replace(b"\0", b"")  # UTF-16 would hide it
            if b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:
                raise DataError(f"declares XML entities in {part.filename}; not taken", where=name)


def _open_workbook(path: Path) -> Any:
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ModuleNotFoundError:
        raise MissingExtraError("openpyxl", "rate") from None
    if not openpyxl.DEFUSEDXML:  # openpyxl takes defusedxml up by itself where it is installed
        raise MissingExtraError("defusedxml", "rate")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # extensions of other programs that we do not read
            return openpyxl.load_workbook(path, read_only=True, keep_links=False)
    except (InvalidFileException, KeyError, ValueError, TypeError, SyntaxError) as error:
        # broken XML is a SyntaxError, whichever parser openpyxl found
        detail = str(error) or type(error).__name__
        raise DataError(f"damaged or unsafe: {detail}", where=path.name) from None


def _read_meta(tab: Any, name: str) -> tuple[str, str, str]:
    rows = tab.iter_rows(max_row=10, max_col=2, values_only=True)
    found = {str(row[0]): str(row[1]) for row in rows if len(row) == 2 and row[0] is not None}
    if missing := [key for key in META_KEYS if key not in found]:
        raise DataError(f"its hidden tab lacks the {missing[0]}", where=name)
    return found["study"], found["rubric"], found["rater"]


def _ids_of(tab: Any) -> list[str]:
    """Column ids of the hidden first row; an empty one where a column has none."""
    row = next(tab.iter_rows(max_row=1, max_col=MAX_COLUMNS, values_only=True), ())
    return [str(value) if value is not None else "" for value in row]


def _rows_of(tab: Any, ids: Sequence[str], name: str) -> Iterator[dict[str, Cell]]:
    for number, row in enumerate(tab.iter_rows(min_row=4, max_col=MAX_COLUMNS), 4):
        if number > MAX_ROWS:
            raise DataError(f"more than {MAX_ROWS} rows", where=name)
        cells = {}
        for place, column in enumerate(ids):
            if column:
                cell = row[place] if place < len(row) else None
                where = f"{name}:{tab.title}!{column_letters(place)}{number}"
                is_formula = getattr(cell, "data_type", "") == "f"
                cells[column] = Cell(where, getattr(cell, "value", None), is_formula)
        if any(cell.value is not None for cell in cells.values()):
            yield cells


def _sessions_of(tab: Any) -> dict[str, str]:
    """Session text by code, as `study.Item.parts` writes it."""
    turns: dict[str, list[ShownTurn]] = {}
    for number, row in enumerate(tab.iter_rows(min_row=3, max_col=4, values_only=True)):
        if number > MAX_ROWS:
            raise DataError(f"more than {MAX_ROWS} turns")
        code, _, role, text = (*row, None, None, None, None)[:4]
        if code:
            turn = ShownTurn(role=str(role or "?"), text=str(text or ""))
            turns.setdefault(str(code), []).append(turn)
    return {code: session_text(shown) for code, shown in turns.items()}


def _read_csv(path: Path) -> Sheet:
    text = _decode(path)
    delimiter = ";" if text[:200].count(";") > text[:200].count(",") else ","
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    rows: list[dict[str, Cell]] = []
    told: set[tuple[str, str, str]] = set()
    try:
        ids = next(reader, [])
        if not {*META_KEYS, CODE} <= set(ids):
            raise DataError("not a sheet of a rating study (first row is gone)", where=path.name)
        for row in reader:
            cells = dict(zip(ids, row, strict=False))
            if not rows and not told and not any(cells.get(key) for key in META_KEYS):
                continue  # the row of headings
            if len(rows) >= MAX_ROWS:
                raise DataError(f"more than {MAX_ROWS} rows", where=path.name)
            told.add((cells.get("study", ""), cells.get("rubric", ""), cells.get("rater", "")))
            where = f"{path.name}:{reader.line_num}"
            rows.append(
                {name: Cell(f"{where}:{name}", cells.get(name) or None) for name in ids if name}
            )
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", where=f"{path.name}:{reader.line_num}") from None
    if len(told) != 1:
        kinds = f"{len(told)} different studies or raters in one file" if told else "no rows"
        raise DataError(f"{kinds}; one file is one rater's sheet", where=path.name)
    study, rubric, rater = told.pop()
    return Sheet(path.name, "csv", study, rubric, rater, sha256_of(path), tuple(ids), tuple(rows))


def _decode(path: Path) -> str:
    """UTF-8, or GB18030 as Excel on a Chinese Windows saves it.

    A wrong guess cannot slip through: every text is compared with the study's.
    """
    with readable(path):
        data = path.read_bytes()
    for encoding in ("utf-8-sig", "gb18030"):
        with suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            if "\x00" not in text:
                return text
    raise DataError("neither UTF-8 nor GB18030 text", where=path.name)
