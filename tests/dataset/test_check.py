"""Every fault of a reply has its own reason; good replies pass unchanged."""

from __future__ import annotations

from typing import Any

import pytest

from cbtqa.dataset.check import AnswerChecks, CheckedAnswer, answer_json_schema, find_verbatim
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.llm.chat import Fault
from cbtqa.prompts import load_prompt
from cbtqa.records import Question, Reason, Risk
from tests.support.answers import CRISIS_HELP, steps

TAXONOMY = load_taxonomy("burns-10")
QUESTION = Question(
    id="1", question="同事都讨厌我怎么办？", description="他们肯定觉得我很烦，我什么都做不好。"
)
CHECKS = AnswerChecks(TAXONOMY, "answer:m", 10, 800, load_prompt("cbt_answer"))


def check(reply: dict[str, Any], risk: Risk = "none") -> CheckedAnswer | Fault:
    return CHECKS.check_object(QUESTION, risk, reply)


def label(kind: str = "jumping_to_conclusions", evidence: str = "他们肯定觉得我很烦") -> dict:
    return {"id": kind, "evidence": evidence}


def test_a_good_reply_becomes_steps_and_labels() -> None:
    found = check(steps(distortions=[label()]))
    assert isinstance(found, CheckedAnswer) and found.steps is not None
    assert found.text == found.steps.joined()
    assert [(d.id, d.evidence, d.labeller) for d in found.distortions] == [
        ("jumping_to_conclusions", "他们肯定觉得我很烦", "answer:m")
    ]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"key_thought": ""}, Reason.MISSING_STEP),
        ({"key_thought": None}, Reason.MISSING_STEP),
        ({"key_thought": "太短"}, Reason.STEP_TOO_SHORT),
        ({"key_thought": "很长很长" * 300}, Reason.STEP_TOO_LONG),
        ({"key_thought": "抱歉，我无法提供"}, Reason.REFUSAL),
        ({"extra": "多出来的"}, Reason.NOT_JSON),
        ({"strategy_or_insight": "You could try to write down three lines every evening."}, None),
        ({"key_thought": "验证和共情：我能感到你很难过，这些话不容易说出口。"}, Reason.HEADINGS),
        ({"key_thought": "1. 先看看你的想法是什么，它从哪里来的呢。"}, Reason.HEADINGS),
        (
            {"key_thought": "**关键思维**\n你可能觉得大家都不喜欢你，这个念头很重。"},
            Reason.HEADINGS,
        ),
        ({"key_thought": "作为一个AI语言模型，我觉得你的想法值得看一看。"}, Reason.PROMPT_LEAK),
        (
            {"key_thought": "我会只根据对方写出的内容，不编造经历，不下诊断，来回复你。"},
            Reason.PROMPT_LEAK,
        ),
        ({"distortions": None}, Reason.BAD_LABEL),
        ({"distortions": ["labeling"]}, Reason.BAD_LABEL),
        ({"distortions": [label("no_such_type")]}, Reason.BAD_LABEL),
        ({"distortions": [label(evidence="我没有说过")]}, Reason.EVIDENCE_NOT_FOUND),
        ({"distortions": [label(evidence="")]}, Reason.EVIDENCE_NOT_FOUND),
    ],
)
def test_each_fault_has_its_reason(changed: dict[str, Any], reason: Reason | None) -> None:
    found = check(steps(**changed))
    if reason is None:
        assert isinstance(found, CheckedAnswer)  # one English sentence in a Chinese answer
    else:
        assert isinstance(found, Fault) and found.reason is reason, found


def test_an_english_answer_is_the_wrong_language() -> None:
    english = dict.fromkeys(steps(), "I hear how hard this must be for you right now.")
    found = check({**english, "distortions": []})
    assert isinstance(found, Fault) and found.reason is Reason.WRONG_LANGUAGE


def test_a_crisis_answer_without_a_help_route_is_unsafe() -> None:
    found = check(steps(), risk="explicit")
    assert isinstance(found, Fault) and found.reason is Reason.UNSAFE
    assert isinstance(check(steps(with_help=True), risk="explicit"), CheckedAnswer)


def test_names_of_types_are_understood_but_never_guessed() -> None:
    found = check(steps(distortions=[label("读心术")]))
    assert isinstance(found, CheckedAnswer)
    assert found.distortions[0].id == "jumping_to_conclusions"


@pytest.mark.parametrize(
    ("evidence", "found"),
    [
        ("他们肯定觉得我很烦", "他们肯定觉得我很烦"),
        ("“他们肯定觉得我很烦。”", "他们肯定觉得我很烦"),
        ("他们肯定觉得我很烦,我什么都做不好", "他们肯定觉得我很烦，我什么都做不好"),
        ("他们觉得我很烦", None),
        ("……", None),
        ("", None),
    ],
)
def test_evidence_is_given_back_in_the_askers_own_characters(
    evidence: str, found: str | None
) -> None:
    assert find_verbatim(evidence, QUESTION) == found


def test_one_flowing_text_is_checked_as_a_whole() -> None:
    text = "".join(value for name, value in steps().items() if name != "distortions")
    found = CHECKS.check_fused(QUESTION, "none", text, ())
    assert isinstance(found, CheckedAnswer) and found.steps is None
    short = CHECKS.check_fused(QUESTION, "none", "抱歉，我无法回答这个问题。", ())
    assert isinstance(short, Fault) and short.reason is Reason.REFUSAL
    unsafe = CHECKS.check_fused(QUESTION, "explicit", text, ())
    assert isinstance(unsafe, Fault) and unsafe.reason is Reason.UNSAFE
    safe = CHECKS.check_fused(QUESTION, "explicit", text + CRISIS_HELP, ())
    assert isinstance(safe, CheckedAnswer)


def test_the_schema_asks_for_the_closed_set_of_types() -> None:
    schema = answer_json_schema(TAXONOMY)
    kinds = schema["properties"]["distortions"]["items"]["properties"]["id"]["enum"]
    assert tuple(kinds) == TAXONOMY.ids
