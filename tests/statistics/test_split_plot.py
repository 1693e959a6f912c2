"""Arms compared on patients: against sums of squares written out by hand, and where data are poor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cbtqa.statistics.mixed_model import holm_sidak
from cbtqa.statistics.split_plot import ArmComparison, arm_by_group, compare_arms

ARMS = ("base", "tuned", "large", "larger")
Floats = np.ndarray[Any, Any]


def drawn(seed: int, m: int = 6, k: int = 3, by_arm: float = 1.0) -> Floats:
    """Totals of shape (patients, arms, sessions)."""
    rng = np.random.default_rng(seed)
    level, answer = rng.normal(0, 1, (m, 1, 1)), rng.normal(0, by_arm, (m, 4, 1))
    return np.asarray(
        30 + level + answer + np.arange(4)[:, None] * 0.8 + rng.normal(size=(m, 4, k))
    )


def compared(table: Floats, kept: Floats | None = None) -> ArmComparison:
    m, a = table.shape[:2]
    kept = np.ones(table.shape, dtype=bool) if kept is None else kept
    patients = np.broadcast_to(np.arange(m)[:, None, None], table.shape)[kept]
    arms = np.broadcast_to(np.arange(a)[:, None], table.shape)[kept]
    return compare_arms(table[kept], [ARMS[j] for j in arms], [f"p{i}" for i in patients], ARMS[:a])


def squares(table: Floats) -> tuple[float, float, float, float]:
    """Mean squares of arms, patients, patient by arm and sessions of a balanced split plot."""
    m, a, k = table.shape
    cells, grand = table.mean(axis=2), table.mean()
    of_arm, of_patient = cells.mean(axis=0), cells.mean(axis=1)
    arms = m * k * ((of_arm - grand) ** 2).sum() / (a - 1)
    patients = a * k * ((of_patient - grand) ** 2).sum() / (m - 1)
    rest = cells - of_arm - of_patient[:, None] + grand
    both = k * (rest**2).sum() / ((m - 1) * (a - 1))
    within = ((table - cells[:, :, None]) ** 2).sum() / (m * a * (k - 1)) if k > 1 else math.nan
    return float(arms), float(patients), float(both), float(within)


def test_balanced_arms_are_tested_by_the_f_of_a_split_plot() -> None:
    table = drawn(1, m=4)  # whose arms spread so alike that degrees of freedom are not cut
    arms, patients, both, within = squares(table)
    found = compared(table)
    assert found.test.f == pytest.approx(arms / both, rel=1e-12)
    assert (found.test.df_numerator, found.test.df_denominator) == (3, 9)
    assert found.test.p == pytest.approx(stats.f.sf(arms / both, 3, 9), rel=1e-10)
    assert found.interaction.f == pytest.approx(both / within, rel=1e-12)
    assert (found.interaction.df_numerator, found.interaction.df_denominator) == (9, 32)
    parts = found.components
    assert parts is not None
    assert parts.residual == pytest.approx(within)
    assert parts.patient_by_arm == pytest.approx(max((both - within) / 3, 0))
    assert parts.patient == pytest.approx(max((patients - both) / 12, 0))


def test_pairs_of_arms_use_the_patients_differences_and_one_degree_of_freedom_from_all_arms() -> (
    None
):
    for m in (3, 12):
        table = drawn(2, m)
        both, cells = squares(table)[2], table.mean(axis=2)
        gaps = cells[:, 2] - cells[:, 0]
        found = compared(table)
        one = next(c for c in found.contrasts if (c.first, c.second) == ("base", "large"))
        assert one.difference == pytest.approx(float(gaps.mean()))
        assert one.p_own_error == pytest.approx(float(stats.ttest_rel(cells[:, 2], cells[:, 0])[1]))
        error = ((m - 1) * gaps.var(ddof=1) + 2 * both / 3) / m
        assert (one.se, one.df) == (pytest.approx(math.sqrt(error / m)), m)
        by_common = [
            2 * stats.t.sf(abs(c.difference) / math.sqrt(2 * both / 3 / m), 3 * (m - 1))
            for c in found.contrasts
        ]
        assert [c.p_adjusted_common_error for c in found.contrasts] == pytest.approx(
            holm_sidak(by_common)
        )


def test_a_pair_of_two_arms_is_the_paired_t() -> None:
    table = drawn(2, 7)[:, :2]
    cells = table.mean(axis=2)
    theirs = stats.ttest_rel(cells[:, 1], cells[:, 0])
    (one,) = compared(table).contrasts
    assert (one.df, one.p) == (6, pytest.approx(float(theirs.pvalue)))
    low, high = theirs.confidence_interval()
    assert (one.low, one.high) == pytest.approx((low, high))


def test_degrees_of_freedom_are_cut_as_huynh_and_feldt_do() -> None:
    table = drawn(3, 12)
    table[:, 3] = 30 + (table[:, 3] - 30) * 4
    cells = table.mean(axis=2)
    contrasts = np.linalg.qr(np.column_stack([np.ones(4), np.eye(4)[:, 1:]]))[0][:, 1:]
    covariance = np.cov((cells @ contrasts).T)
    box = np.trace(covariance) ** 2 / (3 * (covariance**2).sum())
    cut = (12 * 3 * box - 2) / (3 * (11 - 3 * box))
    assert cut < 0.8
    found = compared(table).test
    assert found.df_numerator == pytest.approx(3 * cut)
    assert found.df_denominator == pytest.approx(33 * cut)


def test_the_interval_of_the_icc_is_the_exact_f_with_one_session_per_cell() -> None:
    table = drawn(4, 20, 1, by_arm=0)
    _, patients, both, _ = squares(table)
    parts = compared(table).components
    assert parts is not None
    assert parts.patient_by_arm is None
    ratio = patients / both
    tails = [stats.f.isf(0.025, 19, 57), stats.f.isf(0.975, 19, 57)]
    low, high = ((ratio / f - 1) / (ratio / f + 3) for f in tails)
    assert parts.icc == pytest.approx((ratio - 1) / (ratio + 3))
    assert parts.icc_low == pytest.approx(low, abs=0.02)  # of draws, not of the F itself
    assert parts.icc_high == pytest.approx(high, abs=0.02)


def test_missing_sessions_leave_cell_means_and_a_missing_cell_leaves_least_squares() -> None:
    table = drawn(5, 6)
    kept = np.ones(table.shape, dtype=bool)
    kept[0, 1, 0] = kept[3, 2, 1:] = False
    means = np.array(
        [[table[i, j][kept[i, j]].mean() for j in range(4)] for i in range(6)], dtype=float
    )
    alone = compared(means[:, :, None])
    found = compared(table, kept)
    assert found.test.f == pytest.approx(alone.test.f)
    kept[5, 3] = False
    found = compared(table, kept)
    x = [[1.0, *(i == p for p in range(1, 6)), *(j == a for a in range(1, 4))]
         for i in range(6) for j in range(4) if (i, j) != (5, 3)]  # fmt: skip
    y = [means[i, j] for i in range(6) for j in range(4) if (i, j) != (5, 3)]
    whole, *_ = np.linalg.lstsq(np.array(x), np.array(y), rcond=None)
    rest = float(((np.array(y) - np.array(x) @ whole) ** 2).sum())
    part, *_ = np.linalg.lstsq(np.array(x)[:, :6], np.array(y), rcond=None)
    more = float(((np.array(y) - np.array(x)[:, :6] @ part) ** 2).sum())
    assert found.test.f == pytest.approx(((more - rest) / 3) / (rest / 14))
    # a pair of arms rests on the five patients that have both
    assert found.contrasts[2].difference == pytest.approx((means[:5, 3] - means[:5, 0]).mean())
    assert found.contrasts[2].df == 5


def test_repeating_every_session_changes_no_test() -> None:
    table = drawn(6, 5)
    once, twice = compared(table), compared(np.concatenate([table, table], axis=2))
    assert once.test.p == pytest.approx(twice.test.p)
    assert [c.p for c in once.contrasts] == pytest.approx([c.p for c in twice.contrasts])


def test_effect_sizes_are_less_what_chance_brings_in() -> None:
    ours, theirs = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        table = rng.normal(size=(20, 4, 1))
        sizes = compared(table).sizes
        assert sizes is not None
        ours.append(sizes.f)
        chi2 = 3 * (compared(table).test.f or 0.0)
        theirs.append(np.sqrt(chi2 / (80 - 4)))  # as published: of Wald's test of four arms
    assert np.mean(theirs) > 0.17
    assert np.mean(ours) < 0.09
    assert np.median(ours) < 0.05


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[:2], "2 patients in several arms, fewer than 3"),
        (lambda t: t[:, :1], "one arm"),
        (lambda t: np.zeros_like(t), "nothing varies"),
        (lambda t: t * 0 + np.arange(4)[:, None] + np.arange(6)[:, None, None], "nothing varies"),
    ],
)
def test_where_no_test_holds_there_is_none_and_the_reason(change: Any, words: str) -> None:
    found = compared(np.asarray(change(drawn(7))))
    assert found.test.p is None
    assert words in str(found.reason)
    assert found.contrasts == ()


def test_arms_that_share_no_patient_are_not_compared() -> None:
    table = drawn(8)
    kept = np.ones(table.shape, dtype=bool)
    kept[:3, 2:] = kept[3:, :2] = False
    assert "share no patient" in str(compared(table, kept).reason)


@pytest.mark.parametrize("sizes", [(6, 6), (5, 7, 9)])
def test_arms_by_groups_of_patients_equal_a_mixed_analysis_of_variance(
    sizes: tuple[int, ...],
) -> None:
    """Of least squares written out: arms by groups against arms, patients in both."""
    rng = np.random.default_rng(8)
    groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    table = rng.normal(size=(len(groups), 4)) + rng.normal(size=(len(groups), 1))
    table[:5, 1] += 1.5
    patients = np.repeat(np.eye(len(groups)), 4, axis=0)
    arms = np.tile(np.eye(4)[:, 1:], (len(groups), 1))
    of = np.repeat([[g == f"g{i}" for i in range(1, len(sizes))] for g in groups], 4, axis=0)
    both = np.column_stack([a * b for a in arms.T for b in of.T.astype(float)])

    def rest(*parts: Floats) -> float:
        x = np.column_stack([patients, *parts])
        y = table.ravel()
        return float(((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum())

    error, df = rest(arms, both), ((len(sizes) - 1) * 3, (len(groups) - len(sizes)) * 3)
    expected = (rest(arms) - error) / df[0] / (error / df[1])
    found = arm_by_group(table, groups, "arms by groups")
    assert found.f == pytest.approx(expected)
    assert found.df_numerator is not None and found.df_denominator is not None
    assert 0.5 * df[0] < found.df_numerator <= df[0]
    assert found.df_denominator / found.df_numerator == pytest.approx(df[1] / df[0])


def test_arms_by_groups_keep_their_level_where_arms_spread_unlike() -> None:
    groups = ["a"] * 5 + ["b"] * 7
    rejected = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        table = rng.normal(size=(12, 1)) + rng.normal(size=(12, 4)) * np.array([1, 1, 1, 3])
        found = arm_by_group(table, groups, "arms by groups")
        assert found.p is not None
        rejected += found.p < 0.05
    assert rejected / 400 < 0.08
    assert arm_by_group(table, ["a"] * 12, "x").reason == "one group"
    assert "nothing varies" in str(arm_by_group(np.ones((12, 4)), groups, "x").reason)
