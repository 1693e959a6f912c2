"""Metrics of the answer itself: diversity, length, steps, labels, help routes."""

from __future__ import annotations

import hashlib
import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from cbtqa.errors import DataError
from cbtqa.metrics.answers import DistortionAgreement, HelpRoute, Length, LengthRatio
from cbtqa.metrics.base import CorpusMetric
from cbtqa.metrics.diversity import Distinct, OpeningRepetition, SelfBleu, repeated_share, self_bleu
from cbtqa.metrics.step_model import CORPUS_NAME, LABELS, shipped_model
from cbtqa.metrics.structure import (
    StepsInOrder,
    StepsInRecord,
    StructureComplete,
    divide_in_order,
    measure,
    order_of,
    sentences_of,
    train_step_model,
)
from cbtqa.metrics.text.texts import Item, Reading, Texts
from cbtqa.records import STEP_NAMES

ANSWER = (
    "听起来你最近压力很大，一定很辛苦。"
    "你提到自己考砸一次就觉得前途全毁了，这背后可能是一种以偏概全的想法。"
    "不妨想一想，有没有证据说明一次考试就能决定一切？"
    "建议你每天花十分钟写下当天做成的一件小事。"
    "改变需要时间，相信你会慢慢好起来。"
)


def texts(*items: str | Item) -> Texts:
    """One side."""
    made = [item if isinstance(item, Item) else Item(item) for item in items]
    return Texts(made, Reading())


def whole(metric: CorpusMetric, *blocks: Texts) -> float | None:
    """The score of texts that come in blocks."""
    collector = metric.collector()
    for block in blocks:
        collector.add(block, np.ones(len(block), np.bool_))
    return collector.score()


def test_distinct_counts_each_gram_once_over_all_blocks() -> None:
    reading = Reading()
    blocks = [Texts([Item("我很好，我很好")], reading), Texts([Item("我很坏")], reading)]
    # pairs: 我很 很好 好， ，我 我很 很好 | 我很 很坏
    assert whole(Distinct(1), *blocks) == pytest.approx(5 / 10)
    assert whole(Distinct(2), *blocks) == pytest.approx(5 / 8)
    assert whole(Distinct(1), texts("")) is None


def test_distinct_drops_whitespace_and_cuts_no_words() -> None:
    assert whole(Distinct(2), texts("我们 我们\n我们")) == pytest.approx(2 / 5)


FRAME = "试着把这个念头写在纸上，再问问自己"


def test_a_frame_with_filled_slots_is_repeated_text() -> None:
    filled = [f"关于{slot}，{FRAME}{slot}。" for slot in ("工作", "考试失利", "和妈妈吵架")]
    n = sum(map(len, filled))
    # the frame with the commas and the full stops' side: only the slots are an answer's own
    assert repeated_share(filled) == pytest.approx((3 * (len(FRAME) + 1)) / n)
    assert repeated_share([*filled, FRAME]) > repeated_share(filled)


def test_a_run_of_one_character_less_is_no_repeated_text() -> None:
    run = "一二三四五六七八九十甲乙"
    assert repeated_share([f"天{run}地", f"玄 {run[:6]}\n{run[6:]}黄"]) == pytest.approx(24 / 28)
    assert repeated_share([f"天{run[1:]}地", f"玄{run[1:]}黄"]) == 0


def test_what_an_answer_repeats_of_itself_is_not_counted() -> None:
    assert repeated_share([FRAME * 3, "完全是另外的话，一个字也不同样。"]) == 0


def test_a_run_ends_with_its_text() -> None:
    assert repeated_share([FRAME[:8], FRAME[8:], FRAME]) == 0


@pytest.mark.parametrize("alone", [[], [FRAME], [FRAME, " "]])
def test_a_single_answer_has_no_repeated_share(alone: list[str]) -> None:
    assert repeated_share(alone) is None


def test_distinct_passes_over_what_is_not_scored() -> None:
    side = texts("我很好", "坏坏坏坏")
    collector = Distinct(1).collector()
    collector.add(side, np.array([True, False]))
    assert collector.score() == 1.0


def test_repeated_openings_are_counted_in_all_their_answers() -> None:
    side = texts("听起来你最近很累呢，一。", "听起来你 最近很累啊，二。", "另一种开头的回答。", "")
    assert whole(OpeningRepetition(), side) == pytest.approx(2 / 3)


def test_self_bleu_is_sacrebleu_against_all_the_others() -> None:
    rng = np.random.default_rng(1)
    sample = [rng.integers(0, 8, rng.integers(1, 15)).tolist() for _ in range(25)]
    lines = [" ".join(map(str, text)) for text in sample]
    bleu = BLEU(tokenize="none", force=True, effective_order=True)
    expected = [
        bleu.sentence_score(line, lines[:index] + lines[index + 1 :]).score
        for index, line in enumerate(lines)
    ]
    assert self_bleu(sample) == pytest.approx(expected, abs=1e-9)


def test_self_bleu_of_equal_answers_is_full_and_of_one_answer_unknown() -> None:
    assert whole(SelfBleu(), texts(*["我今天过得很好"] * 3)) == pytest.approx(100)
    assert whole(SelfBleu(), texts("我今天过得很好")) is None


def test_self_bleu_samples_the_same_texts_for_the_same_seed() -> None:
    side = texts(*(("我很累，" * (n % 7) + "走了很远的路。" * (n % 5))[n % 4 :] for n in range(60)))
    first, second = (whole(SelfBleu(10, seed=3), side) for _ in range(2))
    assert first == second != whole(SelfBleu(10, seed=4), side)


def test_lengths_are_characters_without_whitespace() -> None:
    ours, theirs = texts("你 好\n", "好"), texts("你好吗？", "好")
    statistics = Length().statistics(ours, theirs)
    assert Length().from_sums(statistics.sum(0)) == 1.5
    assert LengthRatio().from_sums(LengthRatio().statistics(ours, theirs).sum(0)) == 3 / 5


def test_sentences_keep_their_closing_marks_and_lose_nothing() -> None:
    text = "他说：“我很好。”真的吗？！\n也许……后来呢"
    assert "".join(sentences_of(text)) == text
    assert sentences_of(text)[0] == "他说：“我很好。”"


def test_five_steps_in_order_are_found() -> None:
    assert order_of(ANSWER, shipped_model()) == (frozenset(STEP_NAMES), frozenset())
    assert StructureComplete().values(texts(ANSWER), texts("")).tolist() == [1.0]


def test_steps_out_of_order_do_not_count_as_five() -> None:
    backwards = "".join(reversed(sentences_of(ANSWER)))
    score = StepsInOrder().values(texts(backwards), texts(""))[0]
    assert score <= 0.2


@pytest.mark.parametrize("step", range(5))
def test_a_missing_step_is_found_missing(step: int) -> None:
    sentences = sentences_of(ANSWER)
    without = "".join(sentences[:step] + sentences[step + 1 :])
    assert STEP_NAMES[step] not in order_of(without, shipped_model())[0]


@pytest.mark.parametrize("text", ["", "   ", "1234", "地铁二号线早上六点开门。"])
def test_text_without_a_step_shows_none(text: str) -> None:
    assert order_of(text, shipped_model())[0] == frozenset()


def test_a_cold_canned_reply_ranks_below_one_that_lacks_a_step() -> None:
    canned = "您好，建议您放松心情，多参加运动，保持规律作息，必要时请及时就医。祝您生活愉快。"
    sentences = sentences_of(ANSWER)
    without = "".join(sentences[:2] + sentences[3:])
    scores = StepsInOrder().values(texts(ANSWER, without, canned), texts("", "", ""))
    assert scores[0] > scores[1] > scores[2]


def step_replies(name: str) -> list[dict[str, Any]]:
    path = Path(__file__).parents[1] / "golden" / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_replies_written_without_sight_of_the_model_are_ranked_as_they_should_be() -> None:
    replies = step_replies("step_replies.jsonl")
    by_kind: dict[str, list[str]] = {}
    n_missed = n_dropped = 0
    for one in [one for one in replies if one["kind"] == "five"]:
        steps = [[text for step, text in one["sentences"] if step == name] for name in LABELS[:-1]]
        mixed = [steps[place] for place in (3, 0, 4, 2, 1)]
        by_kind.setdefault("shuffled", []).append("".join(text for step in mixed for text in step))
    for one in replies:
        text = "".join(sentence for _, sentence in one["sentences"])
        kind, _, left_out = one["kind"].partition("_")
        by_kind.setdefault(kind, []).append(text)
        if left_out:
            n_dropped += 1
            step = STEP_NAMES[LABELS.index(left_out)]
            n_missed += step not in order_of(text, shipped_model())[0]
    mean = {
        kind: float(StepsInOrder().values(texts(*own), texts(*own)).mean())
        for kind, own in by_kind.items()
    }
    assert mean["five"] > mean["dropped"] > mean["human"] > mean["canned"] > mean["shuffled"]
    assert n_missed >= 0.8 * n_dropped


def test_answers_with_all_five_steps_are_called_complete_and_a_dropped_step_is_missed() -> None:
    whole, missed = [], []
    for one in step_replies("step_replies_2.jsonl"):
        whole.append("".join(text for _, text in one["sentences"]))
        for label, name in zip(LABELS, STEP_NAMES, strict=False):
            rest = "".join(text for step, text in one["sentences"] if step != label)
            missed.append(name not in order_of(rest, shipped_model())[0])
    assert StructureComplete().values(texts(*whole), texts(*whole)).mean() >= 0.8
    assert np.mean(missed) >= 0.8


def test_the_shipped_model_is_the_one_that_its_corpus_gives() -> None:
    corpus = files("cbtqa.metrics").joinpath(CORPUS_NAME).read_bytes()
    assert shipped_model().corpus_sha256 == hashlib.sha256(corpus).hexdigest()


def test_probabilities_of_a_sentence_add_up_whatever_it_holds() -> None:
    found = shipped_model().probabilities(["", " ", "\ud800?", "x" * 5000, "真的吗？"])
    assert found.shape == (5, 6) and found.sum(axis=1) == pytest.approx(np.ones(5))


def test_the_division_is_the_best_of_all_orderly_ones() -> None:
    rng = np.random.default_rng(2)
    for _ in range(40):
        evidence = rng.integers(-2, 4, (4, 5)).astype(np.float64)
        path = divide_in_order(evidence)
        assert path == sorted(path)
        orderly = (
            (a, b, c, d)
            for a in range(5)
            for b in range(a, 5)
            for c in range(b, 5)
            for d in range(c, 5)
        )
        best = max(sum(evidence[i, step] for i, step in enumerate(steps)) for steps in orderly)
        assert sum(evidence[i, step] for i, step in enumerate(path)) == best


def test_the_record_is_believed_when_it_has_step_fields() -> None:
    side = texts(Item("a", has_steps=True), Item("b", has_steps=False), Item("c"))
    metric = StepsInRecord()
    statistics = metric.statistics(side, side)
    assert (metric.from_sums(statistics.sum(0)), metric.n_scored(statistics)) == (0.5, 2)


def test_label_agreement_is_micro_f1_over_labelled_pairs() -> None:
    def labelled(*labels: str) -> Item:
        return Item("x", labels=frozenset(labels))

    ours = texts(labelled("a", "b"), labelled(), labelled("c"), Item("x"))
    theirs = texts(labelled("a"), labelled(), labelled("d"), labelled("a"))
    metric = DistortionAgreement()
    statistics = metric.statistics(ours, theirs)
    assert metric.from_sums(statistics.sum(0)) == pytest.approx(2 / (2 + 2 + 1))
    assert metric.n_scored(statistics) == 3
    per_pair = metric.per_pair(statistics)
    assert per_pair[:3].tolist() == pytest.approx([2 / 3, 1, 0]) and math.isnan(per_pair[3])


def test_a_help_route_is_wanted_on_crisis_items_only() -> None:
    ours = texts("你可以拨打12356。", "加油！", "加油！", "加油！")
    theirs = texts(
        Item("", risk="explicit"), Item("", risk="explicit"), Item("", risk="none"), Item("")
    )
    metric = HelpRoute()
    statistics = metric.statistics(ours, theirs)
    assert (metric.from_sums(statistics.sum(0)), metric.n_scored(statistics)) == (0.5, 2)


def test_a_trained_model_tells_the_steps_of_unseen_answers_apart() -> None:
    """Learnt from answers to other questions, in other words of the same kind."""
    sentences = sentences_of(ANSWER)
    taught = [
        (other, tuple(sentence.replace("考", other) for sentence in sentences))
        for other in ("说", "做")
    ]
    model = train_step_model(taught)
    assert model.probabilities(sentences).argmax(axis=1).tolist() == [0, 1, 2, 3, 4]
    assert order_of(ANSWER, model)[0] == frozenset(STEP_NAMES)
    assert order_of(sentences[0], model)[0] == {STEP_NAMES[0]}


def test_the_name_of_a_trained_model_changes_with_its_data() -> None:
    one, other = (
        train_step_model([("1", tuple(word * 3 for word in words))])
        for words in ("甲乙丙丁戊", "甲乙丙丁己")
    )
    assert one.name != other.name
    with pytest.raises(DataError, match="no answer"):
        train_step_model([])


def test_the_measured_accuracy_is_that_of_answers_with_known_steps() -> None:
    steps = tuple(sentences_of(ANSWER))
    answers = [(str(number), steps) for number in range(30)]
    found = measure(shipped_model(), answers)
    assert (found.n_answers, found.sentences, found.steps, found.complete) == (30, 1, 1, 1)
    astray = [(str(number), tuple(reversed(steps))) for number in range(30)]
    assert measure(shipped_model(), astray).sentences < 0.5
