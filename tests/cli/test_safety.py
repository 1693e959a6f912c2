"""`cbtqa safety`, through the program's own error frame."""

from __future__ import annotations

import io
import json

import pytest
import typer

from cbtqa.cli import main as program
from cbtqa.cli.safety import app as safety_app


@pytest.fixture
def run(monkeypatch):
    app = typer.Typer()
    app.callback()(lambda: None)
    app.add_typer(safety_app, name="safety")
    monkeypatch.setattr(program, "app", app)
    return lambda *words: program._run(["safety", *map(str, words)], False)


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text("text\n我想自杀，微信abcdef12\n笑死我了\n", encoding="utf-8")
    return path


def test_screen_prints_counts_and_coloured_reasons(run, questions, capsys) -> None:
    assert run("screen", questions, "--explain", "3") == 0
    shown = capsys.readouterr().out
    assert "explicit" in shown and "50.0%" in shown
    assert "act.intent (stated) 1-4" in shown


def test_screen_as_json_is_one_object(run, questions, capsys) -> None:
    assert run("screen", questions, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_by_risk"] == {"none": 1, "concern": 0, "explicit": 1}
    assert found["n_suppressed"] == {"idiom": 1}


def test_evaluate_prints_intervals_and_errors(run, tmp_path, capsys) -> None:
    gold = tmp_path / "gold.tsv"
    gold.write_text("text\thigh\n我想自杀\t1\n他想自杀\t1\n你好\t0\n", encoding="utf-8")
    words = ["--label-column", "high", "--label", "1=explicit", "--label", "0=none"]
    assert run("evaluate", gold, *words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["explicit"]["recall"]["n"] == 1
    assert run("evaluate", gold, *words) == 0
    assert "explicit -> concern" in capsys.readouterr().out


def test_scrub_counts_and_writes(run, questions, tmp_path, capsys) -> None:
    out = tmp_path / "masked.jsonl"
    assert run("scrub", questions, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["n_by_kind"] == {"wechat": 1}
    assert "abcdef12" not in out.read_text(encoding="utf-8")


def test_hotlines_lists_numbers_with_their_date(run, capsys) -> None:
    assert run("hotlines", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["checked_on"]
    assert "12356" in [line["number"] for line in found["lines"]]
    assert run("hotlines", "--locale", "en") == 0
    assert "988" in capsys.readouterr().out


def test_bad_input_ends_with_4_and_says_where(run, tmp_path, capsys) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("title\n你好\n", encoding="utf-8")
    assert run("screen", bad) == 4
    said = capsys.readouterr().err
    assert "bad.csv:2" in said and "--column" in said
    assert run("screen", tmp_path / "missing.csv") == 4


def test_screen_reads_lines_of_text_standard_input_and_one_text_itself(
    run, tmp_path, capsys, monkeypatch
) -> None:
    lines = "今天还好\n\n我想自杀\n"
    (tmp_path / "q.txt").write_text(lines, encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    for source in (tmp_path / "q.txt", "-"):
        assert run("screen", source, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["n_by_risk"] == {"none": 1, "concern": 0, "explicit": 1}
    assert run("screen", "我想自杀，药都买好了") == 0
    printed = capsys.readouterr()
    assert "我想自杀，药都买好了" in printed.out and "act.intent (stated) 1-4" in printed.out
    assert "read as one text" in printed.err
    assert run("screen", "我想" * 300) == 0, "longer than the name of a file may be"


@pytest.mark.parametrize("name", ["没有这个文件.jsonl", "no-such-file.jsonl", "没有/这个", "没有"])
def test_the_name_of_no_file_is_not_taken_for_a_text(run, name, capsys) -> None:
    assert run("screen", name) == 4
    assert "no such" in capsys.readouterr().err
