"""Opens a filled sheet, xlsx or CSV, without trusting it: caps, no macros, no entities.

Only this module knows the two formats; `collect` sees rows of addressed cells.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from cbtqa.errors import DataError, require
from cbtqa.files import sha256_of
from cbtqa.paths import readable
from cbtqa.ratings.answers import CANNOT_JUDGE, CRISIS, NOTE
from cbtqa.ratings.rubric import Language
from cbtqa.ratings.sheets import CODE, META_KEYS, META_TAB, SHOWN_PARTS, TURN, sheet_words
from cbtqa.ratings.study import ShownTurn, column_letters, session_text

MAX_BYTES = 30 << 20
MAX_UNPACKED_BYTES = 300 << 20
MAX_PARTS = 500
MAX_ROWS = 100_000
MAX_COLUMNS = 300
MAX_AREAS = 10_000
HEAD_ROWS = 10
"""The names of the columns are looked for in so many rows."""
DELIMITERS = ",;\t|"
_OLD_OR_LOCKED = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


@dataclass(frozen=True)
class Cell:
    where: str
    """`file:tab!G17` or `file:17:column`."""
    value: Any
    is_formula: bool = False
    merged: str = ""
    """The merged area that hides this cell, such as `E4:E6`."""

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


def read_sheet(path: Path, headings: Mapping[str, str] | None = None) -> Sheet:
    """One filled sheet; a DataError where it is not ours, too large, damaged, or has macros.

    Args:
        headings: column ids by heading, for a sheet whose hidden row of ids is gone.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError("no such file", where=str(path))
    if path.stat().st_size > MAX_BYTES:
        megabytes = path.stat().st_size >> 20
        raise DataError(f"{megabytes} MiB; a sheet has at most {MAX_BYTES >> 20}", where=path.name)
    if path.name.startswith(("~$", ".~", "._")):
        raise DataError("a note that a spreadsheet program leaves, not a sheet", where=path.name)
    if suffix in (".csv", ".tsv", ".txt"):
        return _read_csv(path)
    if suffix == ".xlsx":
        return _read_xlsx(path, headings or {})
    raise DataError(
        f"'{suffix}' is not taken",
        where=path.name,
        hint="save it as .xlsx (Excel workbook, without macros) or .csv (UTF-8)",
    )


def _read_xlsx(path: Path, headings: Mapping[str, str]) -> Sheet:
    _check_archive(path)
    book = _open_workbook(path)
    try:
        if META_TAB not in book.sheetnames:
            detail = "not a sheet of a rating study (its hidden tab is gone)"
            raise DataError(detail, where=path.name)
        meta = _read_meta(book[META_TAB], path.name)
        tabs = [_Tab(tab, path.name, headings) for tab in book.worksheets if tab.title != META_TAB]
        ratings = [tab for tab in tabs if NOTE in tab.ids]
        if len(ratings) != 1:
            found = f" ({', '.join(tab.title for tab in ratings)})" if ratings else ""
            detail = f"{len(ratings)} tabs of ratings{found}, expected one with its headings"
            raise DataError(detail, where=path.name)
        rows, ids = tuple(ratings[0].rows()), ratings[0].ids
        turns = next((tab for tab in tabs if TURN in tab.ids), None)
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
    with suppress(KeyError):
        if b"purl.oclc.org/ooxml" in archive.read("xl/workbook.xml"):
            hint = "save it as .xlsx (Excel workbook), not as Strict Open XML"
            raise DataError("saved as Strict Open XML, which is not read", where=name, hint=hint)
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
            n_merged = plain.count(b"mergeCell ")
            if n_merged > MAX_AREAS:  # openpyxl would read them for minutes
                raise DataError(f"{n_merged} merged areas in {part.filename}", where=name)


def _open_workbook(path: Path) -> Any:
    openpyxl = require("openpyxl", "rate")
    require("defusedxml", "rate")  # which openpyxl takes up by itself
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # extensions of other programs that we do not read
            return openpyxl.load_workbook(path, read_only=True, keep_links=False)
    except (InvalidFileException, KeyError, ValueError, TypeError, SyntaxError) as error:
        # broken XML is a SyntaxError, whichever parser openpyxl found
        detail = str(error) or type(error).__name__
        raise DataError(f"damaged or unsafe: {detail}", where=path.name) from None


def _read_meta(tab: Any, name: str) -> tuple[str, str, str]:
    tab.reset_dimensions()
    rows = tab.iter_rows(max_row=10, max_col=2, values_only=True)
    found = {str(row[0]): str(row[1]) for row in rows if len(row) == 2 and row[0] is not None}
    if missing := [key for key in META_KEYS if key not in found]:
        raise DataError(f"its hidden tab lacks the {missing[0]}", where=name)
    return found["study"], found["rubric"], found["rater"]


class _Tab:
    """A tab with its columns found: by the hidden row of ids, or by the headings under it."""

    def __init__(self, tab: Any, name: str, headings: Mapping[str, str]) -> None:
        # WPS writes `A1` for the size of every tab, Google Sheets and Numbers write none
        tab.reset_dimensions()
        self._tab, self._name, self.title = tab, name, str(tab.title)
        self._areas = _merged_areas(tab)
        head = tab.iter_rows(max_row=HEAD_ROWS, max_col=MAX_COLUMNS, values_only=True)
        texts = [[_text(value) for value in row] for row in head]
        self._begins, self.ids = _find_ids(texts, {**_heading_ids(), **headings})
        _refuse_doubled(self.ids, f"{name}:{tab.title}")

    def rows(self) -> Iterator[dict[str, Cell]]:
        """The filled rows under the headings, wherever they were moved to."""
        blank, n_filled = None, 0
        rows = self._tab.iter_rows(min_row=self._begins + 1, max_col=len(self.ids))
        for number, row in enumerate(rows, self._begins + 1):
            if row is blank:
                continue  # openpyxl gives the same tuple for each row of a gap
            if all(cell.value is None for cell in row):
                blank = row
                continue
            n_filled += 1
            if n_filled > MAX_ROWS:
                raise DataError(f"more than {MAX_ROWS} rows", where=self._name)
            here = [area for area in self._areas if area.top <= number <= area.bottom]
            cells = {
                column: self._cell(number, place, row[place] if place < len(row) else None, here)
                for place, column in enumerate(self.ids)
                if column
            }
            if not _is_heading(cells[CODE].text):
                yield cells

    def _cell(self, number: int, place: int, cell: Any, areas: Sequence[_Area]) -> Cell:
        address = f"{column_letters(place)}{number}"
        merged = next((one.name for one in areas if one.hides(number, place)), "")
        is_formula = getattr(cell, "data_type", "") == "f"
        where = f"{self._name}:{self._tab.title}!{address}"
        return Cell(where, getattr(cell, "value", None), is_formula, merged)


def _refuse_doubled(ids: Sequence[str], where: str) -> None:
    doubled = next((one for one in ids if one and ids.count(one) > 1), None)
    if doubled:
        places = [column_letters(at) for at, one in enumerate(ids) if one == doubled]
        detail = f"the column '{doubled}' stands twice ({', '.join(places)})"
        raise DataError(detail, where=where)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _find_ids(rows: Sequence[Sequence[str]], headings: Mapping[str, str]) -> tuple[int, list[str]]:
    """The number of the row that names the columns, and their ids; no ids when there is none."""
    named = [[headings.get(text, "") for text in row] for row in rows]
    for candidates in (rows, named):
        for number, row in enumerate(candidates, 1):
            if CODE in row and (NOTE in row or TURN in row):
                width = max(place for place, text in enumerate(row) if text) + 1
                return number, list(row[:width])
    return 0, []


@dataclass(frozen=True)
class _Area:
    name: str
    """As spreadsheets write it, such as `E4:E6`."""
    left: int
    top: int
    right: int
    bottom: int

    def hides(self, number: int, place: int) -> bool:
        """True for a cell that is covered by the first one of the area."""
        is_inside = self.top <= number <= self.bottom and self.left <= place <= self.right
        return is_inside and (number, place) != (self.top, self.left)


def _merged_areas(tab: Any) -> list[_Area]:
    """Merged cells, which openpyxl does not tell in its reading mode."""
    from openpyxl.utils import range_boundaries

    part = tab.parent._archive.read(tab._worksheet_path)
    names = re.findall(rb"<(?:\w+:)?mergeCell\s[^>]*?ref=[\"']([A-Z0-9:$]{3,30})[\"']", part)
    areas = []
    for name in (one.decode().replace("$", "") for one in names):
        left, top, right, bottom = range_boundaries(name)
        areas.append(_Area(name, left - 1, top, right - 1, bottom))
    return areas


def _sessions_of(tab: _Tab) -> dict[str, str]:
    """Session text by code, as `study.Item.parts` writes it."""
    turns: dict[str, list[ShownTurn]] = {}
    for row in tab.rows():
        if code := row[CODE].text:
            role, text = (row[name].value if name in row else None for name in ("role", "text"))
            turn = ShownTurn(role=str(role or "?"), text=str(text or ""))
            turns.setdefault(code, []).append(turn)
    return {code: session_text(shown) for code, shown in turns.items()}


@cache
def _heading_ids() -> Mapping[str, str]:
    """Column ids by the headings that are the same in every rubric, in both languages."""
    names = (CODE, NOTE, TURN, "role", "text", *SHOWN_PARTS, CANNOT_JUDGE, CRISIS)
    return {sheet_words(one)[name]: name for one in get_args(Language) for name in names}


def _is_heading(text: str) -> bool:
    """True for what is in the code's column of a row that is not for rating."""
    words = [sheet_words(language) for language in get_args(Language)]
    return text in {CODE, *(one[name] for one in words for name in (CODE, "progress"))}


def _read_csv(path: Path) -> Sheet:
    text = _decode(path)
    delimiter, n_before = _find_header(text, path.name)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[dict[str, Cell]] = []
    told: set[tuple[str, str, str]] = set()
    try:
        for _ in range(n_before):
            next(reader)
        ids = [name.strip() for name in next(reader)]
        _refuse_doubled(ids, path.name)
        for row in reader:
            cells = dict(zip(ids, row, strict=False))
            if not any(text.strip() for text in row) or _is_heading(cells.get(CODE, "").strip()):
                continue
            if len(rows) >= MAX_ROWS:
                raise DataError(f"more than {MAX_ROWS} rows", where=path.name)
            of = cells.get("study", ""), cells.get("rubric", ""), cells.get("rater", "")
            if any(of):
                told.add(of)
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


def _find_header(text: str, name: str) -> tuple[str, int]:
    """The character between cells, and how many rows stand before the row of ids.

    Numbers writes the table's name, Excel `sep=;`, before it.
    """
    is_tab = False
    for delimiter in DELIMITERS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        with suppress(csv.Error):
            for number, row in enumerate(islice(reader, HEAD_ROWS)):
                names = {cell.strip() for cell in row}
                if {*META_KEYS, CODE} <= names:
                    return delimiter, number
                is_tab |= {CODE, NOTE} <= names
    if is_tab:
        detail = "one tab of a workbook saved as text: it does not say of which study it is"
        raise DataError(detail, where=name, hint="send the workbook itself (.xlsx)")
    raise DataError("not a sheet of a rating study (its row of column names is gone)", where=name)


def _decode(path: Path) -> str:
    """UTF-8, or UTF-16 and GB18030 as Excel saves them.

    A wrong guess cannot slip through: every text is compared with the study's.
    """
    with readable(path):
        data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        with suppress(UnicodeDecodeError):
            return data.decode("utf-16")
    for encoding in ("utf-8-sig", "gb18030"):
        with suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            if "\x00" not in text:
                return text
    raise DataError("neither UTF-8, UTF-16 nor GB18030 text", where=path.name)
