"""Draws, assignments and orders: seeded, balanced, and spread out."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbtqa.ratings.design import assign_raters, draw_stratified, order_items, rarest_label


def test_a_stratified_draw_keeps_the_shares_and_the_seed() -> None:
    strata = {f"q{i}": "rare" if i % 10 == 0 else "common" for i in range(200)}
    drawn = draw_stratified(strata, 50, seed=1)
    assert Counter(strata[name] for name in drawn) == {"rare": 5, "common": 45}
    assert drawn == draw_stratified(strata, 50, seed=1)
    assert drawn != draw_stratified(strata, 50, seed=2)
    assert len(set(drawn)) == 50


def test_asking_for_more_than_there_is_fails() -> None:
    with pytest.raises(ValueError, match="5 asked for, 1 there"):
        draw_stratified({"a": "x"}, 5, 0)


def test_a_question_with_several_labels_stands_for_the_rarest() -> None:
    labels = {"a": ["common", "rare"], "b": ["common"], "c": ["common"], "d": []}
    assert rarest_label(labels) == {"a": "rare", "b": "common", "c": "common", "d": "none"}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(2, 8), st.integers(0, 5), st.data())
def test_loads_differ_by_at_most_one_whatever_the_numbers(
    n: int, n_raters: int, seed: int, data: st.DataObject
) -> None:
    per_block = data.draw(st.integers(1, n_raters))
    raters = [f"R{i}" for i in range(n_raters)]
    teams = assign_raters([f"b{i}" for i in range(n)], raters, per_block, seed)
    assert all(len(set(team)) == per_block for team in teams.values())
    loads = Counter(rater for team in teams.values() for rater in team)
    counts = [loads[rater] for rater in raters]
    assert max(counts) - min(counts) <= 1


def test_pairs_of_raters_share_nearly_equally_many_blocks() -> None:
    raters = [f"R{i}" for i in range(6)]
    teams = assign_raters([f"b{i}" for i in range(100)], raters, 3, seed=4)
    shared = Counter(pair for team in teams.values() for pair in combinations(sorted(team), 2))
    counts = [shared[pair] for pair in combinations(raters, 2)]
    assert sum(counts) == 300
    assert max(counts) - min(counts) <= 2


ITEMS = [(f"i{q}{arm}", f"q{q}") for q in range(30) for arm in "AB"]


def test_each_rater_has_an_own_order_in_which_no_question_follows_itself() -> None:
    orders = [order_items(ITEMS, 0, f"7:R{rater}") for rater in range(20)]
    question = dict(ITEMS)
    assert len({tuple(order) for order in orders}) == 20
    for order in orders:
        assert sorted(order) == sorted(name for name, _ in ITEMS)
        assert all(question[a] != question[b] for a, b in pairwise(order))
    assert orders[0] == order_items(ITEMS, 0, "7:R0")


def test_repeats_come_late_and_once() -> None:
    for rater in range(20):
        order = order_items(ITEMS, 6, f"1:R{rater}")
        counts = Counter(order)
        assert sorted(counts.values()) == [1] * 54 + [2] * 6
        for name in (name for name, count in counts.items() if count == 2):
            first = order.index(name)
            assert order.index(name, first + 1) - first >= len(ITEMS) / 3 - 1


def test_one_question_with_two_answers_is_still_ordered() -> None:
    assert sorted(order_items([("a", "q"), ("b", "q")], 1, "x")) == ["a", "b"]
