"""What a command writes replaces nothing that was there, unless it is told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbtqa.cli.main import _run
from cbtqa.files import write_jsonl, write_text
from tests.support.dataset_folder import write_dataset_folder

LINES = (
    "distortions label texts.jsonl --out kept.jsonl",
    "distortions evaluate gold.csv --out kept.jsonl",
    "simulate profiles act --n 2 --out kept.jsonl",
    "safety screen texts.jsonl --out kept.jsonl",
    "safety scrub texts.jsonl --out kept.jsonl",
)


@pytest.fixture(autouse=True)
def _inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("texts.jsonl"), [{"id": str(n), "text": "我总是做不好。"} for n in range(3)])
    rows = [f"{n},我什么都做不好，第{n}次了。,{('labeling', 'none')[n % 2]}" for n in range(8)]
    write_text(Path("gold.csv"), "\n".join(["id,text,labels", *rows]) + "\n")


@pytest.mark.parametrize("line", LINES)
def test_a_file_that_is_there_is_replaced_only_with_overwrite(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Path("kept.jsonl")
    kept.write_text("edited by hand")
    assert _run(line.split(), False) == 2
    assert "kept.jsonl exists already" in capsys.readouterr().err
    assert kept.read_text() == "edited by hand"
    assert _run([*line.split(), "--overwrite"], False) == 0
    assert kept.read_text(encoding="utf-8") != "edited by hand"
    assert kept.stat().st_mode & 0o777 == 0o600


def test_the_second_run_of_label_does_not_wipe_the_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _run(["distortions", "label", "texts.jsonl"], False) == 0
    assert _run(["distortions", "label", "texts.jsonl", "--level", "both"], False) == 2
    assert "texts.jsonl.labels.jsonl exists already" in capsys.readouterr().err


def test_an_unfinished_dataset_can_be_counted_and_stats_says_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_dataset_folder(tmp_path / "d", 12, with_manifest=False)
    assert _run(["stats", str(folder)], False) == 6
    assert "--partial" in capsys.readouterr().err
    assert _run(["stats", str(folder), "--partial"], False) == 0


def test_a_text_that_would_keep_the_metrics_busy_is_refused_with_its_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_jsonl(Path("p.jsonl"), [{"id": "1", "prediction": "先休息。"}])
    write_jsonl(Path("r.jsonl"), [{"id": "1", "answer": "累" * 1_000_000}])
    assert _run(["score", "p.jsonl", "--ref", "r.jsonl"], False) == 4
    assert "r.jsonl:1:answer: 1,000,000 characters, at most 50,000" in capsys.readouterr().err
