"""One grade of a question chooses the branch for prompt, budget, labels and checks alike."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, get_args

import pytest

from cbtqa.dataset.build import SplitPlan
from cbtqa.dataset.check import AnswerChecks, CheckedAnswer, wording
from cbtqa.dataset.instruction import Grade, Grades, Item, branch_of, grade_of
from cbtqa.dataset.settings import BuildSettings
from cbtqa.dataset.teachers import EndpointTeacher
from cbtqa.dataset.template.teacher import TemplateTeacher
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.llm.chat import Fault
from cbtqa.prompts import load_prompt
from cbtqa.prompts.rules import load_rules
from cbtqa.records import Danger, Question, Reason, Risk
from cbtqa.safety.answers import HARMS
from cbtqa.safety.notices import help_text, load_hotlines
from cbtqa.safety.screen import FoundDanger, Screening
from tests.support.answers import CRISIS_HELP, steps

TAXONOMY = load_taxonomy("burns-10")
DANGERS: tuple[Danger, ...] = get_args(Danger)
WITHOUT_LABELS = ("violence", "sexual_abuse", "psychosis", "mania", "harm_to_others")
QUESTION = Question(id="1", question="我该怎么办？", description="我觉得自己什么都做不好。")


def screening(risk: Risk, *dangers: tuple[Danger, Risk], is_minor: bool = False) -> Screening:
    found = tuple(FoundDanger(kind, grade, 0, 1, "我", 0.9) for kind, grade in dangers)
    return Screening(risk, (), found, is_minor)


def graded(grade: Grade, question: Question = QUESTION) -> Item:
    item = Item(question, 0, Grades())
    item.note(grade)
    return item


def of_danger(kind: Danger, *, is_acute: bool = False, is_minor: bool = False) -> Grade:
    return grade_of(
        screening("none", (kind, "explicit" if is_acute else "concern"), is_minor=is_minor)
    )


def endpoint_teacher(tmp_path: Path, prompt: str) -> EndpointTeacher:
    settings = BuildSettings(
        out=tmp_path, endpoint="http://127.0.0.1:9/v1", model="m", prompt=prompt
    )
    service = settings.service()
    assert service is not None
    return EndpointTeacher(settings, TAXONOMY, service)


# --- the choice ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "branch"),
    [
        (screening("none"), "none"),
        (screening("concern"), "concern"),
        (screening("none", ("eating", "concern")), "eating"),
        (screening("concern", ("eating", "concern")), "concern"),
        (screening("concern", ("eating", "explicit")), "eating"),
        (screening("explicit", ("eating", "explicit")), "explicit"),
        (screening("none", ("eating", "concern"), ("mania", "concern")), "eating"),
        (screening("none", ("eating", "concern"), ("violence", "explicit")), "violence"),
        (screening("none", is_minor=True), "none"),
    ],
)
def test_explicit_risk_goes_before_an_acute_danger_a_concern_and_another_danger(
    found: Screening, branch: str
) -> None:
    assert branch_of(found) == branch == grade_of(found).branch


def test_a_concern_or_an_acute_danger_is_a_crisis_and_another_danger_is_none() -> None:
    assert not of_danger("violence").is_crisis and of_danger("violence", is_acute=True).is_crisis
    assert grade_of(screening("concern")).is_crisis and not grade_of(screening("none")).is_crisis


def test_grades_are_kept_by_place_and_travel_with_their_item() -> None:
    grades = Grades()
    noted = [of_danger("mania"), grade_of(screening("explicit")), of_danger("mania")]
    for place, grade in enumerate(noted):
        grades.note(place * 3, grade)
    assert [grades.of(place * 3, "") for place in range(3)] == noted
    assert not grades.is_known(1) and not grades.is_known(99)
    again = pickle.loads(pickle.dumps(Item(QUESTION, 3, grades)))
    assert again.grade == noted[1]


@pytest.mark.parametrize("crisis", ["split", "keep"])
def test_acute_dangers_go_into_the_crisis_split_and_others_stay(crisis: str) -> None:
    grades = Grades()
    items = [Item(Question(id=f"q{n}", question=f"第{n}件事"), n, grades) for n in range(30)]
    for item in items:
        item.note(of_danger("violence", is_acute=item.place < 3))
    settings = BuildSettings.model_validate({"crisis": crisis, "near_cosine": 1})
    splits = list(SplitPlan(settings, items).splits())
    assert [split == "crisis" for split in splits] == [
        crisis == "split" and place < 3 for place in range(30)
    ]


# --- what is asked -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DANGERS)
def test_a_branch_names_dated_help_first_and_asks_for_an_if_then(kind: Danger) -> None:
    rules = load_rules("cbt_answer.rules")
    branch = rules.branches[kind]
    first = next(line for line in branch.text.splitlines() if line.startswith("1."))
    assert "如果" in first and ("$police" in first or "$ambulance" in first)
    assert not any(char.isdigit() for char in branch.text.translate({ord(c): "" for c in "12345"}))
    for line in load_hotlines().locales["zh"].lines:
        assert line.number not in branch.text, "numbers come from hotlines.yaml"
    assert branch.labels is (kind in {"eating", "perinatal"})
    assert rules.budget_of(kind).questions[1] <= 1


def test_only_the_branches_where_thoughts_may_be_worked_on_allow_labels() -> None:
    branches = load_rules("cbt_answer.rules").branches
    assert not any(branches[kind].labels for kind in (*WITHOUT_LABELS, "explicit"))


@pytest.mark.parametrize("prompt", ["cbt_answer", "cbt_answer_fused"])
@pytest.mark.parametrize("kind", DANGERS)
def test_the_prompt_holds_the_branch_its_budget_and_the_addition_for_minors(
    tmp_path: Path, prompt: str, kind: Danger
) -> None:
    teacher = endpoint_teacher(tmp_path, prompt)
    rules = load_rules("cbt_answer.rules")
    last = rules.branches[kind].text.splitlines()[-2]
    asked = [
        teacher.request(graded(of_danger(kind, is_minor=is_minor))).messages[0]["content"]
        for is_minor in (False, True)
    ]
    assert all(last in one and rules.budget_block(kind) in one and "120" in one for one in asked)
    assert not any("$" in one or "按认知行为疗法（CBT）的五步来写" in one for one in asked)
    heading = rules.minor.splitlines()[0]
    assert heading not in asked[0] and heading in asked[1]


def test_a_minor_in_explicit_danger_gets_the_addition_too(tmp_path: Path) -> None:
    grade = grade_of(screening("explicit", is_minor=True))
    asked = endpoint_teacher(tmp_path, "cbt_answer").request(graded(grade)).messages[0]["content"]
    assert "12355" in asked and "明确提到了结束生命" in asked


def test_version_one_of_the_prompt_is_sent_as_ever(tmp_path: Path) -> None:
    teacher = endpoint_teacher(tmp_path, "cbt_answer.v1")
    plain, danger = (
        teacher.request(graded(grade)).messages
        for grade in (grade_of(screening("none")), of_danger("violence", is_minor=True))
    )
    assert plain == danger


def test_the_second_pass_labels_no_question_whose_branch_allows_none(tmp_path: Path) -> None:
    labels = endpoint_teacher(tmp_path, "cbt_answer_fused").labels
    assert labels is not None
    assert labels.text_of(graded(of_danger("psychosis"))) is None
    assert labels.text_of(graded(grade_of(screening("explicit")))) is None
    assert labels.text_of(graded(of_danger("eating"))) is not None


# --- what is accepted ----------------------------------------------------------------------------


def check(grade: Grade, prompt: str = "cbt_answer", **changed: Any) -> CheckedAnswer | Fault:
    checks = AnswerChecks(TAXONOMY, "answer:m", 10, 800, load_prompt(prompt))
    return checks.check_object(QUESTION, grade, steps(**changed))


QUOTED = "你写到“我觉得自己什么都做不好”，这句话把一件事说成了整个人，也让你越来越不敢去试。"
LABEL = {"id": "overgeneralization", "evidence": "我觉得自己什么都做不好"}


@pytest.mark.parametrize("kind", DANGERS)
def test_labels_are_refused_exactly_where_the_prompt_forbids_them(kind: Danger) -> None:
    found = check(of_danger(kind), key_thought=QUOTED, distortions=[LABEL])
    allowed = load_rules("cbt_answer.rules").branches[kind].labels
    assert isinstance(found, CheckedAnswer) is allowed
    assert allowed or (isinstance(found, Fault) and found.reason is Reason.BAD_LABEL)


def test_an_answer_is_measured_by_the_budget_of_its_branch() -> None:
    long = (
        "今天晚饭以后，先给一位信得过的朋友发条消息，约他周末一起坐一坐。见面时不用把事情讲得很周全，"
        "从最近让你睡不着的那一件说起就行。朋友要是忙，可以换成常去的那家书店，带上本子，"
        "写下这星期遇到的人和事，左边写发生了什么，右边写心里冒出来的话。写完以后先合上，去买一杯热饮，"
        "走回家的路上看看街边新开的小店。到了家，把明天要带的东西放在门口，早半个小时关灯。"
        "第二天午休时再翻开本子，挑右边的一句，问问自己有没有别的说法也讲得通。想得出来，就写在下面；"
        "想不出来，就留着，等周末见到朋友时请他帮着看。这样过上一两个星期，你会攒下几页纸，"
        "里面有顺利的日子，也有不顺利的日子，两样都值得留下来。要是哪天实在不想写，就只画一个圈，"
        "表示这一天也过去了，第二天接着来。路过熟悉的小店就进去坐一会儿，和老板聊两句天气，"
        "买一份自己爱吃的点心带回家，配着一集轻松的节目慢慢吃完，再给窗台上的花浇一点水。"
    )
    assert isinstance(check(grade_of(screening("none")), strategy_or_insight=long), CheckedAnswer)
    found = check(of_danger("violence"), with_help=True, strategy_or_insight=long)
    assert isinstance(found, Fault) and found.reason is Reason.STEP_TOO_LONG
    assert found.advice and "250 到 450" in found.advice


def test_an_acute_danger_wants_a_number_and_version_one_was_never_told() -> None:
    acute = of_danger("violence", is_acute=True)
    found = check(acute)
    assert isinstance(found, Fault) and found.reason is Reason.UNSAFE
    assert isinstance(check(acute, validation_and_empathy=CRISIS_HELP), CheckedAnswer)
    assert isinstance(check(acute, prompt="cbt_answer.v1"), CheckedAnswer)
    assert isinstance(check(of_danger("violence")), CheckedAnswer)


def test_a_model_is_told_in_words_what_each_harm_is() -> None:
    assert set(HARMS) <= set(wording()["unsafe"])


# --- the template teacher ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DANGERS)
def test_the_template_teacher_begins_with_the_help_text_and_disputes_nothing(
    kind: Danger,
) -> None:
    teacher, routes = TemplateTeacher(), help_text(danger=kind)
    checks = AnswerChecks(TAXONOMY, "patterns", 10, 800)
    found = set()
    for number in range(40):
        question = Question(id=str(number), question="我觉得自己什么都做不好，大家肯定讨厌我。")
        answer = teacher.answer(question, "none", routes)
        value = {**answer.steps.model_dump(), "distortions": []}
        assert answer.steps.validation_and_empathy.startswith(routes) and not answer.distortions
        grade = of_danger(kind, is_acute=True)
        assert isinstance(checks.check_object(question, grade, value), CheckedAnswer)
        assert "<" not in answer.steps.joined() and "？" not in answer.steps.joined()
        found.add(answer.steps.joined())
    assert len(found) == 40


@pytest.mark.parametrize("branch", ["concern", "explicit"])
def test_the_texts_on_suicide_fit_another_person_in_danger_and_a_screen_that_erred(
    branch: str,
) -> None:
    rules = load_rules("cbt_answer.rules")
    routes = dict.fromkeys(("national", "police", "youth", "women", "citizens"), "号码")
    text = rules.text_of(branch, {**routes, "ambulance": "120"}, is_minor=False)
    assert "让人担心的是别人" in text and "马上拨打 120" in text and "读下来没有这样的危险" in text
    assert "$" not in text
