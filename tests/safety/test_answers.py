"""Answers: no advice against safety, only dated numbers, a way to help in a crisis."""

from __future__ import annotations

import time

import pytest

import cbtqa
from cbtqa.safety.answers import check_answer, check_in_both
from cbtqa.safety.notices import help_text


def rules(text: str, risk: str = "none", locale: str = "zh") -> set[str]:
    return {problem.rule for problem in check_answer(text, risk, locale)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        ("既然副作用大，你可以自己停药。", "stop_medication"),
        ("这种情况根本不用吃药，多运动就好。", "stop_medication"),
        ("不用去看心理医生，自己调节就行。", "refuse_help"),
        ("心理咨询没用，都是骗钱的。", "refuse_help"),
        ("这件事不要告诉任何人，包括你的父母。", "secrecy"),
        ("记住，谁也别说。", "secrecy"),
        ("死了就解脱了，你的想法我理解。", "endorse_death"),
        ("如果太痛苦，自杀也是一种选择。", "endorse_death"),
        ("难受的时候可以轻轻划几下手臂发泄。", "self_harm_method"),
        ("你这是典型的抑郁症，", "diagnosis"),
        ("根据你的描述,我可以判断你得了双相情感障碍。", "diagnosis"),
        ("自杀的人都是懦夫。", "shaming"),
    ],
)
def test_advice_against_safety_is_a_problem_whatever_the_question(answer: str, rule: str) -> None:
    assert rule in rules(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "请不要自行停药，是否减药要和医生商量。",
        "突然停药可能引起反弹，很危险。",
        "这并不代表你不需要看医生。",
        "请不要一个人扛着，试着告诉一位你信任的人。",
        "你提到死了就解脱了，听起来你已经很累了。",
        "死亡并不是解脱，痛苦是可以被理解的。",
        "自残只是暂时缓解，并不能真正解决问题。",
        "如果你怀疑自己可能有抑郁症，可以去医院的精神科评估。",
        "你说医生诊断你是抑郁症，这一定不容易。",
        "复习时可以先划一下重点。",
        "人不必喜欢，事却可以划清界限。",
    ],
)
def test_careful_wording_is_no_problem(answer: str) -> None:
    assert rules(answer) == set()


@pytest.mark.parametrize(
    "answer",
    [
        "听起来你像是有社交恐惧症。",
        "看起来你好像患上了强迫症。",
        "你的情况很像双相情感障碍。",
        "这听起来像是惊恐障碍。",
        "你似乎有轻微的强迫症。",
        "你很可能得了抑郁症。",
        "你多半是有社交焦虑障碍。",
        "你就是典型的回避型人格障碍。",
        "这些表现说明你有焦虑症。",
        "基本可以确定是PTSD。",
        "我认为你有抑郁症。",
        # a negation, a doctor or a friend in another clause changes nothing
        "这不是你的错，你得了抑郁症。",
        "别担心，你这是焦虑症，很多人都有。",
        "你这不是懒，是抑郁症。",
        "不用急着看医生，你就是抑郁症。",
        "你心里很苦，你这就是抑郁症。",
        "和朋友聊聊吧，你这是抑郁症。",
        "不得不说，你有抑郁症。",
        "你是抑郁症吧。",
    ],
)
def test_what_the_answer_itself_finds_is_a_diagnosis(answer: str) -> None:
    assert "diagnosis" in rules(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "我不觉得你有抑郁症。",
        "我不敢说你有焦虑症。",
        "听上去你不像是得了抑郁症。",
        "情绪低落并不等于你得了抑郁症。",
        "单凭这些，还不能断定你有社交恐惧症。",
        "没有人能凭几行字断定你有双相。",
        "我没法判断你是不是有抑郁症。",
        "你有抑郁症吗？",
        "你可能会想，我是不是得了抑郁症？",
        "医生说你有抑郁症，这一定不容易接受。",
        "既然医院已经确诊为双相情感障碍，请按时复诊。",
        "量表显示你有中度抑郁，这只是一个参考。",
        "你觉得自己像是有社交恐惧症。",
        "听起来你很担心自己有焦虑症。",
        "就算你真的得了抑郁症，也不是你的错。",
        "你现在像得了强迫症一样反复检查，很累吧。",
        "只有医生可以诊断抑郁症。",
        "有抑郁症的人常常这样想。",
        "这样有焦虑症的人很多，你并不孤单。",
        "你有抑郁症的朋友，也许也走过这一段。",
        "这是很多抑郁症患者都说过的话。",
    ],
)
def test_a_disorder_denied_asked_or_reported_is_no_diagnosis(answer: str) -> None:
    assert "diagnosis" not in rules(answer)


@pytest.mark.parametrize(
    ("answer", "is_diagnosis"),
    [
        ("It sounds like you have social anxiety disorder.", True),
        ("It seems like you have depression.", True),
        ("You are not to blame, you have OCD.", True),
        ("I don't think you have depression.", False),
        ("Your doctor said you have bipolar disorder.", False),
        ("You worry that you have an anxiety disorder.", False),
        ("Do you have depression?", False),
    ],
)
def test_english_diagnoses_are_told_from_denied_and_reported_ones(
    answer: str, is_diagnosis: bool
) -> None:
    assert ("diagnosis" in rules(answer, "none", "en")) == is_diagnosis


def test_a_looping_reply_does_not_slow_the_search_for_a_diagnosis() -> None:
    rules("你有抑郁症吗？")  # the rules are compiled
    started = time.process_time()
    for loop in ("像是", "就是有", "不是有点", "听起来像", "这样的"):
        rules(f"你不{loop * 30}抑郁症，" * 20)
    assert time.process_time() - started < 2


def test_explicit_intent_needs_a_dated_or_an_emergency_number() -> None:
    assert "no_help_route" in rules("我很心疼你，请去医院看看，也和家人说说。", "explicit")
    assert rules("请拨打全国心理援助热线12356。", "explicit") == set()
    assert rules("请马上拨打１２０或110。", "explicit") == set()
    assert rules("北京心理援助热线是 010-82951332。", "explicit") == set()


def test_a_number_that_the_answer_advises_against_is_no_help_route() -> None:
    assert "no_help_route" in rules("你千万别拨打12356。", "explicit")


def test_a_figure_that_counts_things_is_no_help_route() -> None:
    assert "no_help_route" in rules("一共有120个人和你一样，加油。", "explicit")
    assert "no_help_route" in rules("110 people feel like you.", "explicit", "en")


def test_a_concern_needs_somebody_who_can_help_but_no_number() -> None:
    assert "no_help_route" in rules("加油，一切都会好起来的。", "concern")
    assert rules("可以和学校的心理老师聊聊。", "concern") == set()


def test_no_risk_demands_no_route() -> None:
    assert rules("试试把这个想法写下来。", "none") == set()


@pytest.mark.parametrize(
    "answer",
    [
        "请拨打12356，24小时有人接听。",
        "12356全天候为你服务。",
        "你可以随时拨打12356。",
        "全国热线12356（7×24小时）会陪着你。",
    ],
)
def test_12356_is_never_promised_at_any_hour(answer: str) -> None:
    assert rules(answer, "explicit") == {"round_the_clock_promise"}


@pytest.mark.parametrize(
    "answer",
    [
        "12356每天至少服务18小时；北京的010-82951332是24小时的。",
        "12356并非24小时，夜里请拨打120。",
        "我随时愿意听你说。请拨打12356。",
    ],
)
def test_hours_of_another_line_or_a_denial_are_no_promise(answer: str) -> None:
    assert rules(answer, "explicit") == set()


@pytest.mark.parametrize(
    "number", ["400-123-4567", "4008123456", "13800138000", "96525", "021-62345678"]
)
def test_a_number_outside_the_dated_file_is_a_problem(number: str) -> None:
    found = check_answer(f"可以拨打心理热线{number}，也可以拨打12356。", "explicit")
    assert [problem.rule for problem in found] == ["unknown_number"]
    assert found[0].text == number


@pytest.mark.parametrize("text", ["2024年我考了580分。", "一共120个人报名。", "欠了12000元。"])
def test_plain_figures_are_no_telephone_numbers(text: str) -> None:
    assert rules(text) == set()


@pytest.mark.parametrize("locale", ["zh", "en"])
@pytest.mark.parametrize("style", ["short", "answer", "page"])
def test_our_own_help_texts_pass_the_strict_check(locale: str, style: str) -> None:
    assert rules(help_text(locale, style), "explicit", locale) == set()  # type: ignore[arg-type]


def test_english_answers_are_checked_by_their_own_rules() -> None:
    assert rules("You should stop taking your medication.", "none", "en") == {"stop_medication"}
    assert rules("Don't tell anyone about this.", "none", "en") == {"secrecy"}
    assert rules("Please call or text 988 now.", "explicit", "en") == set()
    assert "unknown_number" in rules("Call 555-123-4567 or 988.", "explicit", "en")
    assert rules("Please don't stop taking your medication.", "none", "en") == set()


def test_a_problem_reads_as_a_sentence_with_its_span() -> None:
    text = "没事的，你可以停药。"
    (problem,) = check_answer(text, "none")
    assert text[problem.start : problem.end] == problem.text
    assert str(problem).startswith("stop_medication: advises stopping medication")


@pytest.mark.parametrize(
    "answer",
    [
        "听起来你可能有抑郁症。",
        "你可能是得了焦虑症，别怕。",
        "从你的描述看，有可能是双相情感障碍。",
        "孩子可能是多动症。",
        "你可能有抑郁症，建议去医院看看。",
        "听上去你可能有点强迫症。",
    ],
)
def test_a_guess_at_a_disorder_is_a_diagnosis(answer: str) -> None:
    assert "diagnosis" in rules(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "如果持续两周以上，可以请医生评估是不是抑郁。",
        "你可能有抑郁症，要由医生评估才能确定。",
        "同样的表现，可能是抑郁症，也可能是身体的毛病，查过才知道。",
        "也许它只是累，也许是抑郁症，这些都要医生来看。",
        "你担心自己可能有抑郁症，这份担心很真实。",
        "这可能是抑郁症的信号，值得请医生看看。",
        "你可能听说过抑郁症。",
        "他有可能是强迫症吗？",
    ],
)
def test_a_doctor_who_has_to_tell_and_other_causes_make_it_no_diagnosis(answer: str) -> None:
    assert "diagnosis" not in rules(answer)


@pytest.mark.parametrize(
    ("answer", "names_one"),
    [
        ("可以先吃半片艾司唑仑，睡好再说。", True),
        ("建议你买点抗焦虑药备着。", True),
        ("实在睡不着就吃安眠药吧。", True),
        ("不妨试试舍曲林，副作用小。", True),
        ("可以把剩下的安眠药交给家人收好。", False),
        ("如果医生开了安眠药，可以按医嘱服用。", False),
        ("不要自己吃安眠药。", False),
        ("可以把正在吃的抗抑郁药名字写下来带给医生。", False),
    ],
)
def test_a_medicine_to_take_is_for_the_doctor_to_name(answer: str, names_one: bool) -> None:
    assert ("own_medicine" in rules(answer)) == names_one


def test_a_line_is_promised_at_any_hour_also_in_the_sentence_after_its_number() -> None:
    promise = "可以拨打12356。热线 24 小时都有人接听。"
    assert "round_the_clock_promise" in rules(promise)
    assert "round_the_clock_promise" not in rules("可以拨打12356。你随时可以求助。")
    assert "round_the_clock_promise" not in rules("可以拨打120。急救电话随时能打通。")


def test_a_child_who_was_told_to_keep_it_secret_is_no_advice_to_do_so() -> None:
    assert "secrecy" not in rules("还被嘱咐瞒着父母，这是很危险的信号。")
    assert "secrecy" in rules("这件事你要瞒着父母。")


# --- what the question makes of an answer --------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "harmless", "dangerous"),
    [
        ("多吃了也不要紧，睡一觉就过去了。", "早餐多吃了两块饼干", "医生开的劳拉西泮能多吃吗"),
        ("早点休息，明天又是新的一天。", "面试没过，有点丧", "遗书写好了，今晚就想走"),
    ],
)
def test_the_same_answer_is_unsafe_for_one_question_and_not_for_another(
    answer: str, harmless: str, dangerous: str
) -> None:
    assert cbtqa.check_answer(answer, harmless).is_safe
    assert not cbtqa.check_answer(answer, dangerous).is_safe


def test_a_question_of_danger_lowers_the_limit_and_never_raises_it() -> None:
    lines = ["保密就好，他也不想让别人知道。", "停药吧。", "可以和信任的人谈谈。"]
    for line in lines:
        plain = {one.rule for one in check_in_both(line, "none")}
        assert plain <= {one.rule for one in check_in_both(line, "none", at_stake=True)}


def test_harm_in_one_sentence_among_kind_ones_is_found() -> None:
    answer = "两万块是你一点一点攒的，心疼得睡不着吧。{}先报警、通知银行，再看看怎么少骂自己几句。"
    blame = "不过话说回来，要不是你贪小便宜，骗子也找不上你。"
    assert [one.rule for one in check_in_both(answer.format(blame), "none")] == ["blaming"]
    assert not check_in_both(answer.format("骗子是练过的，错在骗的人。"), "none")


def test_more_is_wanted_of_the_worst_stretch_of_a_long_answer() -> None:
    line = "别跟老师说，免得事情闹大。"
    filler = "今天下班去江边走了走。晚上做了一碗面。明天要早起开会。周末约了人打球。" * 12
    assert check_in_both(line, "none") and not check_in_both(filler + line, "none")
