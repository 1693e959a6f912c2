"""Writes the sheets: one xlsx (or CSV) per rater, for rating offline in any spreadsheet program.

Everything that people or models wrote goes in as text: no cell becomes a formula, a link or a
number, and nothing is cut. What a cell cannot hold is refused. Validation and protection help the
rater only; `collect` trusts none of them.
"""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError, require
from cbtqa.files import shipped_yaml
from cbtqa.paths import keep_private, replacing
from cbtqa.ratings.answers import CANNOT_JUDGE, CRISIS, EVIDENCE, NOTE, VALUE
from cbtqa.ratings.rubric import Criterion, Language, Rubric
from cbtqa.ratings.study import Item, StudyFolder, column_letters
from cbtqa.report.table import escape_formula
from cbtqa.safety.notices import help_text

# Column ids are the field that a column fills (`value:relevance`, `note`) or the text that it shows
# (`answer`); they are in the first, hidden row, so that headings may be in any language.
CODE = "code"
TURN = "turn"
SHOWN_PARTS = ("question", "description", "answer", "session")
_SHOWN = {
    "question": ("question", "description"),
    "answer": ("question", "description", "answer"),
    "transcript": ("question", "session"),
}
META_TAB = "_cbtqa"
"""Very hidden tab that holds which study, rubric and rater a sheet belongs to."""
META_KEYS = ("study", "rubric", "rater")


@dataclass(frozen=True)
class Column:
    id: str
    heading: str
    criterion: Criterion | None = None
    """Set for rating and evidence columns."""

    @property
    def is_shown(self) -> bool:
        """True for what the rater reads, False for what the rater fills in."""
        return self.id == CODE or self.id in SHOWN_PARTS


@cache
def _sheet_file() -> Mapping[str, Any]:
    loaded: Mapping[str, Any] = shipped_yaml("cbtqa.ratings", "wording/sheet.yaml")
    return loaded


def sheet_words(language: Language) -> Mapping[str, str]:
    words: Mapping[str, str] = _sheet_file()[language]
    return words


def sheet_columns(rubric: Rubric, language: Language) -> list[Column]:
    words = sheet_words(language)
    columns = [Column(name, words[name]) for name in (CODE, *_SHOWN[rubric.shows])]
    for criterion in rubric.criteria:
        name = criterion.name.to(language)
        columns.append(Column(f"{VALUE}:{criterion.id}", name, criterion))
        if criterion.evidence:
            heading = words["evidence"].format(name=name)
            columns.append(Column(f"{EVIDENCE}:{criterion.id}", heading, criterion))
    return columns + [Column(name, words[name]) for name in (CANNOT_JUDGE, CRISIS, NOTE)]


def column_names(folder: StudyFolder) -> Mapping[str, str]:
    """The headings of the study's sheets by column id, such as `value:relevance`."""
    columns = sheet_columns(folder.rubric, folder.study.language)
    return {column.id: column.heading for column in columns}


CELL_LIMIT = 32_767
"""Characters an xlsx cell holds; writers cut the rest without a word."""
_WIDTHS = {CODE: 9, "question": 26, "description": 46, "answer": 72, "session": 18, NOTE: 30}
_LINE_HEIGHT, _MAX_ROW_HEIGHT = 15.5, 409.0
_FIRST_ROW = 3  # hidden ids, progress, headings


def write_sheets(folder: StudyFolder, *, as_csv: bool = False) -> list[Path]:
    """Writes a sheet per rater into `sheets/`; DataError for a text too long for a cell."""
    for item in folder.items.values():
        _check_lengths(item)
    folder.sheets_path.mkdir(mode=0o700, exist_ok=True)
    paths = []
    for rater in folder.study.raters:
        path = folder.sheets_path / f"{rater}.{'csv' if as_csv else 'xlsx'}"
        with replacing(path) as temporary:
            if as_csv:
                _write_csv(folder, rater, temporary)
            else:
                _Workbook(folder, rater, temporary).write()
        keep_private(path)
        paths.append(path)
    folder.log("sheets written", kind="csv" if as_csv else "xlsx", n=len(paths))
    return paths


def _check_lengths(item: Item) -> None:
    texts = [item.question, item.description, item.answer, *(turn.text for turn in item.turns)]
    # Excel counts UTF-16 units: an emoji is two
    longest = max(len(text.encode("utf-16-le")) // 2 for text in texts)
    if longest > CELL_LIMIT:
        raise DataError(
            f"{longest} characters; a spreadsheet cell holds {CELL_LIMIT} and would cut the rest",
            where=item.id,
            hint="use the web form for this study: --no-sheets, then cbtqa rate serve",
        )


def _write_csv(folder: StudyFolder, rater: str, path: Path) -> None:
    columns = sheet_columns(folder.rubric, folder.study.language)
    meta = [folder.study.id, folder.study.rubric_sha256, rater]
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["study", "rubric", "rater", *(column.id for column in columns)])
        writer.writerow(["", "", "", *(column.heading for column in columns)])
        for shown in folder.shown_to(rater):
            parts = {CODE: shown.code, **folder.item_of(shown).parts}
            cells = [escape_formula(parts.get(column.id, "")) for column in columns]
            writer.writerow([*meta, *cells])


class _Workbook:
    def __init__(self, folder: StudyFolder, rater: str, path: Path) -> None:
        xlsxwriter = require("xlsxwriter", "rate")
        self._folder, self._rater = folder, rater
        self._shown = folder.shown_to(rater)
        self._words = sheet_words(folder.study.language)
        self._columns = sheet_columns(folder.rubric, folder.study.language)
        inert = ("strings_to_formulas", "strings_to_urls", "strings_to_numbers")
        self._book = xlsxwriter.Workbook(str(path), dict.fromkeys(inert, False))
        created = datetime.datetime.fromisoformat(folder.study.created_at)
        self._book.set_properties({"title": f"{folder.study.id} {rater}", "created": created})
        styles = _sheet_file()["styles"].items()
        self._styles = {name: self._book.add_format(dict(parts)) for name, parts in styles}

    def write(self) -> None:
        """Writes all tabs; the ratings come first, where a rater lands."""
        names = (self._words["guide_tab"], self._words["ratings_tab"])
        guide, ratings = map(self._book.add_worksheet, names)
        session_rows = self._write_sessions() if self._folder.rubric.shows == "transcript" else {}
        self._write_guide(guide)
        self._write_ratings(ratings, session_rows)
        tab, study = self._book.add_worksheet(META_TAB), self._folder.study
        rows = (("study", study.id), ("rubric", study.rubric_sha256), ("rater", self._rater))
        for row, cells in enumerate(rows):
            self._write_row(tab, row, cells)
        tab.very_hidden()
        self._book.close()

    def _write_row(self, tab: Any, row: int, texts: Iterable[str], style: str = "") -> None:
        for place, text in enumerate(texts):
            write_text_cell(tab, row, place, text, self._styles.get(style))

    def _write_ratings(self, tab: Any, session_rows: dict[str, int]) -> None:
        last = _FIRST_ROW + len(self._shown) - 1
        for place, column in enumerate(self._columns):
            tab.write_string(0, place, column.id)
            tab.write_string(2, place, column.heading, self._styles["head"])
            tab.set_column(place, place, _width(column))
            if not column.is_shown:
                self._guard_column(tab, place, column, last)
        tab.set_row(0, None, None, {"hidden": True})
        tab.set_row(2, 34)
        self._write_progress(tab, last)
        for row, shown in enumerate(self._shown, _FIRST_ROW):
            parts = {CODE: shown.code, **self._folder.item_of(shown).parts}
            for place, column in enumerate(self._columns):
                if column.id == "session":
                    target = session_rows[shown.code]
                    link = f"internal:'{self._words['session_tab']}'!A{target}"
                    text = self._words["see_session"].format(row=target)
                    tab.write_url(row, place, link, self._styles["link"], text)
                else:
                    is_free = column.id.partition(":")[0] in (EVIDENCE, NOTE)
                    style = "code" if column.id == CODE else "write" if is_free else "fill"
                    style = "text" if column.id in SHOWN_PARTS else style
                    write_text_cell(tab, row, place, parts.get(column.id, ""), self._styles[style])
            tab.set_row(row, _row_height(parts, self._columns))
        tab.freeze_panes(_FIRST_ROW, 1)
        allowed = ("format_columns", "format_rows", "select_locked_cells", "select_unlocked_cells")
        tab.protect("", dict.fromkeys(allowed, True))
        tab.set_landscape()
        tab.fit_to_pages(1, 0)
        tab.repeat_rows(2)
        tab.print_area(0, 0, last, len(self._columns) - 1)
        tab.activate()

    def _guard_column(self, tab: Any, place: int, column: Column, last: int) -> None:
        """The drop-down of a rating column, and the colour of its blanks."""
        area = (_FIRST_ROW, place, last, place)
        kind = column.id.partition(":")[0]
        if kind == VALUE and column.criterion is not None:
            criterion = column.criterion
            is_mark = criterion.kind == "mark"
            limits = {"low": criterion.low, "high": criterion.high}
            offered = {
                "validate": "list",
                "source": [1] if is_mark else list(criterion.points),
                "input_title": column.heading[:32],
                "input_message": self._anchor_message(criterion)[:255],
                "error_title": self._words["bad_value_title"][:32],
                "error_message": self._words["bad_value"].format(**limits)[:255],
            }
            tab.data_validation(*area, offered)
            if criterion.required and not is_mark:
                aside = f'=${column_letters(self._place(CANNOT_JUDGE))}{_FIRST_ROW + 1}<>""'
                rule = {"type": "formula", "criteria": aside, "stop_if_true": True}
                tab.conditional_format(*area, {**rule, "format": self._styles["set_aside"]})
                tab.conditional_format(*area, {"type": "blanks", "format": self._styles["open"]})
        elif kind in (CANNOT_JUDGE, CRISIS):
            tab.data_validation(*area, {"validate": "list", "source": [self._words["yes"]]})

    def _anchor_message(self, criterion: Criterion) -> str:
        language = self._folder.study.language
        if criterion.kind == "mark":
            return f"{self._words['mark']}\n{criterion.question.to(language)}"
        return anchors_text(criterion, language)

    def _write_progress(self, tab: Any, last: int) -> None:
        """A cell that counts finished rows as the rater goes."""
        rubric = self._folder.rubric
        filled = [self._filled(f"{VALUE}:{c.id}", last) for c in rubric.scales if c.required]
        if marks := [self._filled(f"{VALUE}:{mark.id}", last) for mark in rubric.marks]:
            filled.append(f"(({'+'.join(marks)})>0)")
        done = "*".join(filled) or "1"
        aside = self._filled(CANNOT_JUDGE, last)
        total = len(self._shown)
        formula = f'=SUMPRODUCT(--(({done}+{aside})>0))&" / {total}"'
        tab.write_string(1, 0, self._words["progress"], self._styles["strong"])
        tab.write_formula(1, 1, formula, self._styles["strong"], f"0 / {total}")

    def _filled(self, column_id: str, last: int) -> str:
        letter = column_letters(self._place(column_id))
        return f'({letter}{_FIRST_ROW + 1}:{letter}{last + 1}<>"")'

    def _place(self, column_id: str) -> int:
        return next(i for i, column in enumerate(self._columns) if column.id == column_id)

    def _write_guide(self, tab: Any) -> None:
        language, rubric = self._folder.study.language, self._folder.rubric
        tab.set_column(0, 0, 24)
        tab.set_column(1, 1, 52)
        tab.set_column(2, 2, 60)
        title = self._folder.study.title or rubric.title.to(language)
        tab.write_string(0, 0, f"{title} · {self._rater}", self._styles["title"])
        row = 2
        blocks = [
            (rubric.title.to(language), rubric.guidelines.to(language)),
            (self._words["how_title"], self._words["how"]),
            (self._words["care_title"], self._words["care"]),
            (self._words["helpline"], help_text(language, "page")),
        ]
        for heading, text in blocks:
            tab.write_string(row, 0, heading, self._styles["strong"])
            for line in text.strip().splitlines():
                row += 1
                tab.merge_range(row, 0, row, 2, "", self._styles["plain"])
                write_text_cell(tab, row, 0, line, self._styles["plain"])
                tab.set_row(row, _LINE_HEIGHT * max(1, math.ceil(display_width(line) / 130)))
            row += 2
        self._write_criteria(tab, row, rubric)
        tab.set_landscape()
        tab.fit_to_pages(1, 0)
        tab.protect("")

    def _write_criteria(self, tab: Any, row: int, rubric: Rubric) -> None:
        language = self._folder.study.language
        heads = [self._words[name] for name in ("criterion", "asked", "points")]
        self._write_row(tab, row, heads, "head")
        for criterion in rubric.criteria:
            row += 1
            scale = self._words["range"].format(low=criterion.low, high=criterion.high)
            scale = f"{scale}\n{anchors_text(criterion, language)}".strip()
            note = self._words["mark"] if criterion.kind == "mark" else scale
            cells = (criterion.name.to(language), criterion.question.to(language), note)
            self._write_row(tab, row, cells, "text")
            n_lines = max(len(note.splitlines()), math.ceil(display_width(cells[1]) / 50))
            tab.set_row(row, _LINE_HEIGHT * n_lines)

    def _write_sessions(self) -> dict[str, int]:
        """The tab of whole sessions, a row per turn; returns where each presentation begins."""
        tab = self._book.add_worksheet(self._words["session_tab"])
        heads = (CODE, TURN, "role", "text")
        self._write_row(tab, 0, heads)
        self._write_row(tab, 1, (self._words[name] for name in heads), "head")
        tab.set_row(0, None, None, {"hidden": True})
        tab.set_column(0, 2, 10)
        tab.set_column(3, 3, 110)
        tab.freeze_panes(2, 0)
        row, begins = 2, {}
        for shown in self._shown:
            begins[shown.code] = row + 1
            for number, turn in enumerate(self._folder.item_of(shown).turns, 1):
                self._write_row(tab, row, (shown.code, f"#{number}", turn.role, turn.text), "text")
                n_lines = _n_lines(turn.text, 110)
                tab.set_row(row, min(_MAX_ROW_HEIGHT, _LINE_HEIGHT * n_lines))
                row += 1
        tab.protect("", {"format_columns": True, "format_rows": True})
        return begins


def anchors_text(criterion: Criterion, language: Language) -> str:
    """What the points mean, a line for each."""
    anchors = sorted(criterion.anchors.items())
    return "\n".join(f"{point}  {words.to(language)}" for point, words in anchors)


def write_text_cell(tab: Any, row: int, place: int, text: str, style: Any) -> None:
    """One cell of text, whatever it begins with."""
    if text:
        tab.write_string(row, place, text, style)
    else:
        tab.write_blank(row, place, None, style)


def display_width(text: str) -> int:
    """Width in half-width columns; Chinese characters take two."""
    return sum(2 if ord(character) > 0x2E7F else 1 for character in text)


def _n_lines(text: str, width: int) -> int:
    return sum(max(1, math.ceil(display_width(line) / width)) for line in text.split("\n")) or 1


def _width(column: Column) -> int:
    kind = column.id.partition(":")[0]
    if kind == VALUE:
        return max(9, min(16, display_width(column.heading) + 2))
    return {"evidence": 24, CANNOT_JUDGE: 11, CRISIS: 11}.get(kind) or _WIDTHS[column.id]


def _row_height(parts: dict[str, str], columns: Sequence[Column]) -> float:
    lines = [
        _n_lines(parts[column.id], _width(column) - 2)
        for column in columns
        if column.is_shown and column.id in parts and column.id != "session"
    ]
    return min(_MAX_ROW_HEIGHT, _LINE_HEIGHT * max(lines, default=1) + 4)
