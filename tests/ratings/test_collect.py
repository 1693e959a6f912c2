"""Collecting: good cells are kept, every bad one is named by its address, nothing is guessed."""

from __future__ import annotations

import csv
import shutil
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from cbtqa.ratings.collect import Collected, collect
from cbtqa.ratings.sheets import write_sheets
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import StudyFolder
from tests.ratings.conftest import MakeStudy, edit_sheet, rate_rows

Columns = dict[str, int]


def collect_edited(folder: StudyFolder, store: Store, tmp_path: Path, edit: Any) -> Collected:
    path = edit_sheet(folder.sheets_path / "R1.xlsx", tmp_path / "R1.xlsx", edit)
    return collect(folder, store, [path])


@pytest.mark.parametrize(
    ("written", "kept"),
    [(2, 2), (0, 0), (1.0, 1), ("２", 2), (" 1 ", 1), ("０", 0), ("1\n", 1)],
)
def test_plain_values_are_taken(
    folder: StudyFolder, store: Store, tmp_path: Path, written: Any, kept: int
) -> None:
    def edit(tab: Any, columns: Columns) -> None:
        tab.cell(4, columns["value:relevance"]).value = written

    collected = collect_edited(folder, store, tmp_path, edit)
    assert collected.rejections == []
    assert store.answers()["R1-001"].values == {"relevance": kept}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (3, "found 3, expected a whole number from 0 to 2"),
        (-1, "found -1, expected"),
        (1.5, "found 1.5, expected a whole number"),
        (True, "found the logical value TRUE"),
        ("1/2", "found '1/2'"),
        ("=1+1", "a formula, expected a value"),
        ("好", "found '好'"),
        ("²", "found '²'"),
        (10**30, "expected a whole number from 0 to 2"),
    ],
)
def test_anything_to_be_guessed_is_refused_by_address_and_its_neighbours_are_kept(
    folder: StudyFolder, store: Store, tmp_path: Path, written: Any, said: str
) -> None:
    def edit(tab: Any, columns: Columns) -> None:
        tab.cell(5, columns["value:structure"]).value = written
        tab.cell(5, columns["value:helpfulness"]).value = 1

    if written == "²":
        said = ""  # NFKC makes a plain 2 of it, which counts as the digit that it is
    collected = collect_edited(folder, store, tmp_path, edit)
    if not said:
        assert store.answers()["R1-002"].values["structure"] == 2
        return
    (refused,) = collected.rejections
    assert refused.where == "R1.xlsx:评分!F5"
    assert refused.item_id == "R1-002"
    assert said in refused.detail
    assert store.answers()["R1-002"].values == {"helpfulness": 1}


@pytest.mark.parametrize(
    ("word", "meant"),
    [("是", True), ("YES", True), ("√", True), (1, True), ("否", False), ("no", False)],
)
def test_flags_are_read_in_plain_words(
    folder: StudyFolder, store: Store, tmp_path: Path, word: Any, meant: bool
) -> None:
    def edit(tab: Any, columns: Columns) -> None:
        tab.cell(4, columns["cannot_judge"]).value = word
        tab.cell(4, columns["note"]).value = "=不是公式 的备注"

    collected = collect_edited(folder, store, tmp_path, edit)
    details = [r.detail for r in collected.rejections]
    assert details == ["备注: a formula, expected a value (copy it and paste it as a value)"]
    answers = store.answers()
    assert (answers["R1-001"].cannot_judge if "R1-001" in answers else False) is meant


def test_an_unclear_flag_is_refused(folder: StudyFolder, store: Store, tmp_path: Path) -> None:
    def edit(tab: Any, columns: Columns) -> None:
        tab.cell(4, columns["crisis"]).value = "也许"

    assert "expected 是 / yes" in collect_edited(folder, store, tmp_path, edit).rejections[0].detail


def test_rows_may_be_sorted(folder: StudyFolder, store: Store, tmp_path: Path) -> None:
    def edit(tab: Any, columns: Columns) -> None:
        rate_rows(lambda code, _: int(code[-1]) % 3)(tab, columns)
        rows = [[cell.value for cell in row] for row in tab.iter_rows(min_row=4)]
        for number, values in enumerate(reversed(rows), 4):
            for column, value in enumerate(values, 1):
                tab.cell(number, column).value = value

    collected = collect_edited(folder, store, tmp_path, edit)
    assert collected.rejections == []
    assert {code: a.values["relevance"] for code, a in store.answers().items()} == {
        p.code: int(p.code[-1]) % 3 for p in folder.shown_to("R1")
    }


def test_sorting_one_column_alone_is_noticed(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    def edit(tab: Any, columns: Columns) -> None:
        rate_rows(lambda *_: 1)(tab, columns)
        one, other = (tab.cell(row, columns["answer"]) for row in (4, 5))
        one.value, other.value = other.value, one.value

    collected = collect_edited(folder, store, tmp_path, edit)
    assert [r.where for r in collected.rejections] == ["R1.xlsx:评分!D4", "R1.xlsx:评分!D5"]
    assert "moved from another row" in collected.rejections[0].detail
    assert collected.n_kept == 3 * (len(folder.shown_to("R1")) - 2)


def test_an_edited_text_refuses_its_row_alone(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    def edit(tab: Any, columns: Columns) -> None:
        rate_rows(lambda *_: 1)(tab, columns)
        tab.cell(6, columns["description"]).value += "改"

    collected = collect_edited(folder, store, tmp_path, edit)
    assert [r.where for r in collected.rejections] == ["R1.xlsx:评分!C6"]
    assert "R1-003" not in store.answers()


def test_rows_of_another_rater_twice_and_missing_are_told_apart(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    def edit(tab: Any, columns: Columns) -> None:
        rate_rows(lambda *_: 0)(tab, columns)
        tab.cell(4, columns["code"]).value = "R2-001"
        tab.cell(5, columns["code"]).value = "R1-003"
        tab.cell(7, columns["code"]).value = None

    details = [r.detail for r in collect_edited(folder, store, tmp_path, edit).rejections]
    assert "R2-001 is not in the plan of R1 (it belongs to R2)" in details
    assert any("the row stands twice" in detail for detail in details)
    assert "ratings in a row without a code" in details
    assert details.count("the row is missing") == 3


def test_a_moved_or_inserted_column_is_found_by_its_name(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    def edit(tab: Any, columns: Columns) -> None:
        rate_rows(lambda *_: 2)(tab, columns)
        tab.insert_cols(3)

    collected = collect_edited(folder, store, tmp_path, edit)
    assert collected.rejections == []
    assert collected.sheets[0].n_done == len(folder.shown_to("R1"))


def test_collecting_twice_changes_nothing_and_blanks_never_erase(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    collect_edited(folder, store, tmp_path, rate_rows(lambda *_: 2))
    before = store.events()
    again = collect(folder, store, [tmp_path / "R1.xlsx", folder.sheets_path / "R1.xlsx"])
    assert (again.n_kept, again.rejections) == (0, [])
    assert again.sheets[0].n_known == 3 * len(folder.shown_to("R1"))
    assert store.events() == before


def test_a_second_opinion_is_refused_unless_asked_for(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    collect_edited(folder, store, tmp_path, rate_rows(lambda *_: 2))

    def edit(tab: Any, columns: Columns) -> None:
        tab.cell(4, columns["value:relevance"]).value = 0

    path = edit_sheet(tmp_path / "R1.xlsx", tmp_path / "later.xlsx", edit)
    (refused,) = collect(folder, store, [path]).rejections
    assert "the store already holds 2; --replace takes 0 instead" in refused.detail
    assert collect(folder, store, [path], replace=True).n_kept == 1
    assert store.answers()["R1-001"].values["relevance"] == 0
    back = collect(folder, store, [tmp_path / "R1.xlsx"], replace=True)
    assert (back.n_kept, store.answers()["R1-001"].values["relevance"]) == (1, 2)


def test_a_sheet_of_another_study_or_rubric_is_refused_as_a_whole(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    def change(cell: str, value: str) -> Path:
        book = openpyxl.load_workbook(folder.sheets_path / "R1.xlsx")
        book["_cbtqa"][cell].value = value
        path = tmp_path / f"{cell}.xlsx"
        book.save(path)
        return path

    book = openpyxl.load_workbook(folder.sheets_path / "R1.xlsx")
    del book["_cbtqa"]
    book.save(tmp_path / "bare.xlsx")
    paths = [
        change("B1", "ffff"),
        change("B2", "0" * 64),
        change("B3", "R9"),
        tmp_path / "bare.xlsx",
    ]
    details = [r.detail for r in collect(folder, store, paths).rejections]
    assert len(details) == 4
    expected = ["study ffff", "another version of the rubric", "rater 'R9'", "hidden tab is gone"]
    assert all(words in detail for words, detail in zip(expected, details, strict=True))


def test_unsafe_and_foreign_files_get_a_clear_line_and_good_files_beside_them_count(
    folder: StudyFolder, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = edit_sheet(folder.sheets_path / "R1.xlsx", tmp_path / "R1.xlsx", rate_rows(lambda *_: 1))
    macros, entity, cut = (tmp_path / f"{name}.xlsx" for name in ("macros", "entity", "cut"))
    shutil.copy(good, macros)
    with zipfile.ZipFile(macros, "a") as archive:
        archive.writestr("xl/vbaProject.bin", b"x")
    bomb = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "boom">]><sst>&a;</sst>'
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(entity, "w") as target:
        for name in source.namelist():
            target.writestr(
                name, bomb if "workbook.xml" in name and "rels" not in name else source.read(name)
            )
    cut.write_bytes(good.read_bytes()[:3000])
    old = tmp_path / "old.xlsx"
    old.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 100)
    ods = tmp_path / "sheet.ods"
    ods.write_bytes(b"x")
    monkeypatch.setattr("cbtqa.ratings.sheet_files.MAX_UNPACKED_BYTES", 5 << 20)
    zeros = tmp_path / "zeros.xlsx"
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", b"0" * (6 << 20))
    large = tmp_path / "large.xlsx"
    with large.open("wb") as stream:
        stream.truncate(100 << 20)
    paths = [macros, entity, cut, old, ods, zeros, large, tmp_path / "nowhere.xlsx", good]
    collected = collect(folder, store, paths)
    said = {r.where: r.detail for r in collected.rejections}
    for name, words in {
        "macros.xlsx": "holds macros",
        "entity.xlsx": "declares XML entities in xl/workbook.xml",
        "cut.xlsx": "not an xlsx file",
        "old.xlsx": "protected by a password",
        "sheet.ods": "save it as .xlsx",
        "zeros.xlsx": "unpacks to 6 MiB",
        "large.xlsx": "100 MiB; a sheet has at most 30",
        "nowhere.xlsx": "no such file",
    }.items():
        assert words in said[name], said[name]
    assert collected.n_kept == 3 * len(folder.shown_to("R1"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8", "gb18030"])
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_csv_is_collected_as_spreadsheets_save_it(
    folder: StudyFolder, store: Store, tmp_path: Path, encoding: str, delimiter: str
) -> None:
    source = write_sheets(folder, as_csv=True)[1]
    with source.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.reader(stream))
    place = rows[0].index("value:structure")
    for row in rows[2:]:
        row[place] = "２"
    rows[3][place] = "5"
    path = tmp_path / "R2.csv"
    with path.open("w", encoding=encoding, newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    collected = collect(folder, store, [path])
    (refused,) = collected.rejections
    assert refused.where is not None and refused.where.endswith(":value:structure")
    assert collected.n_kept == len(folder.shown_to("R2")) - 1


def test_two_raters_in_one_csv_are_refused(
    folder: StudyFolder, store: Store, tmp_path: Path
) -> None:
    one, two, _ = (p.read_text("utf-8-sig") for p in write_sheets(folder, as_csv=True))
    path = tmp_path / "both.csv"
    path.write_text(one + "".join(two.splitlines(keepends=True)[2:]), encoding="utf-8")
    (refused,) = collect(folder, store, [path]).rejections
    assert "2 different studies or raters in one file" in refused.detail


def test_none_beside_another_mark_takes_neither(make_study: MakeStudy, tmp_path: Path) -> None:
    folder = make_study(predictions=(), rubric="distortions", raters=1).folder
    write_sheets(folder)

    def edit(tab: Any, columns: Columns) -> None:
        tab.cell(4, columns["value:labeling"]).value = 1
        tab.cell(4, columns["value:none"]).value = 1
        tab.cell(5, columns["value:mental_filter"]).value = 1
        quote = str(tab.cell(5, columns["description"]).value)[2:8]
        tab.cell(5, columns["evidence:mental_filter"]).value = quote
        tab.cell(6, columns["value:none"]).value = 1
        tab.cell(7, columns["value:labeling"]).value = 1
        tab.cell(7, columns["evidence:labeling"]).value = "原文里没有的话"

    with Store(folder.store_path, folder.study.id) as store:
        collected = collect_edited(folder, store, tmp_path, edit)
        details = [r.detail for r in collected.rejections]
        assert [d for d in details if "neither is taken" in d] == details[:2]
        assert details[2] == "乱贴标签：依据（原文）: the evidence does not occur in the text shown"
        assert collected.sheets[0].n_done == 3
