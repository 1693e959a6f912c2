"""Copies of a question end in its cluster however they were edited; other questions do not."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from cbtqa.dataset.near_duplicates import Clusters, Texts, plain_text
from cbtqa.psyqa import SourceItem, bundled_sample_path, read_questions
from tests.support.edited_copies import kinds

LONG = (
    "我今年二十六岁，在一家小公司做行政，最近半年换了新领导，她总是当着大家的面挑我的毛病，"
    "我每天早上一想到要上班就胃疼，晚上也睡不好，跟家里人说他们只会劝我忍一忍。"
)
SAMPLE = [
    entry.question.source_text
    for entry in read_questions(bundled_sample_path())
    if isinstance(entry, SourceItem)
]
"""Invented questions, each on something else."""
KINDS = kinds("".join(map(plain_text, SAMPLE)))


def clusters_of(texts: Sequence[str], cosine: float = 0.4) -> Clusters:
    compared = Texts()
    compared.add(map(plain_text, texts))
    return compared.clusters(cosine)


def first_of(texts: Sequence[str]) -> list[int]:
    return clusters_of(texts).first.tolist()


def test_a_copy_with_small_edits_joins_the_original() -> None:
    texts = [
        LONG,
        "孩子上初中以后不爱跟我说话，回家就关门，我该怎么跟他沟通才不会吵起来呢？",
        LONG.replace("二十六", "二十七"),
        LONG + "急。",
        LONG.replace("，", ","),
    ]
    assert first_of(texts) == [0, 1, 0, 0, 0]


def test_a_cluster_is_named_by_its_first_member_whatever_joins_later() -> None:
    texts = ["别的事情" * 5, LONG, LONG, "另外一件不同的事" * 4, LONG]
    assert first_of(texts) == [0, 1, 1, 3, 1]


def test_questions_of_the_same_topic_stay_apart() -> None:
    texts = [
        "考试没考好，觉得对不起爸妈，怎么调整心态？",
        "考研失败了，不知道该工作还是再考一年，好迷茫。",
        "月考退步很多，老师找我谈话，我很难过。",
    ]
    assert first_of(texts) == [0, 1, 2]


def test_distinct_questions_are_joined_once_in_a_hundred_at_most() -> None:
    found = clusters_of(SAMPLE)
    assert found.n_joined <= 0.01 * len(SAMPLE)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_every_kind_join_their_original(kind: str) -> None:
    draw = random.Random(1)
    copies = [KINDS[kind](text, draw) for text in SAMPLE]
    first = clusters_of(SAMPLE + copies).first
    n = len(SAMPLE)
    least = {"all words replaced by synonyms": 0.9, "20% of the characters edited": 0.9}
    assert (first[n:] == first[:n]).mean() >= least.get(kind, 0.95)
    # a copy joins its own original, not everything
    assert np.bincount(first).max() <= 4


def test_short_questions_must_be_more_alike_than_long_ones() -> None:
    short = ["我很累，怎么办？", "我很烦，怎么办？", "同桌不理我了", "同桌不理我了啊"]
    assert first_of([*SAMPLE, *short])[-4:] == [len(SAMPLE) + at for at in (0, 1, 2, 2)]


def test_what_many_questions_begin_and_end_with_joins_none_of_them() -> None:
    start = "各位老师好，我是第一次来这里提问，有说得不清楚的地方请多多包涵，谢谢大家。"
    texts = [f"{start}{text}{start}" for text in SAMPLE]
    assert clusters_of(texts).n_joined <= 0.01 * len(texts)


def test_a_title_alone_joins_the_question_with_its_description() -> None:
    title = "新来的领导总是当着大家的面挑我的毛病"
    whole = f"{title}，怎么办？\n" + LONG.replace("挑我的毛病", "找我的错") * 2
    assert first_of([*SAMPLE, whole, title])[-1] == len(SAMPLE)
    assert first_of([*SAMPLE, whole, "睡不好怎么办"])[-1] == len(SAMPLE) + 1


def test_clusters_do_not_depend_on_the_order_of_the_file() -> None:
    draw = random.Random(5)
    texts = SAMPLE + [
        KINDS["20% of the characters edited"](text, draw) for text in SAMPLE for _ in "12"
    ]
    order = draw.sample(range(len(texts)), len(texts))

    def partition(places: Sequence[int]) -> set[frozenset[int]]:
        groups: dict[int, set[int]] = {}
        for place, first in zip(places, first_of([texts[p] for p in places]), strict=True):
            groups.setdefault(first, set()).add(place)
        return {frozenset(group) for group in groups.values()}

    assert partition(order) == partition(range(len(texts)))


def test_a_chain_of_texts_each_a_little_like_the_next_does_not_join_everything() -> None:
    draw = random.Random(2)
    letters = [chr(0x4E00 + i) for i in range(3000)]
    text = [draw.choice(letters) for _ in range(100)]
    chain = []
    for _ in range(200):
        text = text[25:] + [draw.choice(letters) for _ in range(25)]
        chain.append("".join(text))
    found = clusters_of(chain)
    assert found.largest <= 20
    assert found.n_apart > 0
    assert found.describe(0.4)["n_pairs_apart"] == found.n_apart


def test_many_copies_with_another_number_are_one_cluster_and_take_an_edited_one_in() -> None:
    texts = [LONG.replace("半年", f"{n}个月") for n in range(2, 300)]
    edited = KINDS["8% of the characters edited"](LONG, random.Random(3))
    assert set(first_of([*SAMPLE, *texts, edited])[len(SAMPLE) :]) == {len(SAMPLE)}


def test_at_cosine_1_only_texts_equal_as_compared_are_joined() -> None:
    texts = [LONG, LONG.replace("，", " , "), LONG[:-2] + "。", "個人", "个人"]
    assert clusters_of(texts, cosine=1).first.tolist() == [0, 0, 2, 3, 3]


def test_empty_and_tiny_texts_are_no_obstacle() -> None:
    assert first_of([]) == []
    assert first_of(["？", "好", "好的", "？", "😀", "", "好"]) == [0, 1, 2, 0, 4, 5, 1]
