"""Files are read with their place in every error, and written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from cbtqa.errors import DataError, UsageError
from cbtqa.files import (
    ParquetRows,
    json_line,
    open_text,
    read_json,
    read_jsonl,
    read_rows,
    write_json,
    write_jsonl,
    write_text,
)
from cbtqa.paths import replacing
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
        with pytest.raises(DataError, match=r"^(a\.1|1\.y)\.low: .* is not JSON"):
            write_json(tmp_path / "a.json", document)
    for record in (Measured(values=[0.5, value]), {"values": [0.5, value]}):
        with pytest.raises(DataError, match=r"^values\.1: "):
            write_json(tmp_path / "a.json", record)
        with pytest.raises(DataError, match=r"^values\.1: "):
            write_jsonl(tmp_path / "a.jsonl", [record])
    assert list(tmp_path.iterdir()) == []


# --- whatever lies there -------------------------------------------------------------------------


def _make_fault(folder: Path, kind: str) -> Path:
    path = folder / "a.jsonl"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "name too long":
            return folder / f"{'长' * 200}.jsonl"
        case "zero byte":
            return folder / "a\0b.jsonl"
        case "below a file":
            path.write_text("{}\n")
            return path / "b.jsonl"
        case _:
            path.write_text(kind, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pipe", "is a named pipe, not a file"),
        ("loop", "a symbolic link that leads back to itself"),
        ("folder", "holds no .parquet file"),
        ("device", "is a device, not a file"),
        ("name too long", "the name is too long"),
        ("zero byte", "cannot be the name of a file"),
        ("below a file", "a part of the path is no folder"),
        ('{"a": 1}\n{"a": ' + "[" * 500 + "]" * 500 + "}", "a.jsonl:2: nested more than 100"),
        ('{"a": ' + "[" * 90_000 + "]" * 90_000 + "}", "a.jsonl:1: nested more than 100"),
        ('{"a": ' + "7" * 5_000 + "}", "a.jsonl:1: holds a number of thousands of digits"),
        ('{"a": 1e999}', "a.jsonl:1: the number 1e999 is too large"),
        ('{"a": -Infinity}', "a.jsonl:1: -Infinity is no number"),
        ('\n{"a": nan}', "a.jsonl:2: not JSON"),
        ('{"a": 1}\n["a"]', "a.jsonl:2: expected an object"),
    ],
    ids=lambda text: text[:24],
)
def test_whatever_lies_at_a_path_is_said_with_its_place(
    tmp_path: Path, kind: str, said: str
) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        list(read_rows(_make_fault(tmp_path, kind)))


def test_what_json_cannot_hold_is_missing_and_half_characters_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": NaN, "b": "x\\ud83d", "\\udc00": [{"c": "\\ud83d\\ude00"}]}\n', "utf-8")
    rows = [row for _, row in read_rows(path)]
    assert rows == [{"a": None, "b": "x\ufffd", "\ufffd": [{"c": "😀"}]}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,id\n1,2\n", "a.csv:1: column named twice: 'id'"),
        ("id,text\n1,a\n2\n", "a.csv:3: 1 cells for 2 columns"),
        ("id,text\n1,a,b\n", "a.csv:2: 3 cells for 2 columns"),
        ('id,text\n1,"never closed\n2,b\n', "a.csv:3: not CSV"),
    ],
)
def test_a_table_whose_cells_do_not_fit_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(said)):
        list(read_rows(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (
            pa.array([0, -(10**12) * 86_400], pa.timestamp("us")),
            "row 2:x: the value cannot be read",
        ),
        (
            pa.StringArray.from_buffers(
                2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xff\xfe")
            ),
            "row 2:x: the value cannot be read",
        ),
    ],
    ids=["a time out of range", "bytes that are no text"],
)
def test_a_value_of_parquet_that_cannot_be_read_is_named(
    tmp_path: Path, column: pa.Array, said: str
) -> None:
    pq.write_table(pa.table({"x": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=said):
        list(read_rows(tmp_path / "a.parquet"))


def test_every_value_of_parquet_comes_as_json_has_it(tmp_path: Path) -> None:
    values = {
        "time": datetime(2026, 3, 1, tzinfo=UTC),
        "number": Decimal("1.50"),
        "missing": float("nan"),
        "inner": {"bytes": b"a", "list": [date(2026, 3, 1)]},
    }
    pq.write_table(pa.Table.from_pylist([values]), tmp_path / "a.parquet")
    [(_, row)] = read_rows(tmp_path / "a.parquet")
    assert json_line(row)
    assert (row["time"], row["number"], row["missing"]) == (
        "2026-03-01 00:00:00+00:00",
        "1.50",
        None,
    )


def test_half_a_character_never_stops_a_file_from_being_written(tmp_path: Path) -> None:
    text = "好\ud83d"
    write_text(tmp_path / "a.txt", text)
    write_jsonl(tmp_path / "a.jsonl", [{"a": text}])
    with ParquetRows(tmp_path / "a.parquet", pa.schema([("a", pa.string())])) as rows:
        rows.add({"a": text})
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "好\ufffd"
    for name in ("a.jsonl", "a.parquet"):
        assert [row for _, row in read_rows(tmp_path / name)] == [{"a": "好\ufffd"}]


def test_a_parquet_file_that_cannot_be_ended_does_not_replace_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"old")
    with (
        pytest.raises(pa.ArrowException),
        ParquetRows(path, pa.schema([("a", pa.int64())])) as rows,
    ):
        rows.add({"a": "no number"})
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["a.parquet"]


def test_what_is_written_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o644)
    write_text(path, "new")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_place_that_cannot_be_written_is_a_fault_of_the_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.txt").mkdir()
    for place in ("file/a.txt", "file/deeper/a.txt", "folder.txt", "长" * 200, "a\0.txt"):
        with pytest.raises(UsageError, match="cannot be"):
            write_text(tmp_path / place, "text")
    assert not list(tmp_path.rglob("*.part"))
