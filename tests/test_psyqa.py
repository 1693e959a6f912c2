"""Reading PsyQA's file, its forks, and what people hand in by mistake."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbtqa.errors import DataError, UsageError
from cbtqa.psyqa import (
    SourceItem,
    bundled_sample_path,
    check_file,
    parse_columns,
    read_questions,
    rows,
)
from cbtqa.psyqa.damage import clean, move_offset
from cbtqa.records import Reason, Rejection

ROOT = Path(__file__).parents[1]
TITLE, ACCOUNT = (
    "换了新学校一直没有朋友怎么办？",
    "转学两个月了，午饭总是一个人吃，有点想回原来的学校。",
)


def _row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "question": f"{TITLE}{number}",
        "description": f"{ACCOUNT}{number}",
        "keywords": "人际,校园",
        "answers": [],
        "questionID": number,
    } | changes


def _json(path: Path, value: Any, **options: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False, **options), encoding="utf-8")
    return path


def _items(path: Path, **options: Any) -> list[SourceItem]:
    read = list(read_questions(path, **options))
    assert all(isinstance(row, SourceItem) for row in read), read
    return [row for row in read if isinstance(row, SourceItem)]


def _rejections(path: Path, **options: Any) -> list[Rejection]:
    return [row for row in read_questions(path, **options) if isinstance(row, Rejection)]


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 1, 40])
def test_an_array_is_read_alike_on_one_line_and_pretty_printed(tmp_path, indent) -> None:
    path = _json(tmp_path / "q.json", [_row(3), _row(9)], indent=indent)
    items = _items(path)
    assert [item.question.id for item in items] == ["3", "9"]
    assert items[1].question.question == f"{TITLE}9"
    assert items[1].question.description == f"{ACCOUNT}9"
    assert items[1].question.keywords == ("人际", "校园")
    line = 1 if indent is None else 9
    assert items[1].where == f"q.json:{line}"


@pytest.mark.parametrize("indent", [None, 1, 30])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_window_may_cut_an_array_anywhere(tmp_path, monkeypatch, indent, ascii_only) -> None:
    values = [{"a": 'x"\\é😀', "n": -12.5e3, "t": [True, None, "[,]"]}, {}, 12345, "后\n", [1]]
    path = tmp_path / "q.json"
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    path.write_text(f"\n {text}\n\n", encoding="utf-8")
    for size in range(1, 50):
        monkeypatch.setattr(rows, "CHUNK_CHARS", size)
        assert [row.value for row in rows.iterate_rows(rows.identify(path))] == values, size


def test_an_array_on_one_huge_line_is_not_held_in_memory(tmp_path) -> None:
    path = tmp_path / "q.json"
    with path.open("w", encoding="utf-8") as stream:
        stream.write("[")
        for number in range(6000):
            text = json.dumps(_row(number, description=f"{number}" + ACCOUNT * 40))
            stream.write(("," if number else "") + text)
        stream.write("]")
    assert path.stat().st_size > 30_000_000
    tracemalloc.start()
    try:
        n = sum(isinstance(row, SourceItem) for row in read_questions(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n == 6000
    assert peak < 8_000_000


def test_the_same_questions_come_out_of_every_format(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = [_row(number) for number in (1, 2, 3)]
    flat = [{key: row[key] for key in row if key != "answers"} for row in data]
    _json(tmp_path / "q.json", data)
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in data) + "\n\n")
    (tmp_path / "lines.json").write_text("\n".join(json.dumps(row) for row in data))
    pq.write_table(pa.Table.from_pylist(data), tmp_path / "q.parquet")
    for name, delimiter in (("q.csv", ","), ("q.tsv", "\t"), ("semicolon.csv", ";")):
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, flat[0].keys(), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(flat)
    expected = [item.question for item in _items(tmp_path / "q.json")]
    for path in sorted(tmp_path.iterdir()):
        assert [item.question for item in _items(path)] == expected, path.name


def test_a_csv_row_over_several_lines_is_named_by_its_first(tmp_path) -> None:
    path = tmp_path / "q.csv"
    path.write_text('\nid,question,description\n1,甲,"一\n二"\n2,乙\n3,,丙\n', encoding="utf-8")
    first, short, untitled = read_questions(path)
    assert isinstance(first, SourceItem) and first.question.description == "一\n二"
    assert isinstance(short, Rejection) and short.where == "q.csv:5"
    assert short.detail == "2 cells for 3 columns" and short.raw == '["2", "乙"]'
    assert isinstance(untitled, Rejection) and untitled.where == "q.csv:6:question"


@pytest.mark.parametrize(
    ("keys", "mapping"),
    [
        (("idx", "title", "content", "tags"), {}),
        (("q_id", "Question", "Description", "key_words"), {}),
        (("question_id", "question_title", "desc", "tag"), {}),
        (("编号", "标题", "描述", "关键词"), {}),
        (("nr", "kopf", "text", "thema"), {"id": "nr", "question": "kopf", "description": "text"}),
        (("id", "a", "title", "k"), {"question": "a", "description": "title"}),
    ],
)
def test_forks_are_read_by_alias_or_by_mapping(tmp_path, keys, mapping) -> None:
    path = _json(tmp_path / "q.json", [dict(zip(keys, (7, TITLE, ACCOUNT, "人际"), strict=True))])
    (item,) = _items(path, columns=mapping)
    assert (item.question.id, item.question.question, item.question.description) == (
        "7",
        TITLE,
        ACCOUNT,
    )


def test_a_mapping_must_name_a_field() -> None:
    assert parse_columns(["question=title", "id = nr"]) == {"question": "title", "id": "nr"}
    for pair in ("titel=x", "question", "question="):
        with pytest.raises(UsageError, match="FIELD=COLUMN"):
            parse_columns([pair])


# --- files that are not what they say ------------------------------------------------------------


def _spreadsheet(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b" \n\n ", "empty"),
        (b"<!DOCTYPE html><html>log in</html>", "HTML"),
        (gzip.compress(b"[]", mtime=0), "gzip"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"%PDF-1.7", "PDF"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "old Excel"),
        (b"PAR1....", "Parquet"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        ('[{"question": "甲"}]'.encode("utf-16"), "UTF-16"),
        ('[{"question": "甲"}]'.encode("utf-16-le"), "zero byte"),
        (b'{"version": 1, "data": [{"question": "a"}]}', "object; expected an array"),
        (b'{\n "question": "a"\n}', "object; expected an array"),
        (b"question,description\n", "expected JSON"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path, content, told) -> None:
    path = tmp_path / "q.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=told) as caught:
        read_questions(path)
    assert str(path) in str(caught.value)


def test_a_spreadsheet_and_a_missing_file_are_named(tmp_path) -> None:
    (tmp_path / "q.csv").write_bytes(_spreadsheet(tmp_path / "q.xlsx"))
    with pytest.raises(DataError, match="Excel") as caught:
        read_questions(tmp_path / "q.csv")
    assert caught.value.hint and "CSV" in caught.value.hint
    with pytest.raises(DataError, match="no such file"):
        read_questions(tmp_path / "none.json")
    (tmp_path / "q.parquet").write_bytes(b"[]")
    with pytest.raises(DataError, match="not Parquet"):
        read_questions(tmp_path / "q.parquet")
    (tmp_path / "q.doc").write_bytes(b"[]")
    with pytest.raises(DataError, match="do not know the format"):
        read_questions(tmp_path / "q.doc")


def test_a_wrapped_array_comes_with_the_way_out(tmp_path) -> None:
    with pytest.raises(DataError) as caught:
        read_questions(_json(tmp_path / "q.json", {"meta": {}, "items": [_row(1)]}))
    assert caught.value.hint and "jq '.items'" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "line", "told", "n_before"),
    [
        ('[{"question":"甲","id":1},\n{"question":"乙" "id":2}]', 2, "Expecting ','", 1),
        ('[{"question":"甲","id":1}\n{"question":"乙","id":2}]', 2, "expected ','", 1),
        ('[{"question":"甲","id":1},\n{"question":"乙"', 2, "Expecting ','", 1),
        ('[{"question":"甲","id":1},\n', 2, "Expecting value", 1),
        ('[{"question":"甲","id":1}\n', 2, "file ends before", 1),
        ('[{"question":"甲","id":1}]\n[]', 2, "after the end", 1),
        ('[{"question":"甲\n","id":1}]', 1, "Invalid control character", 0),
        ('[{"question":"甲","id":' + "9" * 5000 + "}]", 1, "digits", 0),
    ],
)
def test_broken_syntax_ends_with_line_and_rows_read(tmp_path, text, line, told, n_before) -> None:
    path = tmp_path / "q.json"
    path.write_text(text, encoding="utf-8")
    reader = read_questions(path)
    with pytest.raises(DataError) as caught:
        list(reader)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert told in str(caught.value)
    assert f"{n_before} rows were read before" in str(caught.value)


def test_a_quote_never_closed_does_not_fill_the_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_CHARS", 10_000)
    monkeypatch.setattr(rows, "CHUNK_CHARS", 1_000)
    path = tmp_path / "q.json"
    path.write_text('[{"question": "' + "好" * 100_000, encoding="utf-8")
    with pytest.raises(DataError, match="a quote not closed"):
        list(read_questions(path))


def test_a_broken_line_of_jsonl_is_one_rejection(tmp_path) -> None:
    path = tmp_path / "q.jsonl"
    lines = [json.dumps(_row(1)), '{"question": "cut', json.dumps(_row(2))]
    path.write_text("\n".join(lines), encoding="utf-8")
    first, broken, last = read_questions(path)
    assert isinstance(first, SourceItem) and isinstance(last, SourceItem)
    assert isinstance(broken, Rejection)
    assert (broken.item_id, broken.where) == ("row 2", "q.jsonl:2")
    assert broken.raw == lines[1]
    path.write_text("{\n" + lines[0], encoding="utf-8")
    with pytest.raises(DataError, match="not JSON Lines"):
        list(read_questions(path))


# --- encodings -----------------------------------------------------------------------------------


def test_a_byte_order_mark_is_accepted_and_noted(tmp_path) -> None:
    path = tmp_path / "q.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([_row(1)]).encode())
    reader = read_questions(path)
    assert reader.source.has_bom and isinstance(next(reader), SourceItem)
    (tmp_path / "q.csv").write_bytes(b"\xef\xbb\xbf" + "id,question\n1,甲\n".encode())
    assert _items(tmp_path / "q.csv")[0].question.id == "1"


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_gbk_is_read_only_when_said(tmp_path, suffix) -> None:
    path = tmp_path / f"q.{suffix}"
    text = f"id,question\n1,{TITLE}\n"
    if suffix != "csv":
        text = json.dumps({"id": 1, "question": TITLE}, ensure_ascii=False)
        text = f"[{text}]" if suffix == "json" else text
    path.write_bytes(text.encode("gbk"))
    with pytest.raises(DataError, match="not utf-8") as caught:
        list(read_questions(path))
    assert caught.value.hint and "--encoding gb18030" in caught.value.hint
    assert _items(path, encoding="gb18030")[0].question.question == TITLE
    with pytest.raises(DataError, match="unknown encoding"):
        read_questions(path, encoding="klingon")


# --- rows that do not fit ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"question": ""}, "question", "missing or empty; the description has"),
        ({"question": None}, "question", "missing"),
        ({"question": " \u200b\n"}, "question", "missing"),
        ({"question": 12}, "question", "expected text, found the int 12"),
        ({"description": ["甲"]}, "description", "expected text, found a list"),
        ({"description": "好" * 20_001}, "description", "20,001 characters; the limit is 20,000"),
        ({"keywords": 5}, "keywords", "list of texts"),
        ({"keywords": ["甲", 5]}, "keywords", "list of texts"),
        ({"questionID": None}, "questionID", "missing id"),
        ({"questionID": True}, "questionID", "found true/false"),
        ({"questionID": 1.5}, "questionID", "found the float 1.5"),
        ({"questionID": float("nan")}, "questionID", "missing id"),
        ({"questionID": "a\nb"}, "questionID", "one line"),
    ],
)
def test_a_bad_row_is_rejected_with_its_field_and_reading_goes_on(
    tmp_path, changes, field, told
) -> None:
    bad = _row(2, **changes)
    path = _json(tmp_path / "q.json", [_row(1), bad, _row(3)], indent=1)
    first, rejected, last = read_questions(path)
    assert isinstance(first, SourceItem) and isinstance(last, SourceItem)
    assert isinstance(rejected, Rejection)
    assert rejected.reason is Reason.BAD_ROW and rejected.stage == "input"
    assert rejected.where == f"q.json:9:{field}"
    assert told in rejected.detail
    # as text, since NaN is not equal to itself
    assert json.dumps(json.loads(rejected.raw or "")) == json.dumps(bad)
    assert rejected.item_id == ("row 2" if field == "questionID" else "2")


def test_a_row_that_is_no_object_is_rejected(tmp_path) -> None:
    path = _json(tmp_path / "q.json", [None, "甲", [1], _row(1)])
    read = list(read_questions(path))
    assert [type(row) for row in read] == [Rejection, Rejection, Rejection, SourceItem]
    assert [row.detail for row in read if isinstance(row, Rejection)] == [
        "expected an object, found nothing",
        "expected an object, found text",
        "expected an object, found a list",
    ]


def test_the_first_of_duplicates_stays(tmp_path) -> None:
    same_text = _row(1) | {"questionID": 8}
    same_id = _row(2) | {"questionID": 1}
    spaced = _row(1) | {"questionID": 9, "question": f" {TITLE}1\u200b\r\n"}
    path = _json(tmp_path / "q.json", [_row(1, question=""), _row(1), same_text, same_id, spaced])
    bad, kept, *others = read_questions(path)
    assert isinstance(bad, Rejection) and isinstance(kept, SourceItem)
    assert [(row.item_id, row.reason) for row in others if isinstance(row, Rejection)] == [
        ("8", Reason.DUPLICATE_QUESTION),
        ("1", Reason.DUPLICATE_ID),
        ("9", Reason.DUPLICATE_QUESTION),
    ]


def test_duplicates_are_known_among_many(tmp_path) -> None:
    path = tmp_path / "q.jsonl"
    lines = [json.dumps({"id": n % 20_000, "question": f"问{n}"}) for n in range(25_000)]
    path.write_text("\n".join(lines))
    reasons = [row.reason for row in read_questions(path) if isinstance(row, Rejection)]
    assert reasons == [Reason.DUPLICATE_ID] * 5_000


def test_without_an_id_column_ids_come_from_the_content(tmp_path) -> None:
    data = [{"question": TITLE, "description": ACCOUNT}, {"question": "另一个问题"}]
    forth = _items(_json(tmp_path / "a.json", data))
    back = _items(_json(tmp_path / "b.json", data[::-1]))
    assert {item.question.id for item in forth} == {item.question.id for item in back}
    assert all(item.question.id.startswith("q-") for item in forth)
    (lost,) = _rejections(_json(tmp_path / "c.json", [_row(1), data[0]]))
    assert lost.detail == "this row has no id, and the first row has one"


def test_numbers_read_by_pandas_as_floats_are_the_same_ids(tmp_path) -> None:
    path = _json(tmp_path / "q.json", [_row(1, questionID=4394.0), _row(2, questionID=" x7 ")])
    assert [item.question.id for item in _items(path)] == ["4394", "x7"]


def test_a_file_without_a_question_column_is_refused_as_a_whole(tmp_path) -> None:
    rows_ = [{"id": n, "prompt": f"甲{n}"} for n in range(30)]
    for n_rows, n_read in ((3, 3), (30, 20)):
        reader = read_questions(_json(tmp_path / "q.json", rows_[:n_rows]))
        with pytest.raises(DataError, match="columns: id, prompt") as caught:
            for row in reader:
                assert isinstance(row, Rejection)
        assert caught.value.hint and "--column question=" in caught.value.hint
        assert reader.n_rows == n_read
    (tmp_path / "q.csv").write_text("id,prompt\n1,甲\n", encoding="utf-8")
    with pytest.raises(DataError, match="columns: id, prompt"):
        list(read_questions(tmp_path / "q.csv"))


@pytest.mark.parametrize("suffix", ["json", "csv"])
@pytest.mark.parametrize("field", ["id", "description", "keywords", "answers"])
def test_a_column_named_by_flag_must_be_there(tmp_path, suffix, field) -> None:
    path = tmp_path / f"q.{suffix}"
    path.write_text('[{"id": 1, "question": "a"}]' if suffix == "json" else "id,question\n1,a\n")
    with pytest.raises(DataError, match=r"no column 'typo'.*columns: .*id"):
        list(read_questions(path, columns={field: "typo"}))
    with pytest.raises(UsageError, match="no field 'titel'"):
        read_questions(path, columns={"titel": "question"})


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ("恋爱,恋爱经营", ("恋爱", "恋爱经营")),
        ("恋爱，恋爱经营、 边界 ,,恋爱", ("恋爱", "恋爱经营", "边界")),
        (["恋爱", " 边界 "], ("恋爱", "边界")),
        ('["恋爱", "边界"]', ("恋爱", "边界")),
        ("", ()),
        (None, ()),
    ],
)
def test_keywords_are_text_or_a_list(tmp_path, keywords, expected) -> None:
    (item,) = _items(_json(tmp_path / "q.json", [_row(1, keywords=keywords)]))
    assert item.question.keywords == expected


# --- text ----------------------------------------------------------------------------------------


def test_invisible_characters_go_and_are_counted(tmp_path) -> None:
    dirty = "\ufeff我\u200b最近\x07睡\u00a0不好\r\n👨\u200d👩\u200d👧 \ud83d"
    path = tmp_path / "q.json"
    path.write_text(json.dumps([_row(1, description=dirty)]), encoding="ascii")
    (item,) = _items(path)
    assert item.question.description == "我最近睡 不好\n👨\u200d👩\u200d👧 \ufffd"
    assert item.n_cleaned == 4
    assert check_file(path).n_cleaned == 1


@given(st.text())
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    once, _ = clean(text)
    assert clean(once) == (once, 0)
    once.encode()


@given(st.text(alphabet="好\u200b \n\r\ud800x"), st.data())
def test_a_moved_offset_points_at_the_same_text(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    part = clean(text)[0][move_offset(text, start) : move_offset(text, end)]
    assert part.strip() == clean(text[start:end])[0]


# --- answers -------------------------------------------------------------------------------------


def _answer(text: str, *spans: tuple[Any, Any, Any]) -> dict[str, Any]:
    labels = [dict(zip(("start", "end", "type"), span, strict=True)) for span in spans]
    return {"answer_text": text, "has_label": bool(spans), "labels_sequence": labels or None}


def test_answers_come_with_their_strategies(tmp_path) -> None:
    labelled = _answer("\u200b你好。试试看。", (1, 4, "Others"), (4, 8, "Direct Guidance"))
    answers = [labelled, _answer("抱抱你"), "只有文字"]
    path = _json(tmp_path / "q.json", [_row(1, answers=answers), _row(2, answers=None)])
    first, second = _items(path, with_answers=True)
    assert [answer.text for answer in first.answers] == ["你好。试试看。", "抱抱你", "只有文字"]
    assert [(s.start, s.end, s.type) for s in first.answers[0].strategies] == [
        (0, 3, "Others"),
        (3, 7, "Direct Guidance"),
    ]
    assert first.answers[1].strategies == () and second.answers == ()
    assert first.answers[0].question_id == "1"
    assert _items(path)[0].answers == ()


@pytest.mark.parametrize(
    "bad",
    [
        _answer("你好", (0, 3, "Others")),
        _answer("你好", (0, 2, "Others"), (1, 2, "Others")),
        _answer("你好", (1, 1, "Others")),
        _answer("你好", (0.0, 2.0, "Others")),
        _answer("你好", ("0", 2, "Others")),
        _answer("你好", (0, 2, " ")),
        _answer("你好", (0, 2, None)),
        {"answer_text": "你好", "labels_sequence": "Others"},
        {"answer_text": "你好", "labels_sequence": [{"start": 0}]},
        {"answer_text": None},
        {"answer_text": " "},
        {"reply": "你好\ud83d"},
        17,
    ],
)
def test_a_bad_answer_is_rejected_and_its_question_stays(tmp_path, bad) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps([_row(1, answers=[_answer("抱抱你"), bad])]))
    (item,) = _items(path, with_answers=True)
    assert [answer.text for answer in item.answers] == ["抱抱你"]
    (rejected,) = item.rejected_answers
    assert rejected.item_id == "1" and rejected.reason is Reason.BAD_ROW
    assert (rejected.where or "").startswith("q.json:1:answers.1")
    rejected.model_dump_json()
    report = check_file(path)
    assert (report.n_usable, report.n_answers) == (1, 1)
    assert report.rejected_answers is not None and report.rejected_answers.n == 1


def test_answers_in_a_csv_cell_may_be_json(tmp_path) -> None:
    path = tmp_path / "q.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "question", "answers"])
        writer.writerow([1, "甲", json.dumps([_answer("抱抱你", (0, 3, "Others"))])])
        writer.writerow([2, "乙", "一句回答"])
        writer.writerow([3, "丙", ""])
        writer.writerow([4, "丁", "长" * 200_000])
    items = _items(path, with_answers=True)
    assert [[a.text for a in item.answers] for item in items] == [["抱抱你"], ["一句回答"], [], []]
    assert items[0].answers[0].strategies[0].type == "Others"
    assert "limit" not in items[3].rejected_answers[0].detail
    assert "200,000 characters" in items[3].rejected_answers[0].detail


def test_half_a_surrogate_pair_does_no_harm_anywhere(tmp_path) -> None:
    path = tmp_path / "q.json"
    spans = [{"start": 0, "end": 2, "type": "Others\ud800"}]
    odd = _row(1, answers=[{"answer_text": "你好", "labels_sequence": spans}])
    odd |= {"questionID": "a\ud800", "keywords": "恋爱\ud800", "\udfff": "\udfff"}
    path.write_text(json.dumps([odd, odd | {"question": 5}]), encoding="ascii")
    item, rejected = read_questions(path, with_answers=True)
    assert isinstance(item, SourceItem) and isinstance(rejected, Rejection)
    for record in (item.question, *item.answers, rejected, check_file(path)):
        record.model_dump_json().encode()
    assert item.answers[0].strategies[0].type == "Others\ufffd"


# --- the report ----------------------------------------------------------------------------------


def test_the_report_adds_up(tmp_path) -> None:
    data = [_row(n, description="好" * n) for n in range(1, 21)]
    data += [_row(3), _row(1, questionID=99, description="好"), _row(5, question=0), {"extra": 1}]
    path = _json(tmp_path / "q.json", data)
    grades = lambda some: ["none" if one.id == "7" else "concern" for one in some]  # noqa: E731
    report = check_file(path, grade=grades)
    assert report.n_rows == 24 == report.n_usable + sum(f.n for f in report.rejected.values())
    assert {name: fault.n for name, fault in report.rejected.items()} == {
        "duplicate_id": 1,
        "duplicate_question": 1,
        "bad_row": 2,
    }
    spread = report.lengths["description"]
    assert (spread.n, spread.min, spread.median, spread.mean) == (20, 1, 10.5, 10.5)
    assert (spread.p95, spread.max) == (19, 20)
    assert report.lengths["answer"].max is None
    assert report.id_range == (1, 20)
    assert report.top_keywords == {"人际": 20, "校园": 20}
    assert report.unused_columns == ("extra",)
    assert report.risk == {"none": 1, "concern": 19}
    assert check_file(path).risk is None


# --- the bundled sample --------------------------------------------------------------------------

DISTORTIONS = {
    "all_or_nothing",
    "overgeneralization",
    "mental_filter",
    "disqualifying_positive",
    "mind_reading",
    "fortune_telling",
    "magnification",
    "emotional_reasoning",
    "should",
    "labeling",
    "personalization",
}
STRATEGIES = {
    "Interpretation",
    "Direct Guidance",
    "Approval and Reassurance",
    "Restatement",
    "Information",
    "Self-disclosure",
    "Others",
}
SAMPLE: list[dict[str, Any]] = json.loads(
    (ROOT / "data/psyqa/sample.json").read_text(encoding="utf-8")
)
KEY: dict[str, Any] = json.loads(
    (ROOT / "tests/golden/sample_key.json").read_text(encoding="utf-8")
)


def test_the_sample_is_in_psyqas_schema_and_manner() -> None:
    assert len(SAMPLE) >= 64
    for row in SAMPLE:
        assert list(row) == ["question", "description", "keywords", "answers", "questionID"]
        assert 13 <= len(row["question"]) <= 25, row["question"]
        assert 22 <= len(row["description"]) <= 400, row["description"]
        assert 2 <= len(row["keywords"].split(",")) <= 4
        assert isinstance(row["questionID"], int) and row["questionID"] > 900_000
        for answer in row["answers"]:
            assert list(answer) == ["answer_text", "has_label", "labels_sequence"]
            assert 100 <= len(answer["answer_text"]) <= 400, answer["answer_text"]
            assert answer["has_label"] == (answer["labels_sequence"] is not None)
    ids = [row["questionID"] for row in SAMPLE]
    assert ids == sorted(set(ids)) and ids[-1] - ids[0] > len(ids)
    assert sum(not row["answers"] for row in SAMPLE) >= 10
    lengths = sorted(len(row["description"]) for row in SAMPLE)
    assert 120 <= lengths[len(lengths) // 2] <= 160


def test_strategy_spans_of_the_sample_cover_the_text_without_gap() -> None:
    found = set()
    for row in SAMPLE:
        for answer in row["answers"]:
            spans = answer["labels_sequence"]
            if spans is None:
                continue
            assert [span["start"] for span in spans] == [0, *(span["end"] for span in spans[:-1])]
            assert spans[-1]["end"] == len(answer["answer_text"])
            found |= {span["type"] for span in spans}
    assert found == STRATEGIES


def test_the_sample_shows_every_distortion_and_enough_plain_and_crisis_questions() -> None:
    assert list(KEY) == [str(row["questionID"]) for row in SAMPLE]
    for name in DISTORTIONS:
        assert sum(name in key["distortions"] for key in KEY.values()) >= 4, name
    assert {name for key in KEY.values() for name in key["distortions"]} == DISTORTIONS
    risks = [key["risk"] for key in KEY.values()]
    assert risks.count("explicit") >= 2
    assert risks.count("explicit") + risks.count("concern") >= 6
    assert sum(not key["distortions"] and key["risk"] == "none" for key in KEY.values()) >= 15


def test_no_two_questions_of_the_sample_share_a_phrase() -> None:
    first_seen: dict[str, int] = {}
    for row in SAMPLE:
        text = row["description"]
        for phrase in {text[i : i + 9] for i in range(len(text) - 8)}:
            owner = first_seen.setdefault(phrase, row["questionID"])
            assert owner == row["questionID"], phrase
    assert not any(c.isdigit() for row in SAMPLE for c in row["description"] if c not in "ABC"), (
        "numbers are written in words, so that nothing looks like a phone number"
    )


def test_the_readme_states_the_samples_counts() -> None:
    text = (ROOT / "data/psyqa/README.md").read_text(encoding="utf-8")
    n_answers = sum(len(row["answers"]) for row in SAMPLE)
    assert f"{len(SAMPLE)} questions and {n_answers} answers" in text


def test_the_bundled_sample_reads_without_a_rejection() -> None:
    items = _items(bundled_sample_path(), with_answers=True)
    assert len(items) == len(SAMPLE)
    assert not any(item.rejected_answers for item in items)
    assert not any(item.n_cleaned for item in items)
