"""Reply text to JSON: what is taken, what is repaired, and what is never taken for success."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbtqa.llm.chat import Fault
from cbtqa.llm.structured import parse_object
from cbtqa.records import Reason

GOOD = {
    "empathy": "听得出来，这一周你过得很不容易。",
    "thought": "你心里可能在说：“我什么都做不好”。",
    "challenge": "真的每一件事都没做好吗？",
    "plan": "1. 先睡够；2. 写下三件小事。",
    "hope": "慢慢来，会好的！",
}
TEXT = json.dumps(GOOD, ensure_ascii=False)
WITH_BREAK = GOOD | {"challenge": "真的每一件事\n都没做好吗？"}


def fits(found: dict[str, object]) -> bool:
    return set(found) == set(GOOD)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT, GOOD),
        (f"```json\n{TEXT}\n```", GOOD),
        (f"好的，以下是回答：\n{TEXT}\n希望对你有帮助。", GOOD),
        (f'我要输出 {{"empathy": ...}}\n{TEXT}', GOOD),
        (f"{{以下是回答}}{TEXT}", GOOD),
        (TEXT.replace("每一件事", "每一件事\n"), WITH_BREAK),
        (TEXT.replace('"empathy"', "“empathy”"), GOOD),
        (TEXT[:-1] + ",}", GOOD),
        (str(GOOD), GOOD),
        (TEXT + "\n" + TEXT, GOOD),
        (f"[{TEXT}]", GOOD),
        (json.dumps(TEXT, ensure_ascii=False), GOOD),
        (TEXT.replace('。", "thought', '。" "thought'), GOOD),
        (TEXT.replace("每一件事", "每一件事\n")[:-1] + ",}", WITH_BREAK),
    ],
)
def test_good_and_harmlessly_damaged_objects_are_taken_exactly(
    text: str, expected: dict[str, str]
) -> None:
    assert parse_object(text, fits) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "抱歉，我不能帮你。",
        TEXT[:-1],
        TEXT[: len(TEXT) * 7 // 10],
        TEXT[: TEXT.index('"plan') + 4],
        TEXT.replace('": "', '"："').replace('", "', '"，"'),
        '{"a": {"x": "一"}, "b": "二',
        '{"a": {"x": "一"}',
        '{"a": "一", "a": "二"}',
        '{"a": NaN}',
        TEXT + json.dumps(GOOD | {"hope": "另一个"}, ensure_ascii=False),
        '{"a": "一"}, "b": "二"}',
        '"a": "一", "b": {"c": "二"}}',
        '{"a": ' * 5_000,
    ],
)
def test_no_cut_contradiction_or_refusal_passes_for_an_object(text: str) -> None:
    found = parse_object(text)
    assert isinstance(found, Fault) and found.reason is Reason.NOT_JSON and found.detail


def test_quotes_inside_a_text_are_kept_or_the_reply_is_turned_away() -> None:
    text = TEXT.replace("“", '"').replace("”", '"')
    found = parse_object(text, fits)
    assert found == GOOD | {"thought": '你心里可能在说："我什么都做不好"。'} or isinstance(
        found, Fault
    )


def test_an_undamaged_object_is_given_back_even_when_it_does_not_fit() -> None:
    assert parse_object('{"empathy": "一"}', fits) == {"empathy": "一"}


words = st.text(st.sampled_from("心情不好，。“”\"'{}[]:,\\ \nab1"), max_size=12)
objects = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), words | st.lists(words, max_size=2), min_size=1
)


@given(objects, st.data())
def test_a_cut_object_is_never_taken(original: dict[str, object], data: st.DataObject) -> None:
    text = json.dumps(original, ensure_ascii=False)
    n_kept = data.draw(st.integers(0, len(text) - 1))
    found = parse_object(text[:n_kept])
    assert isinstance(found, Fault), f"{text[:n_kept]} became {found}"


@given(objects)
def test_any_whole_object_is_taken_exactly(original: dict[str, object]) -> None:
    text = json.dumps(original, ensure_ascii=False)
    assert parse_object(f"好的：{text}") == original


@given(objects, st.data())
def test_a_repair_never_loses_or_adds_text(
    original: dict[str, object], data: st.DataObject
) -> None:
    text = json.dumps(original, ensure_ascii=False)
    place = data.draw(st.integers(0, len(text) - 1))
    damaged = (
        text[:place] + data.draw(st.sampled_from(["", ",", '"', "}", "\n"])) + text[place + 1 :]
    )
    found = parse_object(damaged)
    if isinstance(found, Fault):
        return
    kept = [mark for mark in json.dumps(found, ensure_ascii=False) if mark in "心情不好，。ab1"]
    there = [mark for mark in damaged if mark in "心情不好，。ab1"]
    assert "".join(kept) == "".join(there)
