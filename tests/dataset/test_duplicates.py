"""Near-duplicate questions end in one cluster; merely related ones do not."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cbtqa.dataset.splitting import cluster_near_duplicates, sketch

LONG = (
    "我今年二十六岁，在一家小公司做行政，最近半年换了新领导，她总是当着大家的面挑我的毛病，"
    "我每天早上一想到要上班就胃疼，晚上也睡不好，跟家里人说他们只会劝我忍一忍。"
)


def clusters_of(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    return cluster_near_duplicates(sketch(texts), threshold=0.7)


def test_a_copy_with_small_edits_joins_the_original() -> None:
    texts = [
        LONG,
        "孩子上初中以后不爱跟我说话，回家就关门，我该怎么跟他沟通才不会吵起来呢？",
        LONG.replace("二十六", "二十七"),
        LONG + "急。",
        LONG.replace("，", ","),
    ]
    assert clusters_of(texts).tolist() == [0, 1, 0, 0, 0]


def test_a_cluster_is_named_by_its_first_member_whatever_joins_later() -> None:
    clusters = clusters_of(["别的事情" * 5, LONG, LONG, "另外一件不同的事" * 4, LONG])
    assert clusters.tolist() == [0, 1, 1, 3, 1]


def test_questions_of_the_same_topic_stay_apart() -> None:
    texts = [
        "考试没考好，觉得对不起爸妈，怎么调整心态？",
        "考研失败了，不知道该工作还是再考一年，好迷茫。",
        "月考退步很多，老师找我谈话，我很难过。",
    ]
    assert clusters_of(texts).tolist() == [0, 1, 2]


def test_nearly_all_pairs_at_the_threshold_are_found_and_few_far_below_it() -> None:
    draw = random.Random(3)
    letters = [chr(0x4E00 + i) for i in range(2000)]

    def pair(n_changed: int) -> list[str]:
        text = [draw.choice(letters) for _ in range(200)]
        other = text.copy()
        for place in draw.sample(range(200), n_changed):
            other[place] = draw.choice(letters)
        return ["".join(text), "".join(other)]

    def share_joined(n_changed: int) -> float:
        n = 100
        texts = [text for _ in range(n) for text in pair(n_changed)]
        clusters = clusters_of(texts)
        return sum(clusters[2 * i] == clusters[2 * i + 1] for i in range(n)) / n

    assert share_joined(4) > 0.95  # Jaccard about 0.85
    assert share_joined(40) < 0.02  # Jaccard about 0.27


def test_empty_and_tiny_texts_are_no_obstacle() -> None:
    assert clusters_of([]).tolist() == []
    assert clusters_of(["？", "好", "好的"]).tolist() == [0, 1, 2]
