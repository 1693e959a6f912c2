"""Whole files: counts that add up, errors with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cbtqa.errors import DataError, UsageError
from cbtqa.llm.checked_files import ScreenSettings, screen_texts
from cbtqa.safety.evaluation import evaluate_file, parse_labels, share
from cbtqa.safety.survey import read_texts, scrub_file


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_question_file_is_screened_by_title_and_description(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "question": "怎么办？", "description": "我想自杀。"},
        {"id": "2", "question": "工作压力大", "description": ""},
        {"id": "3", "question": "朋友说想自杀", "description": None},
    ]
    path = write(tmp_path / "q.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    survey = screen_texts(ScreenSettings(file=path, out=tmp_path / "out.jsonl", explain=1))
    assert survey.n_by_risk == {"none": 1, "concern": 1, "explicit": 1}
    assert survey.n_texts == 3
    assert [item.id for item in survey.shown] == ["1"]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line["id"], line["risk"]) for line in lines] == [
        ("1", "explicit"),
        ("2", "none"),
        ("3", "concern"),
    ]
    assert lines[0]["hits"][0]["rule"].startswith("act.")


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "q.csv", "text\n你好\n")
    out = write(tmp_path / "out.jsonl", "old")
    with pytest.raises(UsageError, match="exists already"):
        screen_texts(ScreenSettings(file=path, out=out))
    assert out.read_text() == "old"


@pytest.mark.parametrize(
    ("content", "columns", "where"),
    [
        ('text\n""\n" "\n', (), ":text"),
        ("title\n你好\n", (), ":2"),
        ("text\n你好\n", ("body",), ":2"),
        ("text\n", (), ""),
    ],
)
def test_a_row_that_cannot_be_screened_is_named(
    tmp_path: Path, content: str, columns: tuple[str, ...], where: str
) -> None:
    path = write(tmp_path / "bad.csv", content)
    with pytest.raises(DataError) as caught:
        list(read_texts(path, columns))
    assert caught.value.where == f"{path}{where}"


def test_rows_without_a_text_are_counted_and_named_and_do_not_stop_the_file(tmp_path: Path) -> None:
    rows = [{"text": "我想自杀"}, {"text": " "}, {"text": None}, {"text": "今天很好"}]
    path = write(tmp_path / "q.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    survey = screen_texts(ScreenSettings(file=path, out=tmp_path / "out.jsonl"))
    assert survey.n_by_risk == {"none": 1, "concern": 0, "explicit": 1}
    assert (survey.n_texts, survey.n_empty) == (2, 2)
    assert survey.empty == (f"{path}:2:text", f"{path}:3:text")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["risk"] for line in lines] == ["explicit", None, None, "none"]
    masked = scrub_file(path, out=tmp_path / "masked.jsonl")
    assert (masked.n_texts, masked.n_empty) == (2, 2)
    assert len((tmp_path / "masked.jsonl").read_text().splitlines()) == 4
    gold = write(tmp_path / "gold.tsv", "text\trisk\n我想自杀\texplicit\n\tnone\n")
    assert (evaluate_file(gold).n_texts, evaluate_file(gold).n_empty) == (1, 1)


def test_a_cell_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", '{"text": 3}\n')
    with pytest.raises(DataError, match="expected text, found int"):
        screen_texts(ScreenSettings(file=path))


def test_gbk_is_read_when_said_and_refused_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "gbk.csv"
    path.write_bytes("text\n我想自杀\n".encode("gb18030"))
    assert screen_texts(ScreenSettings(file=path, encoding="gb18030")).n_by_risk["explicit"] == 1
    with pytest.raises(DataError) as caught:
        screen_texts(ScreenSettings(file=path))
    assert "gb18030" in (caught.value.hint or "")


def test_scrubbing_keeps_every_other_column(tmp_path: Path) -> None:
    path = write(tmp_path / "q.csv", "id,text,note\n7,我叫王芳。,手机13812345678\n8,你好,\n")
    survey = scrub_file(path, out=tmp_path / "masked.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "masked.jsonl").read_text().splitlines()]
    assert rows[0] == {"id": "7", "text": "我叫〔姓名〕。", "note": "手机13812345678"}
    assert (survey.n_texts, survey.n_texts_with_data, survey.n_by_kind) == (2, 1, {"name": 1})


GOLD = "text\trisk\n我想自杀\texplicit\n笑死我了\tnone\n我朋友想自杀\texplicit\n今天很好\tnone\n"


def test_evaluation_counts_every_pair_and_lists_the_errors(tmp_path: Path) -> None:
    report = evaluate_file(write(tmp_path / "gold.tsv", GOLD))
    assert report.confusion["explicit"] == {"none": 0, "concern": 1, "explicit": 1}
    assert report.confusion["none"] == {"none": 2, "concern": 0, "explicit": 0}
    assert report.explicit.recall.value == 0.5
    assert report.explicit.precision.value == 1.0
    assert report.flagged.recall.value == 1.0
    assert [(error.gold, error.found) for error in report.errors] == [("explicit", "concern")]
    assert report.errors[0].rules == ("act.third",)
    assert report.per_grade["concern"].recall.value is None


def test_labels_of_another_scheme_are_mapped_or_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "gold.tsv", "text\thigh\n我想自杀\t1\n你好\t0\n")
    labels = parse_labels(["1=explicit", "0=none"])
    report = evaluate_file(path, label_column="high", grade_of=labels)
    assert report.explicit.f1 == 1.0
    with pytest.raises(DataError, match="label '1' is none of") as caught:
        evaluate_file(path, label_column="high")
    assert caught.value.where == f"{path}:2:high"
    with pytest.raises(DataError, match="no column 'risk'"):
        evaluate_file(path)
    with pytest.raises(UsageError, match="LABEL=GRADE"):
        parse_labels(["1=high"])


def test_wilson_interval_agrees_with_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3: 81/263 and 0/20
    assert share(81, 263).low == pytest.approx(0.2553, abs=5e-5)
    assert share(81, 263).high == pytest.approx(0.3662, abs=5e-5)
    assert share(0, 20).low == 0
    assert share(0, 20).high == pytest.approx(0.1611, abs=5e-5)
