"""Intervals of F1 and its differences: closed forms, floors and what they draw."""

from __future__ import annotations

import numpy as np
import pytest

from cbtqa.distortions.evaluate import evaluate, share_of, swap_p
from cbtqa.distortions.f1 import Counts, cluster_numbers, difference, macro_interval
from cbtqa.distortions.importers import GoldItem, GoldSet
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.records import DistortionLabel
from cbtqa.statistics.intervals import share_interval

YES, NO = True, False


def counts(hits: int, missed: int, false: int, rest: int = 0) -> Counts:
    truth = [YES] * (hits + missed) + [NO] * (false + rest)
    given = [YES] * hits + [NO] * missed + [YES] * false + [NO] * rest
    return Counts.of(np.array(truth), np.array(given))


def test_f1_has_the_interval_of_the_share_of_right_decisions() -> None:
    found = counts(hits=8, missed=3, false=4, rest=50)
    low, high, *_ = share_interval(8, 15)
    assert found.f1 == pytest.approx(16 / (16 + 7))
    assert found.interval().low == pytest.approx(2 * low / (1 + low))
    assert found.interval().high == pytest.approx(2 * high / (1 + high))


def test_three_texts_or_fewer_give_no_interval() -> None:
    assert counts(3, 0, 0, 40).interval() == (None, None, "in 3 texts", 0)
    assert counts(0, 1, 0, 40).interval().reason == "in 1 text"
    assert counts(0, 0, 0, 40).interval().reason == "occurs nowhere"
    right = counts(4, 0, 0, 40).interval()
    assert right.low is not None and right.low < 0.9 and right.high == pytest.approx(1)


def test_sentences_of_one_document_count_less_than_sentences_of_many() -> None:
    rng = np.random.default_rng(3)
    truth = np.repeat(rng.random(20) < 0.6, 5)
    given = truth ^ np.repeat(rng.random(20) < 0.3, 5)
    documents = np.repeat(np.arange(20), 5)
    apart, together = Counts.of(truth, given), Counts.of(truth, given, documents)
    assert apart.f1 == together.f1
    wide, narrow = together.interval(), apart.interval()
    assert wide.high - wide.low > 1.8 * (narrow.high - narrow.low)


def test_each_text_as_its_own_document_is_no_document() -> None:
    rng = np.random.default_rng(4)
    truth, given = rng.random((2, 60)) < 0.5
    alone = Counts.of(truth, given, cluster_numbers([str(n) for n in range(60)]))
    assert alone.interval() == Counts.of(truth, given).interval()


def test_the_macro_interval_holds_its_mean_and_stays_on_the_scale() -> None:
    types = [counts(9, 1, 1, 20), counts(5, 0, 0, 26), counts(2, 0, 0, 29), counts(0, 0, 0, 31)]
    found = macro_interval(types)
    mean = np.mean([one.f1 for one in types[:3]])
    assert found.low < mean < found.high <= 1, "the type that occurs nowhere is left out"
    alone = [one.exact_ends for one in types[:3]]
    assert found.low > np.mean([low for low, _ in alone]), "three types err less than each"


def test_no_macro_interval_where_most_types_are_rare() -> None:
    rare = [counts(9, 1, 1, 20), counts(2, 0, 0, 29), counts(1, 1, 0, 29)]
    assert macro_interval(rare).reason == "2 of 3 types in 3 texts or fewer"
    assert macro_interval([counts(0, 0, 0, 31)]).reason == "no type occurs"


def test_a_difference_is_paired_and_leaves_a_type_out_for_both() -> None:
    rng = np.random.default_rng(5)
    truth = rng.random(300) < 0.4
    good = truth ^ (rng.random(300) < 0.05)
    worse = good ^ (rng.random(300) < 0.05)
    nothing = np.zeros(300, bool)
    ours, theirs = Counts.of(truth, good), Counts.of(truth, worse)
    value, found = difference(
        [ours, Counts.of(nothing, nothing)], [theirs, Counts.of(nothing, good)]
    )
    assert value == pytest.approx(ours.f1 - theirs.f1), "the second type has an F1 for one only"
    assert found.low < value < found.high
    alone = np.hypot(*(c.interval().high - c.interval().low for c in (ours, theirs)))
    assert found.high - found.low < 0.9 * alone, "both stumble over the same texts"


def test_labellers_that_hardly_differ_get_no_interval_of_their_difference() -> None:
    truth = np.arange(100) < 40
    given = truth.copy()
    given[:5] = NO
    value, found = difference([Counts.of(truth, truth)], [Counts.of(truth, given)])
    assert value is not None and found.reason == "they differ in 5 texts"


def test_a_swap_moves_whole_documents() -> None:
    # three documents, the first labeller ahead by 2, 1 and 1: |sum| = 4 under two of eight swaps
    ahead = np.array([1, 1, 1, 0, 1, 0])
    assert swap_p(ahead, np.array([0, 0, 1, 1, 2, 2])) == pytest.approx(2 / 8)
    assert swap_p(ahead) == pytest.approx(2 / 16)
    # ahead by 2, behind by 1 and 1: every swap is at least as far as 0
    assert swap_p(np.array([1, 1, -1, -1]), np.array([0, 0, 1, 2])) == 1


def test_a_share_of_one_document_has_no_interval() -> None:
    hits, all_texts = np.array([YES, NO, YES]), np.ones(3, bool)
    found = share_of(hits, all_texts, np.zeros(3, np.int64))
    assert found is not None and found.low is None and found.reason == "all from one document"


def test_a_report_draws_documents_where_the_gold_has_them() -> None:
    taxonomy = load_taxonomy("binary")
    (kind,) = taxonomy.ids
    types = [frozenset([kind] if n % 3 else []) for n in range(40)]
    items = [
        GoldItem(id=str(n), text=f"第{n}句", types=one, document=f"q{n // 4}")
        for n, one in enumerate(types)
    ]
    gold = GoldSet("invented", taxonomy, tuple(items), "ours", 40, cluster_column="question_id")
    label = DistortionLabel(id=kind, labeller="x")
    given = [(label,) if n // 4 % 4 else () for n in range(40)]
    apart = GoldSet("invented", taxonomy, tuple(items), "ours", 40)
    clustered, plain = (evaluate(one, {"x": given}) for one in (gold, apart))
    assert (clustered.n_clusters, clustered.cluster_column) == (10, "question_id")
    assert plain.n_clusters is None
    wide, narrow = (one.systems["x"].accuracy_interval for one in (clustered, plain))
    assert wide.value == narrow.value
    assert wide.high - wide.low > narrow.high - narrow.low
