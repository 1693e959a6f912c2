"""`cbtqa data check`, through the program's own error frame."""

from __future__ import annotations

import json

import pytest
import typer

from cbtqa.cli import main as program
from cbtqa.cli.data import app as data_app


@pytest.fixture
def run(monkeypatch):
    app = typer.Typer()
    app.callback()(lambda: None)
    app.add_typer(data_app, name="data")
    monkeypatch.setattr(program, "app", app)
    return lambda *words: program._run(list(words), False)


def test_check_without_a_file_reports_on_the_bundled_sample(run, capsys) -> None:
    assert run("data", "check") == 0
    shown = capsys.readouterr().out
    assert "usable + 0 rejected" in shown
    assert "ids: whole numbers, 900" in shown
    assert "Direct Guidance" in shown
    assert "explicit" in shown and "concern" in shown


def test_check_shows_each_kind_of_fault_with_its_place(run, tmp_path, capsys) -> None:
    path = tmp_path / "q.jsonl"
    lines = [{"id": 1, "title": "[bold]甲[/bold]"}, {"id": 1, "title": "乙"}, {"id": 2, "title": 3}]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    assert run("data", "check", str(path)) == 0
    shown = capsys.readouterr().out
    assert "3 rows = 1 usable + 2 rejected" in shown
    assert "q.jsonl:2:id: another row has the id 1" in shown
    assert "q.jsonl:3:title: expected text, found the int 3" in shown
    assert "1 without description" in shown


def test_check_prints_one_json_object(run, tmp_path, capsys) -> None:
    path = tmp_path / "q.csv"
    path.write_text("nr;kopf\n1;甲\n", encoding="gb18030")
    words = ["--column", "id=nr", "--column", "question=kopf", "--encoding", "gb18030"]
    assert run("data", "check", str(path), *words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["n_rows"], report["n_usable"], report["encoding"]) == (1, 1, "gb18030")
    assert report["columns"] == {"id": "nr", "question": "kopf"}


def test_check_exits_with_4_when_nothing_is_usable(run, tmp_path, capsys) -> None:
    path = tmp_path / "q.json"
    path.write_text('[{"id": 1, "question": ""}]')
    assert run("data", "check", str(path), "--json") == 4
    shown = capsys.readouterr()
    assert json.loads(shown.out)["n_usable"] == 0
    assert "no usable question" in shown.err and "hint:" in shown.err
    assert run("data", "check", str(tmp_path / "none.json")) == 4
    assert "no such file" in capsys.readouterr().err


def test_check_says_what_is_wrong_with_ids_and_texts(run, tmp_path, capsys) -> None:
    path = tmp_path / "q.csv"
    ids = ["100000000000001000", "100000000000002000", "1.0E+17"]
    texts = ["睡不着&nbsp;", "很累".encode().decode("latin-1"), "很累"]
    lines = [f"{one},{text}" for one, text in zip(ids, texts, strict=True)]
    path.write_text("\n".join(["id,question", *lines]), encoding="utf-8")
    assert run("data", "check", str(path)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 rows = 1 usable + 2 rejected" in shown
    assert "1 hold HTML entities such as &nbsp;, which stay" in shown
    assert "1 ids are zeros after their 15th digit" in shown
    assert "utf-8 that was read as latin-1" in shown
    assert "1.0E+17 is a long number as a spreadsheet shows it" in shown


def test_check_takes_first_turns_and_tells_further_answers(run, tmp_path, capsys) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"query": "睡不着怎么办", "response": "先起来走走。"}\n', encoding="utf-8")
    assert run("data", "check", str(path)) == 4
    assert "ms-swift rows (query, response)" in capsys.readouterr().err
    assert run("data", "check", str(path), "--first-turn") == 0
    assert "question from 'query (first turn)'" in capsys.readouterr().out
    words = ["--column", "question=query", "--column", "answers=response"]
    path.write_text(path.read_text("utf-8") * 2 + path.read_text("utf-8").replace("走走", "坐坐"))
    assert run("data", "check", str(path), *words) == 0
    assert "3 rows = 1 usable + 1 of earlier questions + 1 rejected" in capsys.readouterr().out


def test_a_build_says_which_split_is_empty(tmp_path, capsys) -> None:
    path = tmp_path / "q.json"
    path.write_text('[{"id": 1, "question": "最近总是睡不着，白天也没有精神。"}]', encoding="utf-8")
    assert program._run(["build-dataset", str(path), "--out", str(tmp_path / "out")], False) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "no question is in validation: too few" in told and "in test: too few" in told


def test_a_wrong_column_flag_is_a_usage_error(run, capsys) -> None:
    assert run("data", "check", "--column", "titel=x") == 2
    assert "FIELD=COLUMN" in capsys.readouterr().err
