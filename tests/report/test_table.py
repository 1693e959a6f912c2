"""One table, shown alike everywhere, and handed to programs with full values."""

from __future__ import annotations

import csv
import io
import json

import pytest
from markupsafe import Markup

from cbtqa.report.page import Phrase
from cbtqa.report.table import Column, Estimate, Table
from cbtqa.report.words import digits, p_value

NAME = Phrase(zh="系统", en="system")


@pytest.fixture
def table() -> Table:
    rows = [
        ("base", Estimate(26.512, 25.1, 27.9, note="(98/100)"), 0.00001, 1234),
        ("tuned|v2", Estimate(None, reason="no answer"), None, 0),
    ]
    return Table([NAME, Column("BLEU", digits(1)), Column("p", p_value), "n"], rows, "Scores")


def test_people_read_written_numbers_and_the_reason_of_a_missing_one(table: Table) -> None:
    heads, rows = table.cells()
    assert heads == ["system", "BLEU", "p", "n"]
    assert rows[0] == ["base", "26.5 [25.1, 27.9] (98/100)", "< 0.0001", "1,234"]
    assert rows[1] == ["tuned|v2", "- (no answer)", "-", "0"]
    assert table.cells("zh")[0][0] == "系统"


def test_programs_get_values_as_they_are_with_ends_and_reasons_of_their_own(table: Table) -> None:
    first, second = table.records()
    assert first == {
        "system": "base",
        "BLEU": 26.512,
        "BLEU low": 25.1,
        "BLEU high": 27.9,
        "BLEU reason": None,
        "p": 0.00001,
        "n": 1234,
    }
    assert second["BLEU"] is None and second["BLEU reason"] == "no answer"
    assert json.loads(json.dumps(table.records())) == table.records()


def test_pandas_gets_the_same_rows(table: Table) -> None:
    frame = table.to_pandas()
    assert list(frame.columns) == list(table.records()[0])
    assert frame["BLEU"][0] == 26.512 and frame["n"].tolist() == [1234, 0]


def test_csv_is_full_and_no_text_in_it_is_a_formula() -> None:
    rows = [("=1+1", -0.25), ("一, 二\n三", None)]
    text = Table(["name", "value"], rows).csv()
    assert list(csv.reader(io.StringIO(text))) == [
        ["name", "value"],
        ["'=1+1", "-0.25"],
        ["一, 二\n三", ""],
    ]
    assert Table(["name", "value"], []).csv() == "name,value\n"


def test_two_columns_of_one_name_are_both_handed_over() -> None:
    (row,) = Table(["pair", "p", "p"], [("a", 0.1, 0.2)]).records()
    assert list(row.values()) == ["a", 0.1, 0.2]


def test_markdown_and_latex_keep_foreign_text_in_its_cell(table: Table) -> None:
    lines = table.markdown().splitlines()
    assert lines[1] == "| --- | ---: | ---: | ---: |"
    assert "tuned\\|v2" in lines[3]
    assert {line.replace("\\|", "").count("|") for line in lines} == {5}
    latex = Table(["a_b", "50%"], [["x & y\\z", 1]]).latex()
    assert r"a\_b & 50\% \\" in latex
    assert r"x \& y\textbackslash{}z & 1 \\" in latex
    assert r"\begin{tabular}{lr}" in latex


def test_a_latex_row_that_begins_with_a_bracket_is_no_argument_of_the_row_before() -> None:
    latex = Table(["a", "b"], [["x", 1], ["[0.1, 0.2]", "< 0.01"], ["*", "−3"]]).latex()
    assert r"{[}0.1, 0.2] & \textless{} 0.01 \\" in latex
    assert r"{*} & $-$3 \\" in latex


def test_figures_are_set_to_the_right_and_text_to_the_left() -> None:
    rows = [("12", "3/5", "0.1 [0.0, 0.2]", None, "R1", Phrase(zh="甲", en="a"))]
    assert Table(list("abcdef"), rows).is_figures == [False, True, True, True, False, False]


def test_markup_is_plain_text_outside_of_pages() -> None:
    hash_cell = Markup('{} <span class="hash">{}</span>').format("a<b", "00ff")
    assert Table(["file"], [[hash_cell]]).cells()[1] == [["a<b 00ff"]]
