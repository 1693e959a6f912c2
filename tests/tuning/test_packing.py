"""Dividing items into steps, micro-batches and processes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cbtqa.tuning.data.packing import StepPlan, best_fit, divide, group_by_length

lengths_of = st.lists(st.integers(1, 900), min_size=1, max_size=60)


@given(lengths_of, st.integers(50, 1200))
@settings(max_examples=60, deadline=None)
def test_best_fit_places_every_item_once_and_keeps_the_budget(lengths, budget) -> None:
    groups = best_fit(lengths, budget)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    for group in groups:
        assert sum(lengths[place] for place in group) <= budget or len(group) == 1


@given(lengths_of, st.integers(50, 1200), st.integers(1, 4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_process_gets_as_many_micro_batches_and_no_item_is_lost(
    lengths, budget, n_processes, is_packed
) -> None:
    divided = divide(lengths, budget, n_processes, is_packed=is_packed)
    assert len(divided) == n_processes
    assert len({len(of_process) for of_process in divided}) == 1
    places = [place for of_process in divided for group in of_process for place in group]
    assert sorted(places) == list(range(len(lengths)))


def test_similar_lengths_are_padded_together() -> None:
    groups = group_by_length([10, 100, 11, 99, 98, 12], 300)
    assert sorted(map(sorted, groups)) == [[0, 2, 5], [1, 3, 4]]


def test_packing_fills_what_concatenation_in_order_would_waste() -> None:
    lengths = [600, 420, 600, 420, 600, 420]
    assert [sum(lengths[place] for place in group) for group in best_fit(lengths, 1024)] == [
        1020
    ] * 3


def test_the_same_seed_gives_the_same_steps_whatever_the_budget_and_the_processes() -> None:
    lengths = [(37 * k) % 300 + 20 for k in range(50)]
    plans = [
        StepPlan(lengths, batch_size=8, epochs=2, seed=3, budget=budget, n_processes=n)
        for budget, n in ((8192, 1), (400, 1), (500, 2), (8192, 4))
    ]
    steps = [[plan.step(k).members for k in range(len(plan))] for plan in plans]
    assert all(of_plan == steps[0] for of_plan in steps)
    for plan in plans:
        for k in range(len(plan)):
            step = plan.step(k)
            inside = [m for of_rank in step.micro_batches for group in of_rank for m in group]
            assert sorted(inside) == sorted(step.members)


def test_an_epoch_holds_every_item_once_and_epochs_differ() -> None:
    plan = StepPlan([10] * 23, batch_size=5, epochs=2, seed=1)
    assert (plan.steps_per_epoch, len(plan)) == (5, 10)
    epochs = [[m for k in range(5) for m in plan.step(5 * e + k).members] for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(23))] * 2
    assert epochs[0] != epochs[1]


def test_epochs_may_end_inside_one_and_max_steps_wins() -> None:
    assert len(StepPlan([5] * 20, batch_size=4, epochs=1.4)) == 7
    assert len(StepPlan([5] * 20, batch_size=4, epochs=3, max_steps=2)) == 2
    assert len(StepPlan([5] * 20, batch_size=4, epochs=3, max_steps=40)) == 40
