"""Questions, answers and conversations in the shapes in which they circulate."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from cbtqa.errors import DataError, UsageError
from cbtqa.psyqa import SourceItem, check_file, read_questions
from cbtqa.records import Rejection
from cbtqa.shapes import BadField, first_turn, read_turns, shape_of

ASKED = [
    "和室友冷战两周了，回宿舍就紧张。",
    "面试又没过，我是不是很差劲？",
    "外婆走后我一直睡不着。",
]
REPLY = "听起来这段日子很不好受。"


def _write(path: Path, rows: Any) -> Path:
    if path.suffix == ".jsonl":
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    else:
        text = json.dumps(rows, ensure_ascii=False, indent=1)
    path.write_text(text, encoding="utf-8")
    return path


def _items(path: Path, **options: Any) -> list[SourceItem]:
    read = list(read_questions(path, **options))
    assert all(isinstance(row, SourceItem) for row in read), read
    return [row for row in read if isinstance(row, SourceItem)]


def _asked(path: Path, **options: Any) -> list[str]:
    return [item.question.question for item in _items(path, **options)]


# --- columns inside objects ----------------------------------------------------------------------


def test_a_dotted_column_reaches_into_objects_and_lists(tmp_path) -> None:
    rows = [
        {
            "qid": f"a{number}",
            "info": {"title": text, "more": {"body": "已经一个月了。"}, "topics": ["关系"]},
            "replies": [{"who": "x", "body": REPLY}, {"who": "y", "body": "慢慢来。"}],
        }
        for number, text in enumerate(ASKED)
    ]
    columns = {
        "question": "info.title",
        "description": "info.more.body",
        "keywords": "info.topics",
        "answers": "replies.body",
    }
    path = _write(tmp_path / "nested.json", rows)
    first = _items(path, columns=columns, with_answers=True)[0]
    assert (first.question.id, first.question.question) == ("a0", ASKED[0])
    assert first.question.description == "已经一个月了。"
    assert first.question.keywords == ("关系",)
    assert [answer.text for answer in first.answers] == [REPLY, "慢慢来。"]
    report = check_file(path, columns=columns)
    assert report.columns["question"] == "info.title"
    assert report.unused_columns == ()


def test_questions_inside_objects_are_refused_with_the_flags_that_reach_them(tmp_path) -> None:
    rows = [{"nr": 1, "post": {"title": ASKED[0], "content": "很累。"}, "stats": {"reply": "3"}}]
    with pytest.raises(DataError, match=r"post\.title, post\.content") as refused:
        list(read_questions(_write(tmp_path / "q.json", rows)))
    hint = "name it: --column question=post.title --column description=post.content"
    assert refused.value.hint == hint


def test_a_dotted_column_that_no_row_has_ends_the_reading(tmp_path) -> None:
    path = _write(tmp_path / "q.jsonl", [{"post": {"title": text}} for text in ASKED])
    with pytest.raises(DataError, match=r"no column 'post\.titel'"):
        list(read_questions(path, columns={"question": "post.titel"}))


# --- one answer a row ----------------------------------------------------------------------------


@pytest.mark.parametrize("has_ids", ["of_questions", "of_answers", "none"])
def test_rows_of_one_question_are_one_question_with_their_answers(tmp_path, has_ids) -> None:
    order = [0, 1, 0, 2, 1, 0]  # not sorted by question
    rows = []
    for number, place in enumerate(order):
        row = {"question": ASKED[place], "answer_text": f"{REPLY}第{number}个。"}
        if has_ids != "none":
            row["id"] = str(place if has_ids == "of_questions" else 100 + number)
        rows.append(row)
    path = _write(tmp_path / "flat.jsonl", rows)
    assert _asked(path) == ASKED
    read = _items(path, with_answers=True)
    assert [item.is_further for item in read] == [False, False, True, False, True, True]
    by_question = {item.question.question: item.question.id for item in read if not item.is_further}
    assert all(
        answer.question_id == by_question[item.question.question]
        for item in read
        for answer in item.answers
    )
    report = check_file(path)
    assert (report.n_rows, report.n_usable, report.n_further, report.n_answers) == (6, 3, 3, 6)
    assert report.answers_per_question.max == 3 and report.answers_per_question.n == 3
    assert not report.rejected


def test_a_row_that_repeats_question_and_answer_is_a_duplicate(tmp_path) -> None:
    row = {"question": ASKED[0], "answer": REPLY}
    path = _write(tmp_path / "q.jsonl", [row, row, {"question": ASKED[0], "answer": ""}])
    report = check_file(path)
    assert (report.n_usable, report.n_further, report.rejected["duplicate_question"].n) == (1, 0, 2)


def test_strategies_of_a_flat_row_are_kept(tmp_path) -> None:
    span = {"start": 0, "end": 4, "type": "Restatement"}
    row = {"question": ASKED[0], "answer_text": REPLY, "labels_sequence": [span]}
    (item,) = _items(_write(tmp_path / "q.json", [row]), with_answers=True)
    assert item.answers[0].strategies[0].type == "Restatement"


# --- tables saved as one object ------------------------------------------------------------------


def test_lists_that_datasets_exports_as_one_object_of_lists_are_read(tmp_path) -> None:
    labels = {"start": [0], "end": [2], "type": ["Others"]}
    answers = {"answer_text": [REPLY, "慢慢来。"], "labels_sequence": [labels, None]}
    (item,) = _items(
        _write(tmp_path / "q.jsonl", [{"question": ASKED[0], "answers": answers}]),
        with_answers=True,
    )
    assert [answer.text for answer in item.answers] == [REPLY, "慢慢来。"]
    assert item.answers[0].strategies[0].end == 2


def test_lists_of_different_lengths_are_a_rejection_that_names_them(tmp_path) -> None:
    answers = {"answer_text": [REPLY], "has_label": []}
    path = _write(tmp_path / "q.jsonl", [{"question": ASKED[0], "answers": answers}])
    (rejected,) = read_questions(path, with_answers=True)
    assert isinstance(rejected, Rejection)
    assert "answer_text 1, has_label 0" in rejected.detail


def _table(rows: list[dict[str, Any]], orient: str) -> Any:
    import pandas

    return json.loads(pandas.DataFrame(rows).to_json(orient=orient, force_ascii=False))


@pytest.mark.parametrize("orient", ["columns", "split", "list", "index"])
def test_tables_of_pandas_and_datasets_as_one_json_object_are_read(tmp_path, orient) -> None:
    rows = [{"question": text, "questionID": 7 + n} for n, text in enumerate(ASKED)]
    if orient == "list":
        document = {name: [row[name] for row in rows] for name in rows[0]}
    else:
        document = _table(rows, orient)
    items = _items(_write(tmp_path / "q.json", document))
    assert [item.question.id for item in items] == ["7", "8", "9"]
    assert [item.question.question for item in items] == ASKED


def test_rows_by_id_take_their_key_as_id(tmp_path) -> None:
    path = _write(tmp_path / "q.json", {f"p-{n}": {"title": t} for n, t in enumerate(ASKED)})
    assert [item.question.id for item in _items(path)] == ["p-0", "p-1", "p-2"]
    assert _items(path)[1].where == "q.json:p-1"


@pytest.mark.parametrize(
    "document",
    [
        {"train": [{"question": "甲"}], "test": [{"question": "乙"}]},
        {"a": {"question": "甲"}, "n": 3},
        {"columns": 3, "data": "x"},
        {"question": ["甲"], "id": [1, 2]},
    ],
)
def test_other_objects_are_refused_at_once(tmp_path, document) -> None:
    with pytest.raises(DataError, match="expected an array"):
        read_questions(_write(tmp_path / "q.json", document))


# --- conversations -------------------------------------------------------------------------------

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "chat messages": {
        "messages": [
            {"role": "system", "content": "你是咨询师。"},
            {"role": "assistant", "content": "你好。"},
            {"role": "user", "content": ASKED[0]},
            {"role": "assistant", "content": REPLY},
        ]
    },
    "ShareGPT conversations": {
        "conversations": [
            {"from": "human", "value": ASKED[0]},
            {"from": "gpt", "value": REPLY},
            {"from": "human", "value": "谢谢。"},
        ]
    },
    "conversations as in EmoLLM and XTuner": {
        "conversation": [
            {"system": "你是咨询师。", "input": ASKED[0], "output": REPLY},
            {"input": "谢谢。", "output": "不客气。"},
        ]
    },
    "ms-swift rows": {"query": "谢谢。", "response": "不客气。", "history": [[ASKED[0], REPLY]]},
    "Alpaca rows": {"instruction": ASKED[0], "input": "", "output": REPLY},
    "pairs of context and response": {"Context": ASKED[0], "Response": REPLY},
    "conversations": {
        "dialog": [{"speaker": "seeker", "text": ASKED[0]}, {"speaker": "supporter", "text": REPLY}]
    },
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_are_named_with_the_option_that_takes_the_first_turn(tmp_path, name) -> None:
    path = _write(tmp_path / "c.jsonl", [{"id": 5, **CONVERSATIONS[name]}])
    with pytest.raises(DataError, match="not questions") as refused:
        list(read_questions(path))
    assert f"holds {name} (" in str(refused.value)
    assert "--first-turn" in (refused.value.hint or "")
    (item,) = _items(path, first_turn=True)
    assert (item.question.id, item.question.question) == ("5", ASKED[0])
    assert check_file(path, first_turn=True).columns["question"].endswith("(first turn)")


def test_the_first_turn_ends_where_the_other_side_speaks() -> None:
    said = ["我不知道怎么开口。", "就是最近很累。", "嗯。"]
    turns = [{"role": "client", "content": text} for text in said]
    turns.insert(2, {"role": "counselor", "content": "我在听。"})
    assert first_turn(read_turns({"messages": turns})) == "\n".join(said[:2])


def test_conversations_that_begin_alike_are_one_question(tmp_path) -> None:
    rows = [{"Context": ASKED[0], "Response": f"{REPLY}{n}"} for n in (1, 2, 3, 3)]
    report = check_file(_write(tmp_path / "c.jsonl", rows), first_turn=True)
    assert (report.n_usable, report.n_further) == (1, 2)
    assert report.rejected["duplicate_question"].n == 1
    assert report.answers_per_question.max == 0


def test_a_file_that_is_one_conversation_is_named(tmp_path) -> None:
    rows = [{"role": "client", "content": ASKED[0]}, {"role": "counselor", "content": REPLY}]
    with pytest.raises(DataError, match="each row is one turn") as refused:
        list(read_questions(_write(tmp_path / "0.json", rows)))
    assert "jq" in (refused.value.hint or "")


def test_a_conversation_that_cannot_be_read_is_a_rejection_of_its_own(tmp_path) -> None:
    rows = [
        {"messages": [{"role": "narrator", "content": "夜里。"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "assistant", "content": "你好。"}]},
        {"messages": []},
        {"messages": "聊天记录"},
        {"messages": [{"role": "user", "content": ASKED[0]}]},
    ]
    read = list(read_questions(_write(tmp_path / "c.jsonl", rows), first_turn=True))
    details = [row.detail for row in read if isinstance(row, Rejection)]
    assert len(details) == 5
    assert "unknown speaker 'narrator'" in details[0]
    assert "expected text, found nothing" in details[1]
    assert details[2] == details[3] == "the client says nothing"
    assert "expected a list of turns, found text" in details[4]
    assert isinstance(read[5], SourceItem)


def test_a_file_whose_conversations_all_fail_says_why_for_each(tmp_path) -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]
    path = _write(tmp_path / "c.jsonl", [{"messages": picture}] * 3)
    report = check_file(path, first_turn=True)
    assert report.rejected["bad_row"].n == 3
    assert "messages.0.content: expected text" in report.rejected["bad_row"].examples[0]


def test_an_object_nested_beyond_reason_is_refused_in_a_sentence(tmp_path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(DataError, match=r"deep\.json: nested more than"):
        read_questions(path)


def test_first_turn_on_a_file_of_questions_says_that_there_are_no_conversations(tmp_path) -> None:
    path = _write(tmp_path / "q.jsonl", [{"question": text} for text in ASKED])
    with pytest.raises(DataError, match="no conversation in the first rows; columns: question"):
        list(read_questions(path, first_turn=True))
    with pytest.raises(UsageError, match="exclude"):
        read_questions(path, first_turn=True, columns={"question": "question"})


def test_turns_as_json_in_a_csv_cell_are_read(tmp_path) -> None:
    path = tmp_path / "c.csv"
    turns = json.dumps(CONVERSATIONS["chat messages"]["messages"], ensure_ascii=False)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["nr", "messages"], ["1", turns]])
    assert _asked(path, first_turn=True) == [ASKED[0]]


def test_a_question_column_goes_before_a_column_of_turns(tmp_path) -> None:
    rows = [{"title": ASKED[0], **CONVERSATIONS["chat messages"]}]
    assert _asked(_write(tmp_path / "q.jsonl", rows)) == [ASKED[0]]


def test_a_turn_that_is_not_to_be_learnt_is_refused() -> None:
    with pytest.raises(BadField, match="loss"):
        read_turns({"messages": [{"role": "assistant", "content": "甲", "loss": False}]})


def test_shapes_are_found_whatever_the_case_of_their_columns() -> None:
    assert shape_of(["ID", "Instruction", "Input", "Output"]) == (
        "Alpaca rows",
        ("Instruction", "Input", "Output"),
    )
    assert shape_of(["question", "description", "answers"]) is None


# --- damage --------------------------------------------------------------------------------------


def _web_1252(data: bytes) -> str:
    return "".join(bytes([one]).decode("cp1252", "ignore") or chr(one) for one in data)


WRONG = {
    "latin-1": lambda text: text.encode().decode("latin-1"),
    "windows-1252": lambda text: _web_1252(text.encode()),
    "cp1252 that lost bytes": lambda text: text.encode().decode("cp1252", "ignore"),
    "gbk read as latin-1": lambda text: text.encode("gb18030").decode("latin-1"),
    "utf-8 read as gbk": lambda text: text.encode().decode("gbk", "replace"),
    "question marks": lambda text: text.encode("ascii", "replace").decode(),
}


@pytest.mark.parametrize("name", WRONG)
def test_text_in_a_wrong_decoding_is_rejected_and_never_a_question(tmp_path, name) -> None:
    rows = [{"id": n, "question": WRONG[name](text)} for n, text in enumerate(ASKED)]
    rows.append({"id": 9, "question": "這個禮拜一直失眠，怎麼辦？"})
    report = check_file(_write(tmp_path / "q.json", rows))
    assert report.rejected["wrong_decoding"].n == 3
    assert report.n_usable == 1
    assert "cannot be Chinese" in report.rejected["wrong_decoding"].examples[0]


@pytest.mark.parametrize(
    ("name", "repair"),
    [
        ("latin-1", "TEXT.encode('latin-1').decode('utf-8')"),
        ("gbk read as latin-1", "TEXT.encode('latin-1').decode('gb18030')"),
        ("windows-1252", "ftfy"),
        ("cp1252 that lost bytes", "fetch the file again"),
    ],
)
def test_the_decoding_that_repairs_a_text_is_named(tmp_path, name, repair) -> None:
    path = _write(tmp_path / "q.json", [{"question": WRONG[name](ASKED[1] + ASKED[2])}])
    (example,) = check_file(path).rejected["wrong_decoding"].examples
    assert repair in example


@pytest.mark.parametrize(
    "text",
    [
        *("café里只有我……怎么办", "Crème brûlée à la carte, déjà vu", "……", "————", "????"),
        *("我爱“她”——真的？？？？", "Why do I feel so sad?", "联通", "鬱鬱寡歡，籲請幫忙"),
    ],
)
def test_sound_text_is_not_taken_for_a_wrong_decoding(tmp_path, text) -> None:
    path = _write(tmp_path / "q.json", [{"question": text, "description": "我最近很累。"}])
    assert check_file(path).n_usable == 1


@pytest.mark.parametrize("value", ["1.2E+17", "1,23e+11", 1.2e17, "#NAME?", "#######"])
def test_an_id_that_a_spreadsheet_has_ruined_is_rejected_with_the_cause(tmp_path, value) -> None:
    rows = [{"id": value, "question": ASKED[0]}, {"id": "8", "question": ASKED[1]}]
    report = check_file(_write(tmp_path / "q.json", rows))
    assert report.n_usable == 1
    (example,) = report.rejected["bad_row"].examples
    assert "spreadsheet" in example or "digits are lost" in example


def test_rounded_ids_entities_and_other_languages_are_counted(tmp_path) -> None:
    ids = ["123456789012345000", "123456789012346000", "20"]
    asked = ["睡不着&nbsp;怎么办", ASKED[1], "I cannot sleep at all"]
    rows = [{"id": one, "question": text} for one, text in zip(ids, asked, strict=True)]
    report = check_file(_write(tmp_path / "q.json", rows))
    assert (report.n_usable, report.n_long_ids, report.n_rounded_ids) == (3, 2, 2)
    assert (report.n_entities, report.n_hardly_chinese) == (1, 1)
