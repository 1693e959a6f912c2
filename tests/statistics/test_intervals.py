"""Intervals against closed forms; how often they hold the truth is in `tests/coverage`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cbtqa.statistics.intervals import (
    effective_number,
    jackknife_interval,
    mean_interval,
    ratio_interval,
    t_quantile,
)


@pytest.mark.parametrize("df", [0.4, 1, 1.7, 2, 5, 30.5, 500, 22_000, math.inf])
def test_t_quantiles_are_those_of_scipy(df: float) -> None:
    expected = stats.norm.isf(0.025) if math.isinf(df) else stats.t.isf(0.025, df)
    assert t_quantile(df) == pytest.approx(expected, rel=1e-9)


def test_without_a_scale_and_skewness_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.array([1.0, 2, 3, 4, 5, 6])
    found = jackknife_interval(3.5, (values.sum() - values) / 5, np.ones(6))
    expected = stats.t.interval(0.95, 5, 3.5, stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert mean_interval(values)[:2] == pytest.approx(expected)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.0, math.inf)])
def test_ends_lie_on_the_scale_and_the_longer_side_is_that_of_the_tail(
    scale: tuple[float, float],
) -> None:
    values = np.array([0.02, 0.03, 0.03, 0.05, 0.6])
    found = jackknife_interval(values.mean(), (values.sum() - values) / 4, np.ones(5), scale=scale)
    assert found.low is not None and found.high is not None
    assert scale[0] < found.low < values.mean() < found.high < scale[1]
    assert found.high - values.mean() > 2 * (values.mean() - found.low)


def test_skewness_moves_an_end_outwards_and_by_a_quarter_at_most() -> None:
    scores = np.array([0.12, 0.14, 0.16, 0.17, 0.18, 0.19, 0.2, 0.21, 0.22, 0.6])
    left_out = (scores.sum() - scores) / 9
    found = jackknife_interval(scores.mean(), left_out, np.ones(10))
    plain = stats.t.interval(0.95, 9, scores.mean(), stats.sem(scores))
    assert found.low == pytest.approx(plain[0])
    reach = plain[1] - scores.mean()
    assert found.high == pytest.approx(scores.mean() + 1.25 * reach)
    of_share = jackknife_interval(scores.mean(), left_out, np.ones(10), scale=(0, 1))
    assert of_share.high is not None and of_share.high < 0.45  # of which one answer reaches .6


def test_a_score_at_the_end_of_its_scale_but_for_one_question_has_no_jackknife_interval() -> None:
    scores = np.array([1.0, 1, 1, 1, 0.6])
    found = jackknife_interval(0.92, (scores.sum() - scores) / 4, np.ones(5), scale=(0, 1))
    assert found.reason == "without one question it is at an end of its scale"


def test_few_or_equal_clusters_have_no_jackknife_interval_but_a_reason() -> None:
    two = jackknife_interval(0.5, np.array([0.4, 0.6]), np.ones(2))
    assert two == (None, None, "rests on 2 questions, fewer than 3", 0)
    alike = jackknife_interval(0.5, np.full(9, 0.5), np.ones(9))
    assert alike.reason == "all 9 questions are alike: their spread is not known"
    gone = jackknife_interval(0.5, np.array([0.5, 0.6, np.nan]), np.ones(3))
    assert gone.reason == "undefined without one of its questions"


def test_clusters_of_unequal_size_are_as_few_as_the_large_ones() -> None:
    assert effective_number(np.full(12, 3.0)) == pytest.approx(12)
    sizes = np.array([30.0, *[3.0] * 9])
    assert effective_number(sizes) == pytest.approx(57**2 / (900 + 81))
    sums = sizes * np.linspace(0.2, 0.4, 10)
    wide, narrow = (ratio_interval(sums * more, sizes * more) for more in (np.ones(10), 3 / sizes))
    assert wide.high is not None and wide.low is not None
    assert narrow.high is not None and narrow.low is not None
    assert wide.high - wide.low > narrow.high - narrow.low
