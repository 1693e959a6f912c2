"""Sheets: text stays text, nothing is cut, and a rater finds everything in place."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from cbtqa.errors import DataError, MissingExtraError
from cbtqa.ratings.collect import collect
from cbtqa.ratings.sheet_files import read_sheet
from cbtqa.ratings.sheets import CELL_LIMIT, write_sheets
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import StudyFolder
from cbtqa.ratings.web.app import create_app
from cbtqa.report.table import FORMULA_STARTS, escape_formula
from tests.ratings.conftest import (
    FORMULA,
    MakeStudy,
    edit_sheet,
    rate_rows,
    write_inputs,
    write_rows,
)

HOSTILE_STARTS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "http://example.invalid",
    "0123",
    "2024-01-02",
    "_x0041_",
    "'quoted",
    "{=1}",
]


def study_with_texts(make_study: MakeStudy, tmp_path: Path, texts: list[str]) -> StudyFolder:
    values = write_inputs(tmp_path, n=len(texts))
    rows = [{"question_id": f"q{i}", "text": text} for i, text in enumerate(texts)]
    path = write_rows(tmp_path / "own.jsonl", rows)
    return make_study(
        predictions=(f"own={path}",), n=len(texts), questions=values["questions"]
    ).folder


def test_no_text_becomes_a_formula_a_link_or_a_number(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    folder = study_with_texts(make_study, tmp_path, HOSTILE_STARTS)
    path = write_sheets(folder)[0]
    tab = openpyxl.load_workbook(path)["评分"]
    column = next(cell.column for cell in tab[1] if cell.value == "answer")
    cells = [tab.cell(row, column) for row in range(4, tab.max_row + 1)]
    assert {cell.data_type for cell in cells} == {"s"}
    assert not any(cell.hyperlink for cell in cells)
    with Store(folder.store_path, folder.study.id) as store:
        assert collect(folder, store, [path]).rejections == []


def test_the_only_formula_is_the_progress_cell(folder: StudyFolder) -> None:
    book = openpyxl.load_workbook(folder.sheets_path / "R1.xlsx")
    formulas = [c.coordinate for tab in book for row in tab for c in row if c.data_type == "f"]
    assert formulas == ["B2"]


def test_a_sheet_has_drop_downs_frozen_headings_open_cells_and_a_hidden_identity(
    folder: StudyFolder,
) -> None:
    book = openpyxl.load_workbook(folder.sheets_path / "R2.xlsx")
    tab = book["评分"]
    assert book.sheetnames == ["说明", "评分", "_cbtqa"]
    assert book.active.title == "评分"
    assert book["_cbtqa"].sheet_state == "veryHidden"
    assert [cell.value for cell in book["_cbtqa"]["B"]] == [
        folder.study.id,
        folder.study.rubric_sha256,
        "R2",
    ]
    assert tab.freeze_panes == "B4" and tab.row_dimensions[1].hidden
    lists = {v.formula1 for v in tab.data_validations.dataValidation}
    assert lists == {'"0,1,2"', '"是"'}
    columns = {cell.value: cell.column for cell in tab[1]}
    assert tab.protection.sheet
    assert not tab.cell(4, columns["value:relevance"]).protection.locked
    assert tab.cell(4, columns["answer"]).protection.locked
    assert tab.cell(4, columns["answer"]).alignment.wrap_text
    assert [tab.cell(row, 1).value for row in (4, 5)] == ["R2-001", "R2-002"]


def test_the_guide_tab_holds_guidelines_anchors_and_the_help_line(folder: StudyFolder) -> None:
    tab = openpyxl.load_workbook(folder.sheets_path / "R1.xlsx")["说明"]
    text = "\n".join(str(c.value) for row in tab for c in row if c.value)
    assert "12356" in text
    assert "抓住了主要困扰和关键细节" in text
    assert "请把每个回答当作唯一的回答来评" in text
    heads = next(row for row in tab if row[0].value == "评分项")
    assert [cell.value for cell in heads] == ["评分项", "问的是", "分值"]


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("好" * CELL_LIMIT, True),
        ("好" * (CELL_LIMIT + 1), False),
        ("😀" * (CELL_LIMIT // 2 + 1), False),
    ],
)
def test_a_text_too_long_for_a_cell_is_refused_not_cut(
    make_study: MakeStudy, tmp_path: Path, text: str, fits: bool
) -> None:
    folder = study_with_texts(make_study, tmp_path, [text])
    if not fits:
        with pytest.raises(DataError, match="would cut the rest"):
            write_sheets(folder)
        return
    path = write_sheets(folder)[0]
    with Store(folder.store_path, folder.study.id) as store:
        assert collect(folder, store, [path]).rejections == []


def test_control_characters_do_not_break_a_sheet(make_study: MakeStudy, tmp_path: Path) -> None:
    folder = study_with_texts(make_study, tmp_path, ["一\x00二\x0b三\r\n四\x1b[31m"])
    item = next(iter(folder.items.values()))
    assert item.answer == "一二三\n四[31m"
    path = write_sheets(folder)[0]
    with Store(folder.store_path, folder.study.id) as store:
        assert collect(folder, store, [path]).rejections == []


def test_csv_cells_never_begin_with_what_a_spreadsheet_runs(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    folder = study_with_texts(make_study, tmp_path, HOSTILE_STARTS)
    path = write_sheets(folder, as_csv=True)[0]
    with path.open(encoding="utf-8-sig", newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert not [cell for cell in cells if cell[:1] and cell[0] in FORMULA_STARTS]
    assert escape_formula(FORMULA) in cells or "'=1+1" in cells
    with Store(folder.store_path, folder.study.id) as store:
        assert collect(folder, store, [path]).rejections == []


def test_a_session_stands_in_a_tab_of_its_own_with_a_row_per_turn(
    tmp_path: Path, make_study: MakeStudy
) -> None:
    turns = [{"role": "client", "text": f"=turn {n}"} for n in range(40)]
    path = write_rows(tmp_path / "a.jsonl", [{"id": "s1", "turns": turns}])
    folder = make_study(
        predictions=(str(path),), questions=None, rubric="tes", n=1, language="en"
    ).folder
    sheet = write_sheets(folder)[0]
    book = openpyxl.load_workbook(sheet)
    assert book["Sessions"].max_row == 42
    cell = next(c for c in book["Ratings"][4] if c.hyperlink)
    assert cell.hyperlink.location == "'Sessions'!A3"

    def change_a_turn(tab: object, _columns: dict[str, int]) -> None:
        tab["D10"].value = "edited"  # type: ignore[index]

    with Store(folder.store_path, folder.study.id) as store:
        assert collect(folder, store, [sheet]).rejections == []
        edited = edit_sheet(sheet, tmp_path / "edited.xlsx", change_a_turn, tab="Sessions")
        assert "not the one of the study" in collect(folder, store, [edited]).rejections[0].detail


@pytest.mark.parametrize(
    ("module", "step"),
    [
        ("xlsxwriter", lambda folder, store: write_sheets(folder)),
        ("openpyxl", lambda folder, store: read_sheet(folder.sheets_path / "R1.xlsx")),
        ("starlette.applications", lambda folder, store: create_app(folder, store, ())),
    ],
)
def test_a_missing_library_names_the_extra_to_install(
    folder: StudyFolder, store: Store, module: str, step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError) as caught:
        step(folder, store)
    assert caught.value.hint == "pip install 'cbtqa[rate]'"


def test_sheets_are_for_their_owner_only(folder: StudyFolder) -> None:
    assert {p.stat().st_mode & 0o077 for p in folder.sheets_path.iterdir()} == {0}
    with zipfile.ZipFile(folder.sheets_path / "R1.xlsx") as archive:
        assert not [name for name in archive.namelist() if "external" in name.lower()]


@pytest.mark.slow
def test_libreoffice_saves_a_sheet_again_and_it_still_collects(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    program = shutil.which("soffice") or shutil.which("libreoffice")
    if program is None:
        pytest.skip("LibreOffice is not installed")
    filled = edit_sheet(
        folder.sheets_path / "R1.xlsx", tmp_path / "R1.xlsx", rate_rows(lambda *_: 2)
    )
    out = tmp_path / "again"
    profile = f"-env:UserInstallation=file://{tmp_path}/profile"
    convert = ["--headless", "--convert-to", "xlsx", "--outdir", str(out), str(filled)]
    subprocess.run([program, profile, *convert], check=True, capture_output=True, timeout=120)
    collected = collect(folder, store, [out / "R1.xlsx"])
    n_shown = len(folder.shown_to("R1"))
    assert (collected.rejections, collected.n_kept) == ([], 3 * n_shown)
    assert collected.sheets[0].n_done == n_shown
