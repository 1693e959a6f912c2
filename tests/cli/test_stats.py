"""`cbtqa stats`, through the program's own error frame."""

from __future__ import annotations

import json

import pytest
import typer

from cbtqa.cli import main as program
from cbtqa.cli.stats import stats
from cbtqa.dataset_folder import answer_features, arrow_schema
from cbtqa.files import ParquetRows
from tests.support.dataset_folder import make_rows, write_dataset_folder


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    app = typer.Typer()
    app.callback()(lambda: None)
    app.command("stats")(stats)
    monkeypatch.setattr(program, "app", app)
    return lambda *words: program._run([str(word) for word in words], False)


def test_the_tables_show_ours_beside_the_papers(run, tmp_path, capsys) -> None:
    folder = write_dataset_folder(tmp_path / "d", 40)
    assert run("stats", folder) == 0
    shown = capsys.readouterr()
    for expected in ("22,327", "54.4%", "64.0%", "unknown", "mind_reading", "key_thought"):
        assert expected in shown.out
    assert "second-hand" in shown.err


def test_json_holds_the_whole_statistics_and_the_papers_facts(run, tmp_path, capsys) -> None:
    folder = write_dataset_folder(tmp_path / "d", 40)
    assert run("stats", folder, "--json") == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["dataset"]["n_entries"] == 40
    assert found["dataset"]["lengths"]["answer"]["median"] > 100
    assert found["paper"]["labels"]["overgeneralization"] == 0.64
    assert found["paper"]["lengths"]["answer"] is None


def test_an_unfinished_folder_is_refused_unless_partial_is_asked_for(run, tmp_path, capsys) -> None:
    folder = write_dataset_folder(tmp_path / "d", 12, with_manifest=False)
    assert run("stats", folder) == 6
    assert "did not finish" in capsys.readouterr().err
    assert run("stats", folder, "--partial", "--json") == 0
    assert json.loads(capsys.readouterr().out)["dataset"]["n_entries"] == 12


def test_a_missing_folder_is_one_clear_error(run, tmp_path, capsys) -> None:
    assert run("stats", tmp_path / "nowhere") == 4
    assert "no such folder" in capsys.readouterr().err


def test_brackets_in_model_text_are_shown_as_they_are(run, tmp_path, capsys) -> None:
    folder = tmp_path / "d"
    with ParquetRows(
        folder / "data" / "train-00000-of-00001.parquet", arrow_schema(answer_features())
    ) as out:
        for _, row in make_rows(3):
            out.add({**row, "answer": "[/bold] 你好", "model": "[red]m[/red]"})
    assert run("stats", folder, "--partial") == 0
    shown = capsys.readouterr().out
    assert "[/bold]" in shown
    assert "[red]m[/red]" in shown
