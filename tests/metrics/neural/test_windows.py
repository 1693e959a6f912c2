"""Windows hold every token once, fit, and end where sentences end when they can."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cbtqa.metrics.neural.weights import sentence_ends, split_evenly, windows_within

TEXTS = st.text(alphabet="我你他，。！”", max_size=300)


@given(TEXTS, st.integers(1, 40))
def test_windows_hold_every_token_once_and_fit(text: str, limit: int) -> None:
    windows = windows_within(list(text), limit)
    assert "".join(text[window] for window in windows) == text
    assert all(window.stop - window.start <= limit for window in windows)
    assert len(windows) == 1 or len(text) > limit


@given(TEXTS, st.integers(1, 30))
def test_a_text_is_split_into_as_many_windows_as_asked_for(text: str, n: int) -> None:
    windows = split_evenly(list(text), n)
    assert len(windows) == n
    assert "".join(text[window] for window in windows) == text


def test_cuts_fall_behind_sentences_and_their_closing_quotes() -> None:
    text = "我想了很久很久。他轻轻说“好的。”后来呢？我们又聊了！"
    windows = [text[window] for window in split_evenly(list(text), 3)]
    assert windows == ["我想了很久很久。", "他轻轻说“好的。”", "后来呢？我们又聊了！"]
    assert sentence_ends(list("好。”我！")) == [3]
    assert sentence_ends(list("“好”我")) == []


def test_a_text_without_sentence_ends_is_cut_evenly() -> None:
    assert [w.stop - w.start for w in windows_within(["我"] * 100, 30)] == [25, 25, 25, 25]
