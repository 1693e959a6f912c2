"""Sheets as the raters' programs save them: the same ratings come out, or the cell is named."""

from __future__ import annotations

import csv
import datetime
import io
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from cbtqa.ratings.collect import Collected, collect, comparable
from cbtqa.ratings.sheets import write_sheets
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import StudyFolder
from tests.ratings.conftest import MakeStudy, edit_sheet, rate_rows, write_rows

Columns = dict[str, int]


@pytest.fixture
def filled(folder: StudyFolder, tmp_path: Path) -> Path:
    """R1's sheet with 2 in every rating cell."""
    edit = rate_rows(lambda _code, _name: 2)
    return edit_sheet(folder.sheets_path / "R1.xlsx", tmp_path / "R1.xlsx", edit)


def rewrite(path: Path, change: Callable[[str, str], str]) -> Path:
    """Every XML part of a workbook changed by `change(name, text)`, as other programs write it."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            if name.endswith((".xml", ".rels")):
                content = change(name, content.decode()).encode()
            archive.writestr(name, content)
    return path


def in_tabs(pattern: str, new: str) -> Callable[[str, str], str]:
    def change(name: str, text: str) -> str:
        return re.sub(pattern, new, text) if "worksheets/sheet" in name else text

    return change


def all_kept(folder: StudyFolder, collected: Collected) -> bool:
    n_cells = len(folder.shown_to("R1")) * len(folder.rubric.criteria)
    return collected.rejections == [] and collected.n_kept == n_cells


@pytest.mark.parametrize(
    "change",
    [
        in_tabs('<dimension ref="[^"]*"', '<dimension ref="A1"'),  # WPS
        in_tabs('<dimension ref="[^"]*"', '<dimension ref="A1:B2"'),
        in_tabs('<dimension ref="[^"]*" ?/>', ""),  # Google Sheets, Numbers
        in_tabs(r' spans="[^"]*"', ""),
        in_tabs(r'(<row )r="\d+"', r"\1"),  # rows and cells without numbers are in order
        in_tabs("<sheetData>", '<sheetPr filterMode="1"/><sheetData>'),
        in_tabs(r'<row r="5"', '<row r="5" hidden="1"'),  # a filter hides rows
        in_tabs(
            "</sheetData>", '<row r="1048576" ht="15"><c r="C1048576" s="1"/></row></sheetData>'
        ),
    ],
)
def test_what_programs_write_about_the_size_and_the_view_changes_no_rating(
    folder: StudyFolder, store: Store, filled: Path, change: Callable[[str, str], str]
) -> None:
    assert all_kept(folder, collect(folder, store, [rewrite(filled, change)]))


def test_sessions_are_read_whatever_size_their_tab_claims(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    turns = [{"role": "client", "text": f"虚构的第 {n} 句"} for n in range(30)]
    source = write_rows(tmp_path / "a.jsonl", [{"id": "s1", "turns": turns}])
    made = {"predictions": (str(source),), "questions": None, "rubric": "tes", "n": 1}
    study = make_study(**made).folder
    sheet = rewrite(
        write_sheets(study)[0], in_tabs('<dimension ref="[^"]*"', '<dimension ref="A1"')
    )
    with Store(study.store_path, study.study.id) as opened:
        assert collect(study, opened, [sheet]).rejections == []


PLAIN = {
    "1分": 1,
    "1 分": 1,
    "２分": 2,
    "2.0": 2,
    "２．０": 2,
    "2.": 2,
    "+1": 1,
    "'2": 2,
    "2\u00a0": 2,
    "\u30002": 2,
    "2\ufeff": 2,
    "①": 1,
    "1\t": 1,
}
UNCLEAR: dict[Any, str] = {
    datetime.date(2026, 1, 2): "found the date 2026-01-02",
    "1月2日": "spreadsheets make dates of 1-2",
    "2-Jan": "spreadsheets make dates of 1-2",
    "1-2": "found '1-2', expected a whole number",
    "1～2": "found '1～2', expected",
    "两分": "found '两分', expected",
    "2.5分": "found '2.5分', expected",
    "3分": "found 3, expected a whole number from 0 to 2",
    "#N/A": "found '#N/A'",
    "2 1": "found '2 1'",
    "=E5": "a formula, expected a value (copy it and paste it as a value)",
}


def write_down(folder: StudyFolder, path: Path, values: Iterable[Any]) -> Path:
    """R1's sheet with these values in the first rating column, from the first row on."""

    def edit(tab: Any, columns: Columns) -> None:
        for row, value in enumerate(values, 4):
            tab.cell(row, columns["value:relevance"]).value = value

    return edit_sheet(folder.sheets_path / "R1.xlsx", path, edit)


def test_numbers_written_plainly_are_taken(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    path = write_down(folder, tmp_path / "R1.xlsx", PLAIN)
    assert collect(folder, store, [path]).rejections == []
    answers = store.answers("R1")
    for place, (written, kept) in enumerate(PLAIN.items(), 1):
        assert answers[f"R1-{place:03}"].values == {"relevance": kept}, written


def test_what_may_mean_two_things_is_refused_under_the_heading_that_the_rater_sees(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    path = write_down(folder, tmp_path / "R1.xlsx", UNCLEAR)
    refused = collect(folder, store, [path]).rejections
    assert len(refused) == len(UNCLEAR)
    for row, (one, said) in enumerate(zip(refused, UNCLEAR.values(), strict=True), 4):
        assert one.where == f"R1.xlsx:评分!E{row}"
        assert one.detail.startswith(folder.rubric.criteria[0].name.zh + ": ")
        assert said in one.detail


def test_a_sheet_in_english_is_answered_with_its_english_headings(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study(language="en").folder
    write_sheets(study)

    def edit(tab: Any, columns: Columns) -> None:
        tab.cell(4, columns["value:relevance"]).value = "good"

    source = study.sheets_path / "R1.xlsx"
    path = edit_sheet(source, tmp_path / "R1.xlsx", edit, tab="Ratings")
    with Store(study.store_path, study.study.id) as opened:
        (refused,) = collect(study, opened, [path]).rejections
    assert refused.detail.startswith(f"{study.rubric.criteria[0].name.en}: found 'good'")


def test_merged_cells_are_named_and_what_the_first_one_holds_is_kept(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    def edit(tab: Any, columns: Columns) -> None:
        rate_rows(lambda _code, _name: 2)(tab, columns)
        tab.merge_cells("E4:E6")
        tab.merge_cells("A8:A9")
        tab.merge_cells("D11:D12")

    path = edit_sheet(folder.sheets_path / "R1.xlsx", tmp_path / "R1.xlsx", edit)
    collected = collect(folder, store, [path])
    said = {one.where: one.detail for one in collected.rejections}
    for cell, area in {"E5": "E4:E6", "E6": "E4:E6", "A9": "A8:A9", "D12": "D11:D12"}.items():
        assert f"the cells {area} are merged" in said[f"R1.xlsx:评分!{cell}"], cell
    assert store.answers()["R1-001"].values["relevance"] == 2
    assert "relevance" not in store.answers()["R1-002"].values


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("\n", " "),
        lambda text: text.replace("\n", ""),
        lambda text: text.replace("\n", "_x000D_\n"),
        lambda text: text.replace("\n", "\r\n") + "  ",
        lambda text: text.replace("，", "，\u200b"),
        lambda text: f"\u3000{text}\u00a0",
    ],
)
def test_blanks_and_line_ends_that_a_program_changed_are_no_edit(
    make_study: MakeStudy, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    rows = [{"question_id": f"q{n}", "text": f"先说说看，\n\n再想一想（{n}）"} for n in range(4)]
    source = write_rows(tmp_path / "two-lines.jsonl", rows)
    study = make_study(predictions=(f"a={source}",), n=4).folder
    write_sheets(study)

    def edit(tab: Any, columns: Columns) -> None:
        for row in range(4, tab.max_row + 1):
            cell = tab.cell(row, columns["answer"])
            cell.value = damage(cell.value)

    path = edit_sheet(study.sheets_path / "R1.xlsx", tmp_path / "R1.xlsx", edit)
    with Store(study.store_path, study.study.id) as opened:
        assert collect(study, opened, [path]).rejections == []


def test_one_other_character_is_still_an_edit() -> None:
    assert comparable("先说说看，\n再想一想") == comparable("先说说看， 再想一想_x000D_")
    assert comparable("先说说看，再想一想") != comparable("先说说看，再想想")
    assert comparable("_x005F_x000D_") != comparable("")


def test_rows_and_columns_that_a_rater_adds_or_moves_are_passed_over(
    folder: StudyFolder, store: Store, filled: Path
) -> None:
    def edit(tab: Any, _columns: Columns) -> None:
        tab.insert_cols(3)
        tab.insert_cols(1)
        tab.insert_rows(7)
        tab.insert_rows(1, 2)
        tab.title = "工作表1"

    book = openpyxl.load_workbook(filled)
    edit(book["评分"], {})
    book.create_sheet("Sheet3")
    book.save(filled)
    assert all_kept(folder, collect(folder, store, [filled]))


def test_a_sheet_whose_hidden_row_is_gone_is_read_by_its_headings(
    folder: StudyFolder, store: Store, filled: Path
) -> None:
    book = openpyxl.load_workbook(filled)
    book["评分"].delete_rows(1)
    book.save(filled)
    assert all_kept(folder, collect(folder, store, [filled]))


def test_a_copy_of_the_tab_is_told_by_name(folder: StudyFolder, store: Store, filled: Path) -> None:
    book = openpyxl.load_workbook(filled)
    book.copy_worksheet(book["评分"])
    book.save(filled)
    (refused,) = collect(folder, store, [filled]).rejections[:1]
    assert "2 tabs of ratings (评分, 评分 Copy), expected one" in refused.detail


def test_a_column_that_stands_twice_is_told_by_its_places(
    folder: StudyFolder, store: Store, filled: Path
) -> None:
    book = openpyxl.load_workbook(filled)
    book["评分"].cell(1, 15).value = "value:relevance"
    book.save(filled)
    (refused,) = collect(folder, store, [filled]).rejections[:1]
    assert "the column 'value:relevance' stands twice (E, O)" in refused.detail


def test_a_flood_of_merged_cells_is_refused_before_it_is_read(
    folder: StudyFolder, store: Store, filled: Path
) -> None:
    flood = "".join(f'<mergeCell ref="E{n}:F{n}"/>' for n in range(4, 10_010))
    change = in_tabs("</sheetData>", f"</sheetData><mergeCells>{flood}</mergeCells>")
    (refused,) = collect(folder, store, [rewrite(filled, change)]).rejections
    assert " merged areas in xl/worksheets/sheet" in refused.detail


def test_strict_workbooks_and_notes_of_programs_are_told_as_what_they_are(
    folder: StudyFolder, store: Store, filled: Path, tmp_path: Path
) -> None:
    ours, strict = "http://schemas.openxmlformats.org", "http://purl.oclc.org/ooxml"
    rewrite(filled, lambda _name, text: text.replace(ours, strict))
    note = tmp_path / "~$R2.xlsx"
    note.write_bytes(b"\x05rater" + b" " * 159)
    one, two = collect(folder, store, [filled, note]).rejections
    assert "Strict Open XML" in one.detail and "not as Strict" in one.detail
    assert "a note that a spreadsheet program leaves" in two.detail


def csv_text(source: Path, delimiter: str, **style: Any) -> str:
    """A rater's CSV with 2 in every rating cell, written in another style."""
    with source.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.reader(stream))
    for row in rows[2:]:
        for place, name in enumerate(rows[0]):
            row[place] = "2" if name.startswith("value:") else row[place]
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, **style).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "encoding", "delimiter", "before", "after"),
    [
        ("R1.txt", "utf-16", "\t", "", ""),  # Excel: Unicode text
        ("R1.tsv", "utf-8", "\t", "", ""),
        ("R1.csv", "utf-8-sig", "\t", "", ""),
        ("R1.csv", "gb18030", "\t", "", ""),
        ("R1.csv", "utf-8-sig", ";", "sep=;\r\n", ""),
        ("R1.csv", "utf-16", ",", "sep=,\r\n", ""),
        ("R1.csv", "utf-8", ",", "表格 1\r\n\r\n", ""),  # Numbers: the table's name
        ("R1.csv", "utf-8", ",", "", ",,,,,,\r\n\r\n , ,\r\n"),
    ],
)
def test_text_is_read_with_the_separator_and_the_encoding_of_any_program(
    folder: StudyFolder,
    store: Store,
    tmp_path: Path,
    name: str,
    encoding: str,
    delimiter: str,
    before: str,
    after: str,
) -> None:
    text = csv_text(write_sheets(folder, as_csv=True)[0], delimiter)
    (tmp_path / name).write_bytes((before + text + after).encode(encoding))
    assert all_kept(folder, collect(folder, store, [tmp_path / name]))


def test_quotes_around_every_cell_and_moved_headings_are_read(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    source = write_sheets(folder, as_csv=True)[0]
    text = csv_text(source, ",", quoting=csv.QUOTE_ALL)
    (tmp_path / "R1.csv").write_text(text, encoding="utf-8")
    assert all_kept(folder, collect(folder, store, [tmp_path / "R1.csv"]))


def test_one_tab_saved_as_text_is_told_from_a_sheet(
    folder: StudyFolder, store: Store, filled: Path, tmp_path: Path
) -> None:
    rows = openpyxl.load_workbook(filled)["评分"].iter_rows(values_only=True)
    with (tmp_path / "R1.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    (refused,) = collect(folder, store, [tmp_path / "R1.csv"]).rejections
    assert "one tab of a workbook saved as text" in refused.detail
    assert "(send the workbook itself (.xlsx))" in refused.detail


def test_text_of_another_kind_is_told(folder: StudyFolder, store: Store, tmp_path: Path) -> None:
    (tmp_path / "R1.txt").write_text("你好\n1\t2\n", encoding="utf-8")
    (refused,) = collect(folder, store, [tmp_path / "R1.txt"]).rejections
    assert "its row of column names is gone" in refused.detail
