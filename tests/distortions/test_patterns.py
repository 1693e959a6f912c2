"""The pattern labeller: what it hears, and what it must not hear."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from cbtqa.distortions import patterns
from cbtqa.distortions.patterns import PatternLabeller, split_clauses, split_sentences
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.errors import DataError
from tests.support.labels import is_evident

FINE = PatternLabeller(load_taxonomy("socialcd-12"))
BINARY = PatternLabeller(load_taxonomy("binary"))


@pytest.mark.parametrize(
    ("text", "type_id", "evidence"),
    [
        ("昨天搞砸了汇报，我就是个废物。", "labeling", "我就是个废物"),
        ("升职没轮到我，觉得自己特别没用", "labeling", "觉得自己特别没用"),
        ("她们进门就笑，感觉大家都在嘲笑我", "mind_reading", "感觉大家都在嘲笑我"),
        ("分手以后，我这辈子都不会幸福了。", "fortune_telling", "我这辈子都不会幸福了"),
        ("弟弟生病住院，都是我的错。", "personalization", "都是我的错"),
        ("怎么说呢，我根本就不该活着", "should", "我根本就不该活着"),
        ("换了三份工作，做什么都失败。", "overgeneralization", "做什么都失败"),
        ("我会变成这样，都怪我妈", "blaming_others", "都怪我妈"),
        (
            "爸妈和室友都对我很好，可我还是高兴不起来。",
            "disqualifying_positive",
            "爸妈和室友都对我很好，可我还是高兴不起来",
        ),
        ("生日那天，觉得自己根本不配得到礼物", "labeling", "觉得自己根本不配得到礼物"),
    ],
)
def test_a_typical_thought_is_named_with_its_clause(text, type_id, evidence) -> None:
    found = {label.id: label.evidence for label in FINE.label(text)}
    assert found.get(type_id) == evidence


@pytest.mark.parametrize(
    "text",
    [
        "我不是废物",
        "我不觉得自己没用，只是有点累",
        "如果我是个废物，你还会喜欢我吗",
        "我妈总骂我是个废物",
        "孩子总觉得自己没用，我该怎么开导他",
        "请问周末去哪里爬山比较好？",
        "我想知道怎样和室友好好沟通",
        "",
        "。。。",
    ],
)
def test_negation_conditions_and_other_people_are_left_alone(text: str) -> None:
    assert FINE.label(text) == ()


def test_a_question_whether_i_am_one_is_no_denial() -> None:
    assert [label.id for label in FINE.label("我是不是很没用")] == ["labeling"]


def test_labels_are_said_in_the_taxonomy_in_use() -> None:
    text = "感觉大家都在嘲笑我，我这辈子都不会幸福了"
    assert {label.id for label in PatternLabeller().label(text)} == {"jumping_to_conclusions"}
    assert {label.id for label in BINARY.label(text)} == {"distorted"}
    mind_reading_only = PatternLabeller(load_taxonomy("cbt-llm-5"))
    assert [label.id for label in mind_reading_only.label(text)] == ["mind_reading"]


def test_evidence_always_stands_in_the_text_as_it_is() -> None:
    text = " 我　真的好差劲 ！\n\t觉得自己 是个 loser,没有人会喜欢我～～以后也好不了了"
    labels = FINE.label(text)
    assert len(labels) >= 2
    assert all(is_evident(label, text) and label.evidence for label in labels)
    assert all(label.confidence is None for label in labels), "rules know no probability"


def test_clauses_and_sentences_cover_the_text_without_its_marks() -> None:
    text = "好吧，我 试试see you 再说！“行吗？”最后一句"
    assert [span.of(text) for span in split_clauses(text)] == [
        "好吧",
        "我",
        "试试see you 再说",
        "“行吗",
        "”最后一句",
    ]
    assert [span.of(text) for span in split_sentences(text)] == [
        "好吧，我 试试see you 再说！",
        "“行吗？”",
        "最后一句",
    ]


def test_a_clause_without_spaces_is_cut_the_same_by_both_ways() -> None:
    text = "一，二。三！四\n五……六～七:八"
    with_space = text + "，九 十"
    assert [s.of(text) for s in split_clauses(text)] == list("一二三四五六七八")
    assert [s.of(with_space) for s in split_clauses(with_space)] == list("一二三四五六七八九十")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", "not YAML"),
        ("words: {}", "a list `rules`"),
        ("rules: [{id: a, type: made_up, confidence: 0.5, says: [甲]}]", "unknown type 'made_up'"),
        ("rules: [{id: a, type: should, confidence: 0.5, says: ['{x}']}]", "unknown word class"),
        ("rules: [{id: a, type: should, confidence: 5, says: [甲]}]", "less than or equal to 1"),
        ("rules: [{id: a, type: should, confidence: 0.5, says: ['甲…']}]", "may be empty"),
    ],
)
def test_a_bad_rule_file_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        PatternLabeller(rules_path=path)
    assert str(path) in str(error.value)


def test_a_rule_file_of_your_own_replaces_the_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "gap: 3\nwords: {who: [俺, 咱]}\n"
        "rules: [{id: a, type: labeling, confidence: 0.8, says: ['{who}…(可|太)笨']}, "
        "{id: b, type: should, confidence: 0.9, says: [要去]}]"
    )
    own = PatternLabeller(rules_path=path)
    assert [one.id for one in own.label("俺真的太笨，要去")] == ["should", "labeling"]
    assert own.label("俺今天真的真的太笨") == (), "five characters are more than the gap"
    assert own.label("我就是个废物") == ()


def test_a_phrase_over_commas_is_quoted_whole_and_stays_in_its_sentence() -> None:
    text = "昨天吵了一架。我心里这么难受，说明全是我不对！睡吧"
    found = {label.id: label.evidence for label in FINE.label(text)}
    assert found["emotional_reasoning"] == "我心里这么难受，说明全是我不对"
    assert FINE.label("今天这么累。说明书放在哪里了") == ()


@pytest.mark.parametrize("text", ["我觉得自己快崩溃了", "问我好不好", "我的建议行不行"])
def test_strain_alone_and_plain_questions_name_no_type(text: str) -> None:
    assert FINE.label(text) == ()


def test_the_invented_sample_is_heard_type_by_type() -> None:
    """Every type the sample's questions were written for; bounds lie below what is measured."""
    root = Path(__file__).parents[2]
    key = json.loads((root / "tests/golden/sample_key.json").read_text(encoding="utf-8"))
    sample = json.loads((root / "data/psyqa/sample.json").read_text(encoding="utf-8"))
    meant, heard, given = Counter(), Counter(), 0
    for item in sample:
        wanted = set(key[str(item["questionID"])]["distortions"])
        labels = FINE.label(f"{item['question']}\n{item['description']}")
        meant.update(wanted)
        heard.update(wanted & {label.id for label in labels})
        given += len(labels)
    assert {type_id for type_id in meant if heard[type_id] < 0.7 * meant[type_id]} == set()
    assert heard.total() >= 0.85 * meant.total(), "recall"
    assert heard.total() >= 0.65 * given, "precision"


def test_how_many_words_the_automaton_holds_changes_no_rules_clause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "words: {who: [别人, 他们], how: [都会, 不再, ''], what: [看不起我, 讨厌我, 不要我]}\nrules:\n"
        "  - {id: a, type: mind_reading, confidence: 0.8, says: ['{who}{how}{what}']}\n"
        "  - {id: b, type: mind_reading, confidence: 0.8, says: ['以后…{how}{what}']}\n",
        encoding="utf-8",
    )
    texts = [
        "别人都会看不起我",
        "我妈说别人讨厌我，以后他们不再不要我",
        "以后没人会不要我",
        "不是他们讨厌我",
    ]

    def found() -> list[set[tuple[str, tuple[int, int]]]]:
        patterns._load_rules.cache_clear()
        labeller = PatternLabeller(rules_path=path)
        return [{(hit.rule.id, hit.clause) for hit in labeller.find_hits(one)} for one in texts]

    whole = found()
    assert sum(map(len, whole)) == 4
    for most in (3, 12):
        monkeypatch.setattr(patterns, "_MAX_EXPANSIONS", most)
        assert found() == whole
