"""Takes filled sheets back: every cell is checked, good ones are kept, bad ones reported.

    result = collect(folder, store, [Path("R1.xlsx"), Path("R2.csv")])
    result.n_kept, [rejection.where for rejection in result.rejections]

Nothing is guessed. A row counts only when its code belongs to the sheet's rater and its text is
the text of the study (so rows may be sorted, but not mixed up or edited); a value only when it is
plainly one of those on offer. `２`, `2.0` and `2分` are plain; `1-2`, a date or a formula is not.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError
from cbtqa.ratings.answers import (
    CANNOT_JUDGE,
    CRISIS,
    EVIDENCE,
    NOTE,
    VALUE,
    Answer,
    Change,
    Scalar,
    check_change,
    is_done,
)
from cbtqa.ratings.rubric import NO_MARK
from cbtqa.ratings.sheet_files import Cell, Sheet, read_sheet
from cbtqa.ratings.sheets import CODE, SHOWN_PARTS, column_names
from cbtqa.ratings.store import Event, Store
from cbtqa.ratings.study import StudyFolder, clean_text
from cbtqa.records import Reason, Rejection
from cbtqa.report.table import Table

_YES = {"是", "有", "yes", "y", "1", "x", "√", "✓", "✔", "true"}
_NO = {"否", "无", "没有", "no", "n", "0", "false"}


@dataclass
class CollectedSheet:
    name: str
    rater: str | None = None
    """None when the file was refused as a whole."""
    n_kept: int = 0
    """Cells newly stored."""
    n_known: int = 0
    """Cells that the store already held with the same value."""
    n_done: int = 0
    """Presentations of this rater that are complete now."""
    n_shown: int = 0
    rejections: list[Rejection] = field(default_factory=list)

    @property
    def done(self) -> str:
        return f"{self.n_done}/{self.n_shown}"

    def counts(self) -> dict[str, Any]:
        names = ("n_kept", "n_known", "n_refused", "n_done", "n_shown")
        counts = {**vars(self), "n_refused": len(self.rejections)}
        return {"file": self.name, "rater": self.rater} | {name: counts[name] for name in names}

    def count_done(self, folder: StudyFolder, store: Store) -> None:
        if self.rater:
            answers, plan = store.answers(self.rater), folder.shown_to(self.rater)
            self.n_shown = len(plan)
            self.n_done = sum(is_done(folder, answers.get(shown.code)) for shown in plan)

    def refuse(self, item: str, detail: str, where: str, raw: object = None) -> None:
        """Takes note of one refusal; `raw` is what was found, when that is a single value."""
        self.rejections.append(
            Rejection(
                item_id=item,
                stage="collect",
                reason=Reason.BAD_ROW,
                detail=detail,
                where=where,
                raw=None if raw is None else str(raw)[:1000],
            )
        )


@dataclass
class Collected:
    sheets: list[CollectedSheet] = field(default_factory=list)

    @property
    def rejections(self) -> list[Rejection]:
        return [rejection for sheet in self.sheets for rejection in sheet.rejections]

    @property
    def n_kept(self) -> int:
        return sum(sheet.n_kept for sheet in self.sheets)

    def table(self) -> Table:
        heads = ["file", "rater", "kept", "known", "refused", "done"]
        rows = [
            (one.name, one.rater, one.n_kept, one.n_known, len(one.rejections), one.done)
            for one in self.sheets
        ]
        return Table(heads, rows)

    def summary(self) -> dict[str, Any]:
        refused = [rejection.model_dump(mode="json") for rejection in self.rejections]
        sheets = [sheet.counts() for sheet in self.sheets]
        return {"n_kept": self.n_kept, "sheets": sheets, "refused": refused}


def collect(
    folder: StudyFolder, store: Store, paths: Sequence[Path], *, replace: bool = False
) -> Collected:
    """Stores the good cells, the rest are rejections; `replace`: also over other stored values."""
    collected = Collected()
    for path in paths:
        result = CollectedSheet(path.name)
        collected.sheets.append(result)
        try:
            names = column_names(folder)
            sheet = read_sheet(path, {heading: name for name, heading in names.items()})
            _check_belongs(folder, sheet)
        except DataError as error:
            detail = str(error) + (f" ({error.hint})" if error.hint else "")
            result.refuse(path.name, detail, path.name)
            continue
        _Reading(folder, store, sheet, result, replace).run()
    n_refused = len(collected.rejections)
    folder.log("collected", n_files=len(paths), n_kept=collected.n_kept, n_refused=n_refused)
    return collected


def _check_belongs(folder: StudyFolder, sheet: Sheet) -> None:
    study = folder.study
    if sheet.study != study.id:
        raise DataError(f"a sheet of study {sheet.study}, not {study.id}", where=sheet.name)
    if sheet.rubric != study.rubric_sha256:
        raise DataError(
            f"made with another version of the rubric ({sheet.rubric[:8]}, the study has "
            f"{study.rubric_sha256[:8]})",
            where=sheet.name,
        )
    if sheet.rater not in study.raters:
        raise DataError(f"rater '{sheet.rater}' is not in this study", where=sheet.name)
    names = column_names(folder)
    if missing := [heading for name, heading in names.items() if name not in sheet.columns]:
        raise DataError(f"columns are missing: {', '.join(missing)}", where=sheet.name)


class _Reading:
    """One sheet on its way into the store."""

    def __init__(
        self, folder: StudyFolder, store: Store, sheet: Sheet, result: CollectedSheet, replace: bool
    ) -> None:
        self._folder, self._store, self._sheet = folder, store, sheet
        self._result, self._replace = result, replace
        self._names = column_names(folder)
        self._known = store.answers(sheet.rater)
        self._events: list[Event] = []

    def run(self) -> None:
        """Judges every row and stores what is good, in one transaction."""
        rater, result = self._sheet.rater, self._result
        result.rater = rater
        seen: dict[str, str] = {}
        for row in self._sheet.rows:
            code_cell = row[CODE]
            code = unicodedata.normalize("NFKC", str(code_cell.value or "")).strip()
            if not code:
                self._refuse_without_code(row)
            elif code in seen:
                result.refuse(code, f"the row stands twice (see {seen[code]})", code_cell.where)
            else:
                seen[code] = code_cell.where
                self._read_row(code, row)
        result.n_kept = self._store.add(rater, self._sheet.kind, self._events)
        result.count_done(self._folder, self._store)
        for presentation in self._folder.shown_to(rater):
            if presentation.code not in seen:
                result.refuse(presentation.code, "the row is missing", self._sheet.name)

    def _refuse_without_code(self, row: Mapping[str, Cell]) -> None:
        code_cell = row[CODE]
        own = (cell for name, cell in row.items() if name not in (CODE, *SHOWN_PARTS))
        filled = next((cell for cell in own if not _is_blank(cell)), None)
        if code_cell.merged:
            detail = f"its code is hidden: {_merged_words(code_cell)}"
            self._result.refuse("?", detail, code_cell.where)
        elif filled is not None:
            detail = "ratings in a row without a code"
            self._result.refuse("?", detail, filled.where, filled.value)

    def _read_row(self, code: str, row: Mapping[str, Cell]) -> None:
        shown = self._folder.by_code.get(code)
        if shown is None or shown.rater != self._sheet.rater:
            owner = f" (it belongs to {shown.rater})" if shown else ""
            detail = f"{code} is not in the plan of {self._sheet.rater}{owner}"
            self._result.refuse(code, detail, row[CODE].where)
            return
        if edited := self._edited_part(code, row):
            detail = "the text is not the one of the study: edited, or moved from another row"
            if edited.merged:
                detail = f"its text is hidden: {_merged_words(edited)}"
            self._result.refuse(code, detail, edited.where)
            return
        answer = self._known.get(code, Answer())
        clashing = self._clashing_marks(row)
        for name in clashing:
            none = self._names[f"{VALUE}:{NO_MARK}"]
            detail = f"'{none}' and another mark exclude each other; neither is taken"
            self._refuse_cell(code, name, row[name], detail)
        for name in self._names:
            if name in (CODE, *SHOWN_PARTS, *clashing):
                continue
            if row[name].merged:
                self._refuse_cell(code, name, row[name], _merged_words(row[name]))
            elif not _is_blank(row[name]):
                self._read_cell(code, name, row[name], answer)

    def _refuse_cell(self, code: str, name: str, cell: Cell, detail: str) -> None:
        """Refuses a cell under the heading that the rater sees."""
        detail = f"{self._names[name]}: {detail}"
        self._result.refuse(code, detail, cell.where, cell.value)

    def _clashing_marks(self, row: Mapping[str, Cell]) -> list[str]:
        """Columns of set marks where `none` is set too: which one is meant is unknown."""
        names = []
        for name in (f"{VALUE}:{mark.id}" for mark in self._folder.rubric.marks):
            with suppress(ValueError):
                if not _is_blank(row[name]) and _plain_value(name, row[name]) == 1:
                    names.append(name)
        return names if f"{VALUE}:{NO_MARK}" in names and len(names) > 1 else []

    def _edited_part(self, code: str, row: Mapping[str, Cell]) -> Cell | None:
        """The first cell whose text differs from the study's, or None."""
        parts = self._folder.item_of(self._folder.by_code[code]).parts
        for name in SHOWN_PARTS:
            if name not in row:
                continue
            found = row[name].text
            if name == "session" and self._sheet.sessions is not None:
                found = self._sheet.sessions.get(code, "")
            if comparable(found) != comparable(parts.get(name, "")):
                return row[name]
        return None

    def _read_cell(self, code: str, name: str, cell: Cell, answer: Answer) -> None:
        """Adds one filled cell to what will be stored, or refuses it."""
        stored = answer.get(name)
        try:
            change = Change(code, name, _plain_value(name, cell))
            admitted = admit(self._folder, self._sheet.rater, change, answer, self._replace)
        except ValueError as error:
            self._refuse_cell(code, name, cell, str(error))
            return
        if admitted is None:
            self._result.n_known += 1
            return
        self._known[code] = answer
        # the same cell of the same sheet, read twice, is one event
        parts = (self._sheet.sha256, code, admitted.field, repr(stored), repr(admitted.value))
        key = "sheet:" + hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
        self._events.append(Event(key, admitted))


def admit(
    folder: StudyFolder, rater: str, change: Change, answer: Answer, replace: bool
) -> Change | None:
    """The change to store, already taken into `answer`; None when it is stored as it is.

    Raises:
        ValueError: not allowed, or the store holds another value and `replace` is not set.
    """
    checked = check_change(folder, rater, change, answer)
    stored = answer.get(checked.field)
    if stored == checked.value:
        return None
    if stored is not None and not replace:
        raise ValueError(
            f"the store already holds {stored!r}; --replace takes {checked.value!r} instead"
        )
    answer.set(checked.field, checked.value)
    return checked


def _merged_words(cell: Cell) -> str:
    return f"the cells {cell.merged} are merged, and only the first holds something; split them"


def _is_blank(cell: Cell) -> bool:
    return cell.value is None or (isinstance(cell.value, str) and not cell.text)


def _plain_value(name: str, cell: Cell) -> Scalar:
    """The value of a cell; ValueError for a formula, or what would have to be guessed."""
    if cell.is_formula:
        raise ValueError("a formula, expected a value (copy it and paste it as a value)")
    kind = name.partition(":")[0]
    if kind in (NOTE, EVIDENCE):
        return cell.text
    if kind == VALUE:
        return _plain_number(cell)
    if kind in (CANNOT_JUDGE, CRISIS):
        word = unicodedata.normalize("NFKC", cell.text).strip().casefold()
        if word in _YES or word in _NO:
            return True if word in _YES else None
        raise ValueError(f"found {cell.value!r}, expected 是 / yes, or empty")
    raise ValueError(f"unknown column '{name}'")


def _plain_number(cell: Cell) -> int:
    value = cell.value
    if isinstance(value, bool):
        raise ValueError(f"found the logical value {str(value).upper()}, expected a whole number")
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    text = unicodedata.normalize("NFKC", cell.text).strip(" '\u200b\ufeff")
    if plain := re.fullmatch(r"([+-]?[0-9]{1,4})(?:\.0*)?\s*分?", text):
        return int(plain[1])
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta) or _DATE.search(text):
        raise ValueError(
            f"found the date {text}, expected a whole number; spreadsheets make dates of 1-2 or 1/2"
        )
    raise ValueError(f"found {value!r}, expected a whole number")


_DATE = re.compile(r"[0-9]+月[0-9]+日|[0-9]-[A-Z][a-z]{2}|[A-Z][a-z]{2}-[0-9]|[0-9]{4}[-/][0-9]")
_ESCAPED = re.compile(r"_x00(?:0[0-9A-Fa-f]|1[0-9A-Fa-f]|20)_")
"""Control characters as xlsx writes them, such as `_x000D_`."""


def comparable(text: str) -> str:
    """Text with everything left out that a spreadsheet changes by itself: blanks of all kinds."""
    cleaned = _ESCAPED.sub("", unicodedata.normalize("NFC", clean_text(text.removeprefix("'"))))
    return "".join(cleaned.translate(_INVISIBLE).split())


_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))
