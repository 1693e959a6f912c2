"""The one table of finish reasons."""

from __future__ import annotations

from typing import Any

import pytest

from cbtqa.endings import Ending, ending_of, reason_text
from cbtqa.llm.chat import Reply, fault_of_reply
from cbtqa.records import Reason, Usage


@pytest.mark.parametrize(
    "reason",
    [None, "", "stop", "STOP", "eos", "eos_token", "stop_sequence", "end_turn", "COMPLETE",
     "normal", {"type": "stop", "matched": 151645}],
)  # fmt: skip
def test_a_known_good_ending_is_whole(reason: Any) -> None:
    assert ending_of(reason) is Ending.WHOLE


@pytest.mark.parametrize(
    "reason",
    ["length", "max_tokens", "MAX_TOKENS", "model_length", "insufficient_system_resource",
     "network_error", "model_context_window_exceeded", "abort", "error", "tool_calls", "repetition",
     "pause_turn", "OTHER", "a word of next year", {"type": "abort", "message": "gone"},
     {"type": "length", "length": 9}, {"reason": "stop"}, {}, ["stop"], 1, 0, False, 2.5],
)  # fmt: skip
def test_every_other_ending_is_a_cut(reason: Any) -> None:
    assert ending_of(reason) is Ending.CUT


@pytest.mark.parametrize(
    "reason", ["content_filter", "content-filter", "sensitive", "SAFETY", "prohibited_content"]
)
def test_the_end_by_a_filter_is_told_apart(reason: str) -> None:
    assert ending_of(reason) is Ending.CONTENT_FILTER


def test_what_is_kept_reads_as_it_was_judged() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    reasons: list[Any] = [None, " stop ", {"type": "stop"}, 7, nested, {"type": nested}, "x" * 999]
    for reason in reasons:
        kept = reason_text(reason)
        assert ending_of(kept) is ending_of(reason)
        assert kept is None or 0 < len(kept) <= 80


@pytest.mark.parametrize(
    ("reason", "fault", "words"),
    [
        ("length", Reason.CUT, "at the token limit (9 tokens)"),
        ("network_error", Reason.CUT, "'network_error'"),
        ("sensitive", Reason.CONTENT_FILTER, "sensitive"),
    ],
)
def test_a_fault_says_how_the_reply_ended(reason: str, fault: Reason, words: str) -> None:
    usage = Usage(completion_tokens=9)
    found = fault_of_reply(Reply("说到一半", finish_reason=reason, usage=usage))
    assert found is not None and found.reason is fault and words in found.detail
