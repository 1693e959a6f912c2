"""Errors clustered by patient: against tests of patients' own figures, and where patients are few."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from cbtqa.statistics.clustered import ClusterRobust, clustered_correlation
from cbtqa.statistics.mixed_model import fit_mixed

Floats = np.ndarray[Any, Any]


def study(seed: int, m: int, k: int = 2) -> tuple[Floats, Floats, list[str], Floats]:
    """Rows of three arms with x, y and patients, and the cell means."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(m, 1, 1)) + rng.normal(size=(m, 3, 1)) + rng.normal(size=(m, 3, k))
    arm = np.broadcast_to(np.arange(3)[:, None], table.shape).ravel()
    x = np.column_stack([np.ones(len(arm)), arm == 1, arm == 2]).astype(float)
    return table.ravel(), x, [f"p{i}" for i in range(m) for _ in range(3 * k)], table.mean(axis=2)


def robust(y: Floats, x: Floats, patients: list[str]) -> ClusterRobust:
    return ClusterRobust(x, y, patients, fit_mixed(y, x, ("i", "b", "c"), patients))


def test_balanced_effects_are_those_of_a_paired_t_over_patients() -> None:
    y, x, patients, cells = study(1, 6)
    found = robust(y, x, patients).effect(np.array([0, 1.0, 0]), "b")
    theirs = stats.ttest_rel(cells[:, 1], cells[:, 0])
    assert (found.t, found.p) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert found.df == pytest.approx(5)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()))
    mean = robust(y, x, patients).effect(np.array([1.0, 0, 0]), "base")
    assert mean.se == pytest.approx(stats.sem(cells[:, 0]))


def test_balanced_effects_together_are_tested_by_hotellings_t2() -> None:
    y, x, patients, cells = study(2, 7)
    found = robust(y, x, patients).test([np.array([0, 1.0, 0]), np.array([0, 0, 1.0])], "arms")
    gaps = cells[:, 1:] - cells[:, :1]
    square = 7 * gaps.mean(0) @ np.linalg.solve(np.cov(gaps.T), gaps.mean(0))
    expected = (7 - 2) / (2 * 6) * square
    assert found.f == pytest.approx(expected)
    assert found.df_denominator == pytest.approx(5)
    assert found.p == pytest.approx(stats.f.sf(expected, 2, 5))


def test_repeating_every_row_changes_nothing() -> None:
    y, x, patients, _ = study(3, 6)
    line = np.array([0, 1.0, -1])
    once = robust(y, x, patients).effect(line, "gap")
    twice = robust(np.tile(y, 2), np.tile(x, (2, 1)), patients * 2).effect(line, "gap")
    assert once.p == pytest.approx(twice.p, rel=1e-6)


def test_too_few_patients_give_the_reason_and_no_p() -> None:
    y, x, patients, _ = study(4, 2)
    found = robust(y, x, patients)
    assert found.effect(np.array([0, 1.0, 0]), "b").reason == "2 patients, fewer than 3"
    assert found.test([np.array([0, 1.0, 0])], "arms").p is None
    y, x, patients, _ = study(5, 3)
    assert "too few for 3 effects" in str(
        robust(y, x, patients).test(list(np.eye(3)), "all").reason
    )


def test_a_correlation_of_one_row_a_patient_is_fishers() -> None:
    rng = np.random.default_rng(6)
    a = rng.normal(size=25)
    b = a + rng.normal(size=25)
    found = clustered_correlation(a, b, list(range(25)))
    theirs = stats.pearsonr(a, b)
    interval = theirs.confidence_interval()
    assert found is not None
    assert found.r == pytest.approx(theirs.statistic)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_rows_of_a_patient_count_as_one_and_arms_far_apart_as_nothing() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(2, 12, 1)) + 0.1 * rng.normal(size=(2, 12, 20))
    patients = [f"p{i}" for i in range(12) for _ in range(20)]
    found = clustered_correlation(a.ravel(), b.ravel(), patients)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low > 0.7  # twelve patients, not 240 rows
    arms = ["x", "y"] * 120
    gap = np.tile([0.0, 50.0], 120)
    apart = clustered_correlation(a.ravel() + gap, b.ravel() + gap, patients)
    within = clustered_correlation(a.ravel() + gap, b.ravel() + gap, patients, arms)
    assert apart is not None
    assert within is not None
    assert apart.r > 0.99
    assert within.r == pytest.approx(found.r, abs=0.02)


def test_a_correlation_of_few_patients_has_no_interval_and_of_no_spread_no_value() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(2, 16))
    found = clustered_correlation(a, b, ["p", "q", "r", "s"] * 4)
    assert found is not None
    assert found.low is None
    assert found.reason == "4 patients, fewer than 5"
    assert clustered_correlation(a, np.ones(16), list(range(16))) is None
    assert clustered_correlation(a[:3], b[:3], [1, 2, 3]) is None
