"""The embedded teacher: what every answer keeps, over the bundled sample and over hostile input."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import statistics
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbtqa.dataset.template.facts import read_facts
from cbtqa.dataset.template.grammar import Dice, Hole, Lexis, Writer, load_language
from cbtqa.dataset.template.teacher import TemplateAnswer, TemplateTeacher
from cbtqa.distortions.taxonomy import load_taxonomy, shipped_taxonomies
from cbtqa.errors import DataError
from cbtqa.psyqa import SourceItem, bundled_sample_path, read_questions
from cbtqa.records import STEP_NAMES, Question, Risk
from cbtqa.safety.answers import check_answer
from cbtqa.safety.screen import screen
from tests.support.labels import is_evident

QUOTED = re.compile(r"“([^“”]*)”")
ILL_FORMED = re.compile(
    r"[。？！，；：]{2,}|，[”」]|“”|「」|[ \n\t<>|{}]|\(|\)|^[，。；：、？]|：$|……{2,}"
)
MARKS_AT_END = ("。", "？", "」")
RISKS: tuple[Risk, ...] = ("none", "concern", "explicit")
NAMES = re.compile(r"验证和共情|识别关键|提出挑战|提供策略|鼓励与|首先|其次|第一步：|总之")


@pytest.fixture(scope="module")
def teacher() -> TemplateTeacher:
    return TemplateTeacher()


@pytest.fixture(scope="module")
def sample() -> list[Question]:
    return sample_questions()


@pytest.fixture(scope="module")
def answers(teacher: TemplateTeacher, sample: list[Question]) -> list[TemplateAnswer]:
    return [teacher.answer(question, screen(question.source_text).risk) for question in sample]


def sample_questions() -> list[Question]:
    items = list(read_questions(bundled_sample_path()))
    assert all(isinstance(item, SourceItem) for item in items)
    return [item.question for item in items if isinstance(item, SourceItem)]


def grams(text: str, n: int = 5) -> set[str]:
    return {text[at : at + n] for at in range(len(text) - n + 1)}


def assert_well_formed(question: Question, answer: TemplateAnswer, risk: Risk) -> None:
    for name in STEP_NAMES:
        text = getattr(answer.steps, name)
        assert not ILL_FORMED.search(text), (name, text)
        assert text.endswith(MARKS_AT_END), text
    text = answer.steps.joined()
    for opening, closing in ("“”", "「」", "（）"):
        assert text.count(opening) == text.count(closing)
    told = question.source_text
    for quote in QUOTED.findall(text):
        assert quote in told, quote
    for label in answer.distortions:
        assert label.evidence and is_evident(label, told)
    assert 180 <= len(text) <= 720, len(text)
    assert not NAMES.search(text)
    assert check_answer(text, risk) == ()


def test_every_answer_on_the_sample_is_well_formed_and_quotes_verbatim(
    sample: list[Question], answers: list[TemplateAnswer]
) -> None:
    for question, answer in zip(sample, answers, strict=True):
        assert_well_formed(question, answer, screen(question.source_text).risk)


def test_most_answers_quote_the_asker(
    sample: list[Question], answers: list[TemplateAnswer]
) -> None:
    calmer = [
        answer.steps.joined()
        for question, answer in zip(sample, answers, strict=True)
        if screen(question.source_text).risk != "explicit"  # those are not held up with their words
    ]
    assert sum(bool(QUOTED.search(text)) for text in calmer) >= 0.8 * len(calmer)


def test_answers_to_different_questions_are_clearly_different(
    answers: list[TemplateAnswer],
) -> None:
    shingles = [grams(answer.steps.joined()) for answer in answers]
    nearest = [0.0] * len(shingles)
    for (i, a), (j, b) in itertools.combinations(enumerate(shingles), 2):
        likeness = len(a & b) / len(a | b)
        nearest[i], nearest[j] = max(nearest[i], likeness), max(nearest[j], likeness)
    assert statistics.median(nearest) < 0.25
    assert max(nearest) < 0.6


def test_each_step_opens_in_many_ways(answers: list[TemplateAnswer]) -> None:
    for name in STEP_NAMES:
        openings = {getattr(answer.steps, name)[:8] for answer in answers}
        assert len(openings) >= 0.55 * len(answers), name


def test_no_answer_says_a_sentence_twice(answers: list[TemplateAnswer]) -> None:
    for answer in answers:
        text = QUOTED.sub("", answer.steps.joined())
        sentences = [part for part in re.split(r"[。？！；，：]", text) if len(part) >= 7]
        assert len(sentences) == len(set(sentences)), text


def test_a_distortion_is_named_with_its_evidence_and_none_is_made_up(
    sample: list[Question], answers: list[TemplateAnswer]
) -> None:
    taxonomy = load_taxonomy()
    known = {name for kind in taxonomy.types for name in kind.names}
    named = 0
    for question, answer in zip(sample, answers, strict=True):
        terms = re.findall("「([^」]+)」", answer.steps.key_thought)
        found = [kind.id for term in terms if (kind := taxonomy.find(term))]
        ids = {label.id for label in answer.distortions}
        assert set(found) <= ids
        named += bool(found)
        if ids and screen(question.source_text).risk == "none":
            assert found, answer.steps.key_thought
    assert named >= 10 and known


def test_a_question_in_crisis_gets_help_routes_and_no_talk_of_distortions(
    teacher: TemplateTeacher, sample: list[Question]
) -> None:
    for question in sample:
        answer = teacher.answer(question, "explicit")
        text = answer.steps.joined()
        assert "12356" in text and "110" in text and "120" in text
        assert answer.distortions == ()
        assert not re.search("24小时|思维|非黑即白|以偏概全|妄下结论|读心术|灾难化", text)
        assert_well_formed(question, answer, "explicit")
        assert_well_formed(question, teacher.answer(question, "concern"), "concern")


def test_the_same_input_gives_the_same_answer_in_another_process() -> None:
    program = (
        "import hashlib\n"
        "from cbtqa.dataset.template.teacher import TemplateTeacher\n"
        "from tests.dataset.test_template import sample_questions\n"
        "teacher = TemplateTeacher(seed=7)\n"
        "text = ''.join(teacher.answer(q, 'none').steps.joined() for q in sample_questions()[:20])\n"
        "print(hashlib.sha256(text.encode()).hexdigest())\n"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1")
    }
    teacher = TemplateTeacher(seed=7)
    text = "".join(teacher.answer(q, "none").steps.joined() for q in sample_questions()[:20])
    assert prints == {hashlib.sha256(text.encode()).hexdigest() + "\n"}


def test_the_dice_are_those_of_knuths_generator() -> None:
    state, expected = 42, []
    for _ in range(3):
        state = (6364136223846793005 * state + 1442695040888963407) % 2**64
        expected.append((state // 2**33) % 6)
    dice = Dice(42)
    assert [dice.roll(6) for _ in range(3)] == expected == [4, 2, 4]


def test_another_seed_or_id_gives_another_wording(teacher: TemplateTeacher) -> None:
    question = Question(id="a", question="室友总是很晚睡，我该怎么开口？")
    other_id = question.model_copy(update={"id": "b"})
    first = teacher.answer(question, "none")
    assert first == teacher.answer(question, "none")
    assert first.steps != teacher.answer(other_id, "none").steps
    assert first.steps != TemplateTeacher(seed=1).answer(question, "none").steps


@pytest.mark.parametrize("taxonomy", shipped_taxonomies())
def test_every_shipped_taxonomy_can_be_spoken_in(taxonomy: str, sample: list[Question]) -> None:
    teacher = TemplateTeacher(taxonomy)
    ids = set(load_taxonomy(taxonomy).ids)
    for question in sample[:20]:
        answer = teacher.answer(question, "none")
        assert {label.id for label in answer.distortions} <= ids
        assert_well_formed(question, answer, "none")


# --- agreement with the facts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("和男友分手半年了，还是放不下", "breakup"),
        ("室友每天半夜打电话，我睡不好", "roommate"),
        ("期末考试快到了，复习不进去", "exam"),
        ("奶奶去世后我总是想起她", "grief"),
        ("婆婆总是插手我们带孩子", "inlaws"),
        ("想辞职又怕找不到工作", "career"),
        ("晚上失眠，入睡很困难", "sleep"),
    ],
)
def test_the_topic_is_read_from_the_words(text: str, topic: str) -> None:
    assert read_facts(Question(id="q", question=text)).topic == topic


def test_a_feeling_that_is_denied_or_is_anothers_is_not_taken_for_the_askers() -> None:
    facts = read_facts(Question(id="q", question="我不难过，只是妈妈很生气"))
    assert "feeling" not in facts.holes
    facts = read_facts(Question(id="q", question="妈妈走了，我很难过"))
    assert facts.holes["feeling"] == "难过"


def test_a_quotation_is_whole_and_gives_nobody_away() -> None:
    told = "我叫张三，电话13800138000，加我微信abc123，但是我真的很害怕明天的面试"
    facts = read_facts(Question(id="q", question="怎么办", description=told))
    assert facts.quotes == ["我真的很害怕明天的面试"]


def test_school_routes_are_not_given_to_grown_ups(teacher: TemplateTeacher) -> None:
    told = "我结婚三年了，老公不理我，孩子在上高三，我很难过"
    for number in range(30):
        question = Question(id=str(number), question="婚姻走到这一步怎么办", description=told)
        assert "学校" not in teacher.answer(question, "none").steps.joined()


# --- hostile input ---------------------------------------------------------------------------------

HOSTILE = [
    "。。。？！",
    "😭😭😭😭",
    "I feel so bad and nobody cares about me, what should I do?",
    "<script>alert(1)</script><b>我很难过</b>&nbsp;怎么办",
    "我" * 10_000,
    "難過的時候該怎麼辦，我覺得自己很沒用，媽媽總是罵我",
    "“我‘真的「很」累’”，怎么（办",
    "${quote} {feeling} <topic> (a|b) %s",
    "我觉得 自己 什么都 做不好 永远都 不行",
    "\u0000\u200b\u202e我很害怕",
    "啊" * 400 + "，" + "好难过" * 2000,
]


@pytest.mark.parametrize("told", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("risk", RISKS)
def test_hostile_text_gets_a_well_formed_answer(
    teacher: TemplateTeacher, told: str, risk: Risk
) -> None:
    for question in (
        Question(id="q", question=told),
        Question(id="q", question="怎么办", description=told, keywords=("", told[:50])),
    ):
        assert_well_formed(question, teacher.answer(question, risk), risk)


CHINESE = st.text(
    st.sampled_from(
        "我你他妈妈很难过不想累了怎么办吗呢的是总是永远一定应该都没有人喜欢觉得害怕考试工作分手，。？！“”、… \n"
    )
)


@settings(max_examples=150, deadline=None)
@given(
    title=st.one_of(st.text(min_size=1), CHINESE).filter(lambda text: text.strip()),
    told=st.one_of(st.text(max_size=300), CHINESE),
    risk=st.sampled_from(RISKS),
)
def test_any_text_gets_a_well_formed_answer(title: str, told: str, risk: Risk) -> None:
    question = Question(id="q", question=title, description=told)
    assert_well_formed(question, TemplateTeacher().answer(question, risk), risk)


# --- the language ----------------------------------------------------------------------------------


def test_every_topic_of_the_word_lists_has_language() -> None:
    language = load_language()
    assert set(language.group_of) <= set(language.topics)
    assert set(language.group_of.values()) | {"any"} == set(language.groups)
    for kinds in language.groups.values():
        assert set(kinds) >= {"feel", "worry", "belief", "ask", "act", "hope"}


def test_every_hole_can_be_filled() -> None:
    holes = {
        "quote core asked retold span feeling feeling2 thought thought2 term term2 gist2 belief",
        "partner ex parent child mate friend boss coworker inlaw teacher sibling scene",
    }
    known = {name for line in holes for name in line.split()}
    language = load_language()
    pools = [language.shared, language.crisis]
    for family in (language.topics, language.groups, language.types):
        pools.extend(family.values())
    used = {
        node.name
        for pool in pools
        for parts in pool.values()
        for part in parts
        for node in part.nodes
        if isinstance(node, Hole)
    }
    assert used <= known


def test_a_part_is_said_once_and_rather_without_an_echo() -> None:
    lexis = Lexis(["慢慢"])
    first, echo, other = (
        lexis.compile(part, "here") for part in ("慢慢走。", "慢慢来。", "night => 睡吧。")
    )
    for seed in range(20):
        writer = Writer(lexis, ["night"], {}, [], seed)
        assert writer.pick([first]) is first
        assert writer.pick([first, echo, other]) is other
        assert writer.pick([first, echo, other]) is echo
        assert writer.pick([first, echo, other]) is None
        assert Writer(lexis, [], {}, [], seed).pick([other]) is None


def test_someone_who_fears_for_another_is_told_how_to_help(teacher: TemplateTeacher) -> None:
    told = "他给我发消息，我不知道他是不是认真的，我该怎么帮他？"
    question = Question(id="q", question="朋友总说不想活，怎么帮他？", description=told)
    text = teacher.answer(question, "concern").steps.joined()
    assert "对方" in text and "12356" in text and "伤害自己的部分" not in text


@pytest.mark.parametrize("source", ["(一个|两个", "（好）(单)", "(<quote>|别的)", "a|b"])
def test_a_malformed_part_is_refused_with_its_place(source: str) -> None:
    with pytest.raises(DataError, match=r"here\.yaml"):
        Lexis([]).compile(source, "here.yaml")
