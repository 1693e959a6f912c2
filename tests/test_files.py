"""Files are read with their place in every error, and written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import BaseModel

from cbtqa.errors import DataError
from cbtqa.files import (
    ParquetRows,
    json_line,
    open_text,
    read_json,
    read_jsonl,
    read_rows,
    replacing,
    write_json,
    write_jsonl,
    write_text,
)
from cbtqa.records import Question

ROWS = [{"id": "1", "question": "怎么办？"}, {"id": "2", "question": "为什么😊"}]


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    questions = [Question(**row) for row in ROWS]
    assert write_jsonl(path, questions) == 2
    assert list(read_jsonl(path, Question)) == questions


def test_a_wrong_line_is_named_with_its_field(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "1", "question": "好"}\n\n{"id": "2", "question": 5}\n', "utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:3:question"):
        list(read_jsonl(path, Question))
    path.write_text('{"id": \n', "utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:1: not JSON"):
        list(read_jsonl(path, Question))


def test_a_byte_order_mark_is_dropped_and_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff好".encode())
    with open_text(path) as stream:
        assert stream.read() == "好"
    path.write_bytes("我总是做不好\n".encode("gbk"))
    with pytest.raises(DataError, match="not utf-8") as caught, open_text(path) as stream:
        stream.read()
    assert "gb18030" in (caught.value.hint or "")
    with open_text(path, "gb18030") as stream:
        assert stream.read() == "我总是做不好\n"


def test_one_long_line_in_another_encoding_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(
        b"a" + "总".encode("gbk") * 50_000
    )  # what is looked at ends inside a character
    with pytest.raises(DataError, match="not utf-8") as caught, open_text(path) as stream:
        stream.read()
    assert "gb18030" in (caught.value.hint or "")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json_line(row) for row in ROWS), "utf-8")
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS), "utf-8")
    elif suffix == ".parquet":
        with ParquetRows(path, pa.schema([("id", pa.string()), ("question", pa.string())])) as rows:
            for row in ROWS:
                rows.add(row)
    else:
        comma = "," if suffix == ".csv" else "\t"
        lines = [comma.join(row.values()) for row in ROWS]
        path.write_text("\n".join([f"id{comma}question", *lines]) + "\n", "utf-8")
    found = list(read_rows(path))
    assert [row for _, row in found] == ROWS
    assert all(where.startswith(str(path)) for where, _ in found)


def test_unknown_suffixes_missing_files_and_folders_without_parquet_are_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(DataError, match=r"\.docx"):
        list(read_rows(tmp_path / "a.docx"))
    with pytest.raises(DataError, match="no such file"):
        list(read_rows(tmp_path / "b.jsonl"))
    with pytest.raises(DataError, match=r"no \.parquet"):
        list(read_rows(tmp_path))
    with pytest.raises(DataError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_parquet_rows_appear_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema([("id", pa.string())])
    with pytest.raises(RuntimeError), ParquetRows(path, schema) as rows:
        rows.add({"id": "1"})
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


class Measured(BaseModel):
    """A record of another kind than the project's own."""

    values: list[float]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_never_reaches_a_file_and_its_field_is_named(
    tmp_path: Path, value: float
) -> None:
    for document in ({"a": [{"low": 1.0}, {"low": value}]}, [{"x": 1}, {"y": {"low": value}}]):
        with pytest.raises(ValueError, match=r"^(a\.1|1\.y)\.low: .* is not JSON"):
            write_json(tmp_path / "a.json", document)
    for record in (Measured(values=[0.5, value]), {"values": [0.5, value]}):
        with pytest.raises(ValueError, match=r"^values\.1: "):
            write_json(tmp_path / "a.json", record)
        with pytest.raises(ValueError, match=r"^values\.1: "):
            write_jsonl(tmp_path / "a.jsonl", [record])
    assert list(tmp_path.iterdir()) == []
