"""Every fault of a reply has its own reason; good replies pass unchanged."""

from __future__ import annotations

from typing import Any

import pytest

from cbtqa.dataset.check import AnswerChecks, CheckedAnswer, answer_json_schema, find_verbatim
from cbtqa.dataset.instruction import Grade
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.llm.chat import Fault
from cbtqa.prompts import load_prompt
from cbtqa.prompts.rules import load_rules
from cbtqa.records import Question, Reason, Risk
from tests.support.answers import CRISIS_HELP, steps

TAXONOMY = load_taxonomy("burns-10")
QUESTION = Question(
    id="1", question="同事都讨厌我怎么办？", description="他们肯定觉得我很烦，我什么都做不好。"
)
CHECKS = AnswerChecks(TAXONOMY, "answer:m", 10, 800, load_prompt("cbt_answer"))


def check(reply: dict[str, Any], risk: Risk = "none") -> CheckedAnswer | Fault:
    return CHECKS.check_object(QUESTION, Grade(risk, risk), reply)


QUOTING = (
    "你写到“他们肯定觉得我很烦”，这是你替他们作出的判断，还没有人这样说过，它却让你不敢去上班。"
)


def label(kind: str = "jumping_to_conclusions", evidence: str = "他们肯定觉得我很烦") -> dict:
    return {"id": kind, "evidence": evidence}


def test_a_good_reply_becomes_steps_and_labels() -> None:
    found = check(steps(key_thought=QUOTING, distortions=[label()]))
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
        ({"strategy_or_insight": "《The Body Keeps the Score》这本书里写过，身体也会记得。"}, None),
        (
            {"strategy_or_insight": "You could try to write down three lines every evening."},
            Reason.WRONG_LANGUAGE,
        ),
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
        assert isinstance(found, CheckedAnswer)
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
    found = check(steps(key_thought=QUOTING, distortions=[label("读心术")]))
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
    text = "\n\n".join(value for name, value in steps().items() if name != "distortions")
    found = CHECKS.check_fused(QUESTION, Grade("none", "none"), text, ())
    assert isinstance(found, CheckedAnswer) and found.steps is None
    short = CHECKS.check_fused(QUESTION, Grade("none", "none"), "抱歉，我无法回答这个问题。", ())
    assert isinstance(short, Fault) and short.reason is Reason.REFUSAL
    unsafe = CHECKS.check_fused(QUESTION, Grade("explicit", "explicit"), text, ())
    assert isinstance(unsafe, Fault) and unsafe.reason is Reason.UNSAFE
    safe = CHECKS.check_fused(QUESTION, Grade("explicit", "explicit"), CRISIS_HELP + text, ())
    assert isinstance(safe, CheckedAnswer)


def test_the_schema_asks_for_the_closed_set_of_types() -> None:
    schema = answer_json_schema(TAXONOMY)
    assert schema["properties"]["key_thought"] == {"type": "string"}
    kinds = schema["properties"]["distortions"]["items"]["properties"]["id"]["enum"]
    assert tuple(kinds) == TAXONOMY.ids


LOOP = "慢慢来，一切都会好起来的，你要相信自己。"
DEGENERATE = {
    "a control token": (
        {"key_thought": "你写下的话里有一个很重的判断。<|im_end|>"},
        "control_tokens",
    ),
    "an invented turn": (
        {"encouragement_and_foresight": "慢慢来，这只是开始。\n用户：谢谢你。\n助手：不客气。"},
        "other_speaker",
    ),
    "reasoning in a field": (
        {"validation_and_empathy": "<thinking>先共情</thinking>听起来你很不容易。"},
        "reasoning",
    ),
    "reasoning without marks": (
        {"validation_and_empathy": "好的，用户说同事讨厌他，我需要先共情，再找出念头。"},
        "reasoning",
    ),
    "a loop": ({"strategy_or_insight": LOOP * 12}, "repetition"),
    "equal steps": (
        dict.fromkeys(list(steps())[:5], "我能感到你这段日子过得不容易，慢慢来就好。"),
        "repetition",
    ),
    "the question in every step": (
        dict.fromkeys(list(steps())[:5], QUESTION.source_text),
        "copied_question",
    ),
    "the question in two steps": (
        {"key_thought": QUESTION.description, "strategy_or_insight": f"{QUESTION.description}嗯。"},
        "copied_question",
    ),
    "a blank": ({"validation_and_empathy": "[姓名]你好，读到这里能感到你的难过。"}, "placeholder"),
    "something left out": (
        {"strategy_or_insight": "可以先写下三行字（此处省略）。"},
        "placeholder",
    ),
    "HTML": ({"strategy_or_insight": "<p>可以先写下三行字，再看看。</p>"}, "markup"),
    "code": ({"strategy_or_insight": "可以先写下三行字。```json"}, "markup"),
    "a lost character": (
        {"key_thought": "你写下的那句话里，藏着一个\ufffd重的判断。"},
        "broken_text",
    ),
    "traditional script": (
        {
            "key_thought": "你寫下的那句話裡，好像藏著一個很重的判斷，它讓一件事變成了對整個人的評價。",
            "strategy_or_insight": "可以先用三行字寫下發生了什麼、還有什麼別的可能，再試著做一件小事。",
        },
        "wrong_script",
    ),
    "an English tail": (
        {
            "encouragement_and_foresight": "慢慢来，这只是一个开始，需要的时候也可以找人聊一聊。"
            "Remember that you are not alone."
        },
        "wrong_language",
    ),
    "a word of another script": (
        {"key_thought": "你写下的那句话里，藏着一个очень重的判断，它让你更难受。"},
        "wrong_language",
    ),
    "the prompt's fence": ({"key_thought": "<<<\n他们肯定觉得我很烦\n>>>\n"}, "prompt_leak"),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_text_that_says_nothing_is_no_answer(case: str) -> None:
    changed, reason = DEGENERATE[case]
    found = check(steps(**changed))
    assert isinstance(found, Fault)
    assert found.reason.value == reason


@pytest.mark.parametrize(
    "text",
    [
        "你写到“他们肯定觉得我很烦”，这句话里有一个很重的判断，值得慢慢看一看。",
        "古人说“學而不思則罔”，想一想，这句话和你现在的处境有没有一点像？",
        "你可以对自己说：“用户再挑剔，我也尽力了。”也可以对同事说：“今天我想早点走。”",
        "真的，真的，真的，你已经很努力了，已经很努力了，不必再责怪自己。",
        "先深呼吸……再慢慢数到十。试试 KEEP 或 Headspace 这类应用，挑一个顺手的。",
    ],
)
def test_what_only_looks_odd_is_an_answer(text: str) -> None:
    assert isinstance(check(steps(challenge_or_reflection=text)), CheckedAnswer)


# --- the rules of version 2 of the prompts --------------------------------------------------------

RULES = load_rules("cbt_answer.rules")


def of_length(n: int) -> dict[str, Any]:
    """Five good steps whose text has `n` characters."""
    good = steps()
    missing = n - sum(len(value) for name, value in good.items() if name != "distortions")
    days = ("清晨", "午后", "傍晚", "睡前", "周末", "雨天", "路上", "楼下", "窗边", "桌前")
    acts = ("散步", "读信", "浇花", "听歌", "写字", "做饭", "画画", "伸展", "喝茶", "望云", "拍照")
    words = "".join(f"{days[i % 10]}{acts[i % 11]}{days[(i + 3) % 7]}也好，" for i in range(99))
    good["strategy_or_insight"] += words[:missing]
    return good


def test_the_prompt_and_the_check_hold_to_the_same_numbers() -> None:
    for risk in ("none", "concern", "explicit"):
        budget = RULES.budget_of(risk)
        assert f"全文 {budget.told[0]} 到 {budget.told[1]} 个汉字" in RULES.budget_block(risk)
        assert budget.accepted[0] <= budget.told[0] < budget.told[1] <= budget.accepted[1]
        assert budget.accepted_questions[1] >= budget.questions[1]
        assert sum(low for low, _ in budget.steps) == budget.told[0]
        assert abs(sum(high for _, high in budget.steps) - budget.told[1]) <= 10
    longest = RULES.budget_of("none").accepted[1]
    assert isinstance(check(of_length(longest)), CheckedAnswer)
    found = check(of_length(longest + 1))
    assert isinstance(found, Fault) and found.reason is Reason.STEP_TOO_LONG
    assert "350 到 550" in found.advice


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"key_thought": QUOTING + "您辛苦了。"}, Reason.STYLE),
        ({"key_thought": QUOTING + "可以对她说：“您先听我说完。”"}, None),
        ({"key_thought": QUOTING + "加油😊"}, Reason.STYLE),
        (
            {"strategy_or_insight": "首先，写下三行字；其次，找一件小事试一试，看看会怎么样。"},
            Reason.STYLE,
        ),
        (
            {"key_thought": "为什么会这样呢？是谁说的？有没有别的可能？你当时在想什么？"},
            Reason.STYLE,
        ),
        (
            {"key_thought": "这个判断很重，它让一件事变成了对整个人的评价，也让你更难受。"},
            Reason.BAD_LABEL,
        ),
        ({"key_thought": QUOTING + "这是一种非黑即白的想法。"}, Reason.BAD_LABEL),
        ({"key_thought": QUOTING + "这谈不上非黑即白。"}, None),
        (
            {"strategy_or_insight": "今晚写下三行字，最后一次翻开那本书是什么时候，也可以写一写。"},
            None,
        ),
    ],
)
def test_what_the_prompt_rules_out_is_a_fault_and_nothing_else(
    changed: dict[str, Any], reason: Reason | None
) -> None:
    given = {"key_thought": QUOTING, "distortions": [label()], **changed}
    found = check(steps(**given))
    if reason is None:
        assert isinstance(found, CheckedAnswer), found
    else:
        assert isinstance(found, Fault) and found.reason is reason and found.advice, found


def test_an_explicit_question_has_no_labels_and_no_type_has_a_third_beside_it() -> None:
    labelled = {"key_thought": QUOTING, "distortions": [label()]}
    found = check(steps(with_help=True, **labelled), risk="explicit")
    assert isinstance(found, Fault) and found.reason is Reason.BAD_LABEL
    three = [label(kind) for kind in ("jumping_to_conclusions", "labeling", "should")]
    found = check(steps(key_thought=QUOTING, distortions=three))
    assert isinstance(found, Fault) and found.detail == "3 types, at most 2"


@pytest.mark.parametrize(
    "sentence",
    [
        "不妨问问自己，有没有别的证据、别的解释、别的角度。",
        "这只是开始，需要时可以寻求更多支持，也可以慢一点。",
    ],
)
@pytest.mark.parametrize("prompt", ["cbt_answer.v1", "cbt_answer.v2"])
def test_what_the_prompt_asks_an_answer_to_say_is_no_leak(prompt: str, sentence: str) -> None:
    checks = AnswerChecks(TAXONOMY, "answer:m", 10, 800, load_prompt(prompt))
    found = checks.check_object(
        QUESTION, Grade("none", "none"), steps(challenge_or_reflection=sentence)
    )
    assert isinstance(found, CheckedAnswer), found


def test_a_copied_definition_is_a_leak() -> None:
    definition = next(kind for kind in TAXONOMY.types if kind.id == "magnification").definition
    found = check(steps(key_thought=f"你心里的这个想法，就是{definition}"))
    assert isinstance(found, Fault) and found.reason is Reason.PROMPT_LEAK


def test_every_unsafe_rule_has_words_that_the_model_can_act_on() -> None:
    found = check(
        steps(strategy_or_insight="你可以停药，谁也别说，自己慢慢调整几天，看看心情会不会变好。")
    )
    assert isinstance(found, Fault) and found.reason is Reason.UNSAFE
    assert "停药" in found.advice and not found.advice.isascii()


def test_one_flowing_text_has_paragraphs() -> None:
    block = "".join(value for name, value in steps().items() if name != "distortions")
    found = CHECKS.check_fused(QUESTION, Grade("none", "none"), block, ())
    assert isinstance(found, Fault) and found.reason is Reason.STYLE
    assert "1 段" in found.advice and "空一行" in found.advice


@pytest.mark.parametrize(
    "grade",
    [
        Grade("explicit", "explicit"),
        Grade("none", "violence", ("violence",), is_acute=True),
    ],
)
def test_in_urgent_danger_help_stands_first(grade: Grade) -> None:
    late = steps()
    late["encouragement_and_foresight"] += CRISIS_HELP
    found = CHECKS.check_object(QUESTION, grade, late)
    assert isinstance(found, Fault) and found.reason is Reason.UNSAFE and "第一段" in found.advice
    assert isinstance(CHECKS.check_object(QUESTION, grade, steps(with_help=True)), CheckedAnswer)
    parts = [value for name, value in late.items() if name != "distortions"]
    fused = CHECKS.check_fused(QUESTION, grade, "\n\n".join(parts), ())
    assert isinstance(fused, Fault) and "第一段" in fused.advice


def test_a_minor_is_told_of_the_line_for_minors() -> None:
    grade = Grade("none", "none", is_minor=True)
    found = CHECKS.check_object(QUESTION, grade, steps())
    assert isinstance(found, Fault) and found.reason is Reason.UNSAFE and "12355" in found.advice
    told = steps()
    told["strategy_or_insight"] += "也可以拨打青少年服务台 12355。"
    assert isinstance(CHECKS.check_object(QUESTION, grade, told), CheckedAnswer)


def test_words_of_death_are_not_given_back() -> None:
    question = Question(id="2", question="撑不下去了", description="我不想活了，他们都觉得我烦。")
    grade = Grade("explicit", "explicit")
    quoting = steps(with_help=True, key_thought="你说“我不想活了”，听得出你痛到了什么地步，很累。")
    found = CHECKS.check_object(question, grade, quoting)
    assert isinstance(found, Fault) and found.reason is Reason.UNSAFE and "不想活" in found.advice
    other = steps(with_help=True, key_thought="你说“他们都觉得我烦”，听得出这些天你有多孤单。")
    assert isinstance(CHECKS.check_object(question, grade, other), CheckedAnswer)
    labelled = steps(with_help=True, distortions=[label("labeling", "我不想活了")])
    found = CHECKS.check_object(question, Grade("concern", "concern"), labelled)
    assert isinstance(found, Fault) and found.reason is Reason.UNSAFE


@pytest.mark.parametrize(
    "stranger", ["加我微信 abc12345 慢慢聊。", "发邮件到 help@example.org 找我。"]
)
def test_no_answer_leads_to_a_stranger(stranger: str) -> None:
    found = check(steps(strategy_or_insight=f"今晚先早点睡，明天写下三行字。也可以{stranger}"))
    assert isinstance(found, Fault) and found.reason is Reason.PERSONAL_DATA
    assert found.detail in stranger


def test_instructions_of_a_branch_are_a_leak_and_what_it_lets_say_is_none() -> None:
    told = "说出原文里看得见的一点长处或努力，再说事情可能怎样慢慢变化。"
    found = check(steps(encouragement_and_foresight=told))
    assert isinstance(found, Fault) and found.reason is Reason.PROMPT_LEAK
    said = "当时僵住、没有喊、没有马上说、后来还有来往，都是常见的反应，不等于同意。"
    grade = Grade("none", "sexual_abuse", ("sexual_abuse",), is_acute=True)
    found = CHECKS.check_object(QUESTION, grade, steps(with_help=True, key_thought=said))
    assert isinstance(found, CheckedAnswer), found
