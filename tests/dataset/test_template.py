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

from cbtqa.dataset.check import length_and_questions
from cbtqa.dataset.template.reading import Reading, load_words, read_question
from cbtqa.dataset.template.teacher import (
    Dice,
    TemplateAnswer,
    TemplateTeacher,
    load_languages,
    read_language,
)
from cbtqa.distortions.taxonomy import load_taxonomy, shipped_concepts, shipped_taxonomies
from cbtqa.errors import DataError
from cbtqa.prompts.rules import load_rules
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
    length, n_questions = length_and_questions(text)
    budget = load_rules("cbt_answer.rules").budget_of(risk)
    assert budget.accepted[0] <= length <= budget.accepted[1], length
    # a number given as an example of what to say is a question of another
    assert n_questions <= budget.questions[1], n_questions
    assert n_questions >= budget.questions[0]
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
        if screen(question.source_text).risk
        == "none"  # the others are not held up with their words
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
    # two questions of one kind get the same frame round their own words
    assert statistics.median(nearest) < 0.4
    assert max(nearest) < 0.75


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
    assert named >= 5 and known


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


def facts(title: str, description: str = "") -> frozenset[str]:
    return read_question(Question(id="q", question=title, description=description)).facts


def holes(title: str, description: str = "") -> Reading:
    return read_question(Question(id="q", question=title, description=description))


@pytest.mark.parametrize(
    ("title", "description", "topic"),
    [
        ("分手半年了还是放不下，怎么办", "每天都会翻以前的聊天记录，想挽回", "breakup"),
        ("和室友闹矛盾了怎么办", "因为空调的事吵了一次，现在谁也不理谁", "quarrel"),
        ("期末考试快到了，复习不进去怎么办", "还有两门没复习，成绩一直不好", "exam"),
        ("想辞职又怕找不到工作怎么办", "投了几家公司没有回音", "job"),
        ("晚上失眠，该怎么办", "躺下两小时还睡不着", "sleep"),
        ("总是拖延怎么改", "", "delay"),
    ],
)
def test_a_topic_is_named_where_title_and_description_agree(
    title: str, description: str, topic: str
) -> None:
    assert topic in facts(title, description)


@pytest.mark.parametrize(
    ("title", "description"),
    [
        ("考试那天他没来接我", "我们认识三年了，他从来没有迟到过"),
        ("爸爸脾气越来越差，我该怎么跟他说话", "他退休以后在家里待不住"),
        ("怎么和新同事熟悉起来", "团队里有人常常加班到很晚，我还不习惯"),
        ("喜欢一个人好难", "学校图书馆总是坐满了人"),
    ],
)
def test_a_single_word_makes_no_topic(title: str, description: str) -> None:
    topics = set(load_words().topics)
    assert not facts(title, description) & topics


@pytest.mark.parametrize(
    ("title", "description", "role", "who"),
    [
        ("弟弟沉迷游戏不去上学怎么办", "他今年十六岁，劝了很多次都没用", "other", "弟弟"),
        ("沉迷游戏怎么办？", "我弟弟整天打游戏。他不吃饭，他也不理人。劝过他。", "other", "弟弟"),
        ("孩子上课坐不住，怎么引导？", "男孩，七岁，老师说他爱动", "other", "孩子"),
        ("怎样让学生安静下来听课？", "我是刚入职的老师，教五年级", "other", "学生"),
        ("女朋友最近情绪很低落，我该怎么帮她？", "她换了工作", "other", "女朋友"),
        ("总被老公数落，怎么办", "他说我做什么都慢", "with", "丈夫"),
        ("很讨厌我的同桌，怎么办", "他总抖腿", "with", "同桌"),
        ("我吼了孩子，怎么弥补？", "吼完就后悔", "with", "孩子"),
        ("晚上总是想起那件事怎么办", "我妹妹也劝我别想了", "self", None),
    ],
)
def test_who_has_the_trouble_is_read_from_who_does_what(
    title: str, description: str, role: str, who: str | None
) -> None:
    reading = holes(title, description)
    assert role in reading.facts
    assert reading.holes.get("who") == who


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("他突然不回我消息，是什么意思？", "mind"),
        ("我这样是不是抑郁症？", "ill"),
        ("该不该辞职回老家？", "choose"),
        ("为什么我一到周日就难受", "why"),
        ("我放不下他，是因为爱还是因为不甘心？", "either"),
        ("阳台上种点什么，有什么简单的办法", "how"),
        ("人生的意义是什么", "meaning"),
        ("一个人吃火锅算孤独吗？", "whether"),
        ("不想参加同事的婚礼，是不是我太自私了？", "wrong"),
        ("今天又下雨了", "tell"),
        ("同事好像在背后议论我", "mind"),
        ("孩子坐不住，要不要带去医院检查？", "ill"),
        ("面试没过，以后是不是都没戏了？", "future"),
        ("三十岁还会梦见考试，正常吗", "normal"),
        ("心理咨询一次多少钱？", "fact"),
    ],
)
def test_the_kind_of_question_is_read_from_the_title(title: str, kind: str) -> None:
    assert kind in facts(title)


def test_a_feeling_that_is_denied_or_is_anothers_is_not_taken_for_the_askers() -> None:
    assert "feeling" not in facts("今天有点事", "我不是很难过，只是妈妈很生气。")
    assert "feeling" not in facts("今天有点事", "她觉得很委屈，也很伤心。")
    assert holes("今天有点事", "妈妈走了，我很难过。").holes["feeling"] == "难过"


@pytest.mark.parametrize(
    "told",
    [
        "我害怕面试，但是后来一点也不怕了",  # turned round by what follows
        "如果我害怕上台，老师就会换人",  # a condition
        "妈妈说我害怕吃苦",  # another's words
        "她总是担心，害怕我走错路",  # another's fear
        "我不害怕失败的结果",  # denied
        "以前我害怕一个人睡觉",  # over
        "我害怕他会这样对我",  # a pronoun without its noun
        "我害怕的是",  # cut
        "我叫张三，我害怕13800138000",  # tells who it is
        "我害怕什么呢？",  # asked
    ],
)
def test_a_clause_that_would_lose_its_sense_is_not_quoted(told: str) -> None:
    assert "thought" not in holes("该怎么办", told).holes


def test_a_whole_clause_of_the_askers_own_is_quoted() -> None:
    told = "明天有面试，但是我真的很害怕说错话。昨晚没有睡好。"
    reading = holes("怎么办", told)
    assert reading.holes["thought"] == "我真的很害怕说错话"
    assert "fear" in reading.facts


def test_a_question_about_another_gets_no_label_and_names_the_other(
    teacher: TemplateTeacher,
) -> None:
    told = "我觉得自己就是个废物，他整天打游戏，我劝不动他。"
    question = Question(id="q", question="弟弟沉迷游戏怎么帮他？", description=told)
    answer = teacher.answer(question, "none")
    assert answer.distortions == ()
    assert "弟弟" in answer.steps.joined()


def test_a_practical_question_is_not_answered_as_a_trouble(teacher: TemplateTeacher) -> None:
    told = "工资不高，想给自己留一点应急。"
    for number in range(30):
        question = Question(id=str(number), question="想开始存钱，怎么做比较好？", description=told)
        text = teacher.answer(question, "none").steps.joined()
        assert not re.search("难受|心事|不轻松|咨询", text), text


def test_someone_in_danger_is_not_spoken_to_as_a_helper(teacher: TemplateTeacher) -> None:
    told = "儿子一个星期来一次电话。我夜里常常想，要是睡过去不醒也就算了。"
    title = "老伴不在了，孩子都忙，活着没什么盼头"
    question = Question(id="q", question=title, description=told)
    assert "你现在安全吗" in teacher.answer(question, "concern").steps.joined()


def test_violence_is_met_with_safety_and_questions_no_thought(teacher: TemplateTeacher) -> None:
    told = "他喝了酒就打我，我觉得都是我的错。"
    question = Question(id="q", question="我是不是做得不够好？", description=told)
    answer = teacher.answer(question, "none")
    assert answer.distortions == () and "110" in answer.steps.joined()
    assert "和这个看法对不上" not in answer.steps.joined()


@pytest.mark.parametrize(
    "told",
    [
        "同学都说我是个废物",
        "我是不是很没用",
        "如果我是个废物，你们还会理我吗",
        "文章里说，觉得我没用是一种偏见，是这样吗？",
        "他就是个废物",
    ],
)
def test_a_word_of_blame_that_is_not_the_askers_own_claim_is_no_label(
    teacher: TemplateTeacher, told: str
) -> None:
    question = Question(id="q", question="不知道怎么说", description=told)
    assert teacher.answer(question, "none").distortions == ()


@pytest.mark.parametrize(
    "told", ["我快崩溃了，什么都做不了。", "我真的撑不住了。", "这件事已经影响我的生活了，很烦。"]
)
def test_words_of_collapse_name_a_route_to_a_professional(
    teacher: TemplateTeacher, told: str
) -> None:
    question = Question(id="q", question="搬家以后一团乱，怎么办？", description=told)
    assert "医院" in teacher.answer(question, "none").steps.encouragement_and_foresight


def test_the_collapse_of_another_is_not_laid_on_the_asker() -> None:
    assert "severe" not in facts("室友最近很忙", "她妈妈崩溃了，她也没有办法。")


@pytest.mark.parametrize("title", ["好难过，好想离开", "朋友都走了，我一时想不开"])
def test_words_that_may_mean_a_wish_to_die_are_asked_about(
    teacher: TemplateTeacher, title: str
) -> None:
    text = teacher.answer(Question(id="q", question=title), "none").steps.joined()
    assert "你有没有想过伤害自己" in text and "12356" in text


def test_a_wish_to_leave_a_job_is_no_wish_to_die() -> None:
    assert "hinted" not in facts("刚入职就想离开，没意思", "每天对着表格，什么也不想做。")
    assert "hinted" not in facts("妈妈不让，可我还是想离开", "外地的公司要我，她不同意。")


def test_a_title_that_ends_in_the_middle_of_its_sentence_is_not_quoted() -> None:
    assert "told" not in holes("每天都一样，活着的意义是？").holes


def test_a_bad_name_that_hangs_on_a_broken_clause_is_no_label(teacher: TemplateTeacher) -> None:
    told = "总是会有自己是个废物，做什么都小心翼翼。"
    question = Question(id="q", question="怎么和新同学相处？", description=told)
    assert teacher.answer(question, "none").distortions == ()


def test_nobody_is_called_he() -> None:
    for language in load_languages().values():
        for groups in language.slots.values():
            said = str([group.texts for group in groups])
            assert not re.search("(?<![其])他(?!们|人)", said), said


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


def test_every_fact_that_the_language_asks_for_can_be_found() -> None:
    words = load_words()
    known = {
        "for_another",
        "acted",
        "between",
        "any",
        "asked",
        "mine",
        "self",
        "with",
        "other",
        "typed",
        "unclear",
        "minor",
    }
    known |= {"topic", "told", "thought", "feeling", "who", "tell", *words.asks, *words.thoughts}
    known |= {*words.guarded, *words.topics, *words.roles.values(), *words.pattern}
    known |= set(shipped_concepts())
    for language in load_languages().values():
        for groups in language.slots.values():
            for group in groups:
                asked = group.needs | group.avoids
                assert asked <= known, asked - known


def test_no_group_of_texts_is_hidden_behind_an_earlier_one() -> None:
    for language in load_languages().values():
        for slot, groups in language.slots.items():
            for at, later in enumerate(groups):
                for earlier in groups[:at]:
                    hides = earlier.needs <= later.needs and earlier.avoids <= later.avoids
                    assert not hides, (slot, earlier.needs, later.needs)


def test_every_hole_is_asked_for() -> None:
    for name, language in load_languages().items():
        always = {"help"} if name == "danger" else set()
        spoken = {slot for slots in language.steps.values() for slot in slots}
        assert spoken == set(language.slots)
        for slot, groups in language.slots.items():
            for group in groups:
                wanted = {
                    name
                    for nodes in group.texts
                    for node in nodes
                    for words in ([node] if isinstance(node, str) else node)
                    for name in re.findall("<([a-z]+)>", words)
                }
                given = {"for_another": {"who"}, "typed": {"thought", "term"}, "other": {"who"}}
                given |= {kind: {"thought"} for kind in load_words().thoughts}
                filled = {one for need in group.needs for one in given.get(need, ())}
                assert wanted <= filled | group.needs | always, (slot, wanted - filled)


def test_someone_who_fears_for_another_is_told_how_to_help(teacher: TemplateTeacher) -> None:
    told = "他给我发消息，我不知道他是不是认真的，我该怎么帮他？"
    question = Question(id="q", question="朋友总说不想活，怎么帮他？", description=told)
    text = teacher.answer(question, "concern").steps.joined()
    assert "对方" in text and "12356" in text and "伤害自己的部分" not in text


def test_a_slot_that_could_stay_silent_by_mistake_is_refused() -> None:
    with pytest.raises(DataError, match="here:open"):
        read_language({"steps": {}, "open": {"how": ["好。"]}}, "here")


@pytest.mark.parametrize("source", ["(一个|两个", "（好）(单)", "a|b"])
def test_a_malformed_text_is_refused_with_its_place(source: str) -> None:
    raw = {"steps": {}, "open": {"any": [source]}}
    with pytest.raises(DataError, match="here:open"):
        read_language(raw, "here")
