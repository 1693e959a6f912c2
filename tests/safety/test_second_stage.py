"""The trained second stage: what it may look at, what it may not, and where its weights come from."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

import cbtqa.safety
from cbtqa.safety.normalise import fold
from cbtqa.safety.screen import MODEL_NAME, SecondStage, screen, shipped_second_stage, unit_round

ROUNDABOUT = "我给自己定了期限，除夕之前走，药够了"
BENCH = Path(__file__).parents[2] / "scripts" / "bench" / "safety.py"


def test_a_roundabout_plan_is_found_with_the_sentence_as_its_span() -> None:
    assert screen(ROUNDABOUT, second_stage=False).risk != "explicit"
    screening = screen(ROUNDABOUT)
    assert screening.risk == "explicit"
    last = screening.hits[-1]
    assert (last.rule, last.outcome) == ("second_stage.explicit", "stated")
    assert last.text == ROUNDABOUT[last.start : last.end]


def test_in_a_long_text_only_the_sentence_round_the_place_is_judged() -> None:
    before, after = "今天去公园散步，看了很多花。" * 6, "明天还要上班。" * 8
    text = before + ROUNDABOUT + "。" + after
    last = screen(text).hits[-1]
    assert last.rule == "second_stage.explicit"
    assert last.text == ROUNDABOUT + "。"
    start, end = unit_round("字" * 300, 150)
    assert end - start == 80


@pytest.mark.parametrize(
    "text",
    [
        "我没有自杀的念头，药够了，除夕回家。",
        "小说里他给自己定了期限，除夕之前走，药够了。",
        "我朋友给自己定了期限，除夕之前自杀，药够了。",
        "今天工作很累，睡前喝了牛奶。",
        "外卖到了，绳子捆得好紧。",
    ],
)
def test_a_reason_that_a_rule_gave_is_not_overruled_and_plain_life_is_left_alone(text: str) -> None:
    assert screen(text).risk != "explicit"


def test_a_text_without_any_place_is_never_judged() -> None:
    text = "信写了四封，一封给警察"
    assert not screen(text, second_stage=False).hits
    assert screen(text).hits == ()


def test_a_weight_counts_as_often_as_its_ngram_stands_there() -> None:
    stage = SecondStage({"甲": 2.0, "甲乙": -1.0}, bias=0.0)
    assert stage.probability("丙") == 0.5
    assert stage.probability("甲丙") > stage.probability("甲乙") > 0.5
    assert stage.probability("甲甲") > stage.probability("甲丙")


def test_ordinary_invented_questions_are_not_raised() -> None:
    from cbtqa.psyqa import bundled_sample_path

    rows = json.loads(bundled_sample_path().read_text(encoding="utf-8"))
    texts = [f"{row['question']}\n{row['description']}" for row in rows]
    raised = [text for text in texts if screen(text).risk != screen(text, second_stage=False).risk]
    assert len(raised) <= 0.03 * len(texts), raised


def test_the_shipped_weights_are_what_the_lists_teach() -> None:
    bench = runpy.run_path(str(BENCH))
    weights, bias = bench["train"](*bench["training_texts"](without=None))
    path = Path(cbtqa.safety.__file__).parent / MODEL_NAME
    shipped = json.loads(path.read_text(encoding="utf-8"))
    assert bias == pytest.approx(shipped["bias"], abs=0.1)
    assert len(set(weights) ^ set(shipped["weights"])) < 0.02 * len(weights), "train it again"
    texts = [fold(ROUNDABOUT), "我想去海边散步", "药都准备好了"]
    again = SecondStage(weights, bias)
    for text in texts:
        assert again.probability(text) == pytest.approx(
            shipped_second_stage().probability(text), abs=0.02
        )
