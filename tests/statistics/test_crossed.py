"""Crossed random effects: equal to the analysis of variance where it is exact, honest elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from cbtqa.statistics.crossed import CrossedMeans, crossed_mean, crossed_means


def made(
    n: int, k: int, systems: str = "AB", seed: int = 1
) -> tuple[list[float], list[str], list[int], list[int]]:
    rng = np.random.default_rng(seed)
    place, item, rater = np.indices((len(systems), n, k))
    values = rng.normal(0, 0.5, (len(systems), n, k)) + rng.normal(0, 0.3, (1, n, 1))
    values += rng.normal(0, 0.4, (1, 1, k)) + rng.normal(0, 0.2, (len(systems), 1, k))
    names = [systems[one] for one in place.ravel()]
    return values.ravel().tolist(), names, item.ravel().tolist(), rater.ravel().tolist()


def rows_of(
    rows: tuple[list[float], list[str], list[int], list[int]], kept: list[bool]
) -> CrossedMeans:
    values, names, items, raters = (
        [one for one, is_kept in zip(column, kept, strict=True) if is_kept] for column in rows
    )
    return crossed_means(values, names, items, raters)


def test_a_complete_table_has_the_standard_errors_of_the_two_way_analysis_of_variance() -> None:
    n, k = 6, 4
    values, names, items, raters = made(n, k)
    both = np.array(values).reshape(2, n, k)
    found = crossed_means(values, names, items, raters)
    tables = [(found.mean("A"), both[0]), (found.difference("A", "B"), both[1] - both[0])]
    for estimate, table in tables:
        rows, columns = table.mean(axis=1), table.mean(axis=0)
        rest = table - rows[:, None] - columns + table.mean()
        by_item = k * rows.var(ddof=1)
        by_rater = n * columns.var(ddof=1)
        noise = (rest**2).sum() / ((n - 1) * (k - 1))
        assert estimate.value == pytest.approx(table.mean())
        # a negative variance of items or raters is 0
        whole = noise + max(by_item - noise, 0) + max(by_rater - noise, 0)
        assert estimate.se == pytest.approx((whole / (n * k)) ** 0.5)
        assert estimate.df is not None and k - 1 <= estimate.df <= n + k - 2


def test_a_difference_does_not_depend_on_how_strict_raters_or_how_good_questions_are() -> None:
    values, names, items, raters = made(8, 3)
    shifted = [v - 5 * rater + item for v, rater, item in zip(values, raters, items, strict=True)]
    plain, moved = (
        crossed_means(one, names, items, raters).difference("A", "B") for one in (values, shifted)
    )
    assert moved == pytest.approx(plain)


def test_a_strict_rater_of_one_system_alone_hardly_moves_the_difference() -> None:
    rows = made(10, 4)
    values = [v - 2 * (rater == 3) for v, rater in zip(rows[0], rows[3], strict=True)]
    rows = (values, *rows[1:])
    without = rows_of(rows, [rater < 3 for rater in rows[3]])
    kept = [rater < 3 or name == "A" for name, rater in zip(rows[1], rows[3], strict=True)]
    strict = rows_of(rows, kept)
    plain = {name: without.mean(name).value for name in "AB"}
    pulled = {name: strict.mean(name).value for name in "AB"}
    naive = np.mean(
        [v for v, name, is_kept in zip(*rows[:2], kept, strict=True) if is_kept and name == "A"]
    )
    assert naive < plain["A"] - 0.4
    difference = strict.difference("A", "B").value
    assert difference == pytest.approx(pulled["B"] - pulled["A"])
    assert abs(difference - without.difference("A", "B").value) < 0.05


def test_with_one_rater_items_alone_are_random() -> None:
    values = [0.2, 0.5, 0.1, 0.9, 0.4]
    found = crossed_mean(values, range(5), ["R1"] * 5)
    assert (found.are_raters_random, found.n_raters) == (False, 1)
    assert found.df is not None and found.df < 4 + 1e-9
    assert found.se == pytest.approx(np.std(values, ddof=1) / 5**0.5)


def test_two_raters_give_a_wide_interval() -> None:
    values, names, items, raters = made(30, 2)
    found = crossed_means(values, names, items, raters).mean("A")
    assert found.df is not None and found.df < 3
    assert found.low is not None and found.high is not None and found.se is not None
    assert found.high - found.low > 6 * found.se


def test_where_nothing_can_be_told_the_reason_stands_instead() -> None:
    one_item = crossed_mean([1, 2, 1], ["q1"] * 3, ["R1", "R2", "R3"], scale=(0, 2))
    assert one_item.low is None and (one_item.reason or "").startswith("rests on one item")
    alike = crossed_means([1.0] * 8, list("AB") * 4, [0, 0, 1, 1] * 2, [0] * 4 + [1] * 4)
    assert alike.difference("A", "B").reason == "all are alike: their spread is not known"
    assert alike.omnibus().p is None
    nested = crossed_means(
        [0, 1, 1, 0, 2, 1, 1, 2], list("AAAABBBB"), [0, 0, 1, 1] * 2, [0, 1, 0, 1, 2, 3, 2, 3]
    )
    assert "cannot be told apart" in (nested.difference("A", "B").reason or "")


def test_ratings_all_at_the_end_of_the_scale_get_a_one_sided_interval_not_a_point() -> None:
    items, raters = np.indices((10, 3)).reshape(2, -1).tolist()
    found = crossed_mean([2.0] * 30, items, raters, scale=(0, 2))
    assert found.high == 2.0 and found.low is not None and found.low < 1.8
    assert found.p is None
