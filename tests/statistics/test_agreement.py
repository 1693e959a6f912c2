"""Agreement coefficients and tests of arms against independent programs."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbtqa.errors import DataError
from cbtqa.statistics.agreement import (
    agreement_share,
    alpha_within,
    as_table,
    cohen_kappa,
    krippendorff_alpha,
)
from cbtqa.statistics.intraclass import intraclass_correlation
from cbtqa.statistics.resampling import holm
from cbtqa.statistics.tests_of_arms import (
    friedman,
    kendall_tau,
    kendall_w,
    spearman_rho,
    wilcoxon,
)

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "agreement.json").read_text(encoding="utf-8")
)
FULL = GOLDEN["inputs"]["R"]
GAPS = GOLDEN["inputs"]["G"]
ARMS = GOLDEN["inputs"]["S"]
PAIRS = list(itertools.combinations(ARMS, 2))
LEVELS = ("nominal", "ordinal", "interval", "ratio")
NEAR = 1e-6


def near(expected: float) -> Any:
    return pytest.approx(expected, abs=NEAR)


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_equals_the_independent_program_with_and_without_gaps(level: Any) -> None:
    assert krippendorff_alpha(FULL, level).value == near(GOLDEN["krippendorff_R"][level])
    assert krippendorff_alpha(GAPS, level).value == near(GOLDEN["krippendorff_G"][level])


def test_the_interval_of_alpha_holds_the_resampled_one_which_took_items_alone_for_random() -> None:
    result = krippendorff_alpha(FULL, "ordinal")
    low, high = GOLDEN["krippendorff_R_ordinal_bootstrap95"]
    assert result.low is not None and result.high is not None
    assert result.low < low and high < result.high < 1
    assert result.random == ("items", "raters")


def test_raters_who_give_one_value_to_everything_do_not_agree_with_themselves() -> None:
    rows = [[0.0] * 6, [1.0] * 6, [2.0] * 6]
    found = alpha_within([rows, rows])
    assert found.value is None and "one value to everything" in (found.reason or "")


def test_agreement_within_a_single_rater_is_alpha_of_the_repeats() -> None:
    first, second = FULL[0], FULL[1]
    found, alpha = alpha_within([[first], [second]]), krippendorff_alpha([first, second])
    assert found.value == pytest.approx(alpha.value)
    assert [found.low, found.high] == pytest.approx([alpha.low, alpha.high])


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_of_random_tables_equals_krippendorff(level: Any) -> None:
    other = pytest.importorskip("krippendorff")
    generator = np.random.default_rng(7)
    for n_raters, n_items, top in [(2, 40, 1), (5, 100, 2), (4, 30, 6), (3, 300, 25)]:
        quality = generator.normal(size=n_items)
        noisy = quality + generator.normal(size=(n_raters, n_items))
        table = np.clip(np.round(noisy * top / 3 + top / 2), 0, top)
        table[generator.random(table.shape) < 0.2] = np.nan
        expected = other.alpha(reliability_data=table, level_of_measurement=level)
        assert krippendorff_alpha(table, level).value == pytest.approx(expected, abs=1e-9)


def test_alpha_of_five_raters_and_five_thousand_items_needs_no_square_of_the_items() -> None:
    generator = np.random.default_rng(1)
    table = generator.integers(0, 3, size=(5, 5000)).astype(float)
    result = krippendorff_alpha(table, "ordinal", n_resamples=50)
    assert result.n_ratings == 25_000
    assert result.low is not None and result.low < 0 < (result.high or 0)


def test_ratings_all_alike_are_undefined_with_a_reason_and_agree_exactly() -> None:
    same = [[2, 2, 2], [2, 2, 2]]
    for coefficient in (
        krippendorff_alpha(same, "ordinal"),
        cohen_kappa(same[0], same[1], [0, 1, 2]),
        intraclass_correlation(same),
        kendall_w(same),
        spearman_rho(same[0], same[1]),
        kendall_tau(same[0], same[1]),
    ):
        assert coefficient.value is None
        assert "no variation" in (coefficient.reason or "")
    assert agreement_share(same).value == 1.0


def test_nothing_rated_twice_is_undefined() -> None:
    apart = [[1, None], [None, 2]]
    for coefficient in (
        krippendorff_alpha(apart),
        cohen_kappa(apart[0], apart[1], [1, 2]),
        agreement_share(apart),
    ):
        assert coefficient.value is None
        assert coefficient.reason == "no item was rated by two raters"


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_kappa_equals_the_independent_program(weights: Any) -> None:
    key = f"cohen_{None if weights == 'none' else weights}_pairs"
    ours = [
        cohen_kappa(a, b, [1, 2, 3, 4, 5], weights).value
        for a, b in itertools.combinations(FULL, 2)
    ]
    assert ours == near(GOLDEN[key])


def test_weighted_kappa_over_spaced_labels_equals_sklearn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    a, b = [1, 2, 5, 5, 2, 1, 1], [1, 5, 5, 2, 2, 1, 2]
    ours = cohen_kappa(a, b, [1, 2, 3, 4, 5], "quadratic").value
    expected = metrics.cohen_kappa_score(a, b, weights="quadratic", labels=[1, 2, 3, 4, 5])
    assert ours == pytest.approx(expected, abs=1e-12)


def test_a_rating_outside_the_labels_is_an_error_not_a_silent_drop() -> None:
    with pytest.raises(ValueError, match="rating 3 is not among the labels"):
        cohen_kappa([1, 3], [1, 2], [1, 2])


@pytest.mark.parametrize("form", ["1", "A", "C"])
@pytest.mark.parametrize("of_mean", [False, True])
def test_icc_equals_the_independent_program(form: Any, of_mean: bool) -> None:
    result = intraclass_correlation(FULL, form, of_mean=of_mean)
    assert result.value == near(GOLDEN["icc_pingouin"][f"ICC({form},{'k' if of_mean else '1'})"])


def test_icc_intervals_equal_pingouin() -> None:
    pandas = pytest.importorskip("pandas")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pingouin = pytest.importorskip("pingouin")
        # many values: on the short scale of FULL the intervals are the jackknife's
        full = np.array(FULL) + np.random.default_rng(5).normal(0, 0.2, (3, 10))
        rows = [(r, i, full[r][i]) for r in range(3) for i in range(10)]
        frame = pandas.DataFrame(rows, columns=["rater", "item", "score"])
        table = pingouin.intraclass_corr(frame, targets="item", raters="rater", ratings="score")
    column = next(name for name in table.columns if name.startswith("CI95"))
    for kind, interval in zip(table["Type"], table[column], strict=True):
        form, size = kind.removeprefix("ICC(").removesuffix(")").split(",")
        ours = intraclass_correlation(full, form, of_mean=size == "k")
        assert [ours.low, ours.high] == pytest.approx(list(interval), abs=0.00501)  # rounded there


def test_icc_of_a_table_with_gaps_says_how_many_items_lack_a_rating() -> None:
    assert "4 of 10 items lack a rating" in (intraclass_correlation(GAPS).reason or "")


def test_rank_agreement_equals_the_independent_program() -> None:
    assert kendall_w(FULL).value == near(GOLDEN["kendall_w_R"])
    assert spearman_rho(FULL[0], FULL[1]).value == near(GOLDEN["spearman_01"])
    assert kendall_tau(FULL[0], FULL[1]).value == near(GOLDEN["kendall_tau_01"])


def test_agreement_shares_count_rater_pairs_over_all_items() -> None:
    table = [[0, 1, 2], [0, 2, 0], [None, 1, 2]]
    assert agreement_share(table).value == pytest.approx(3 / 7)
    assert agreement_share(table, 1).value == pytest.approx(5 / 7)


def test_paired_arms_equal_the_independent_program() -> None:
    result = friedman(list(ARMS.values()))
    assert [result.statistic, result.p] == near(GOLDEN["friedman"])
    assert result.effect == near(GOLDEN["friedman_kendall_w"])
    raw = [wilcoxon(ARMS[a], ARMS[b], "approx").p for a, b in PAIRS]
    assert raw == near([GOLDEN["wilcoxon_raw"][f"{a}|{b}"] for a, b in PAIRS])
    values = [p for p in raw if p is not None]
    assert holm(values) == near(list(GOLDEN["wilcoxon_holm"].values()))


def test_the_exact_signed_rank_test_counts_sign_patterns_with_ties() -> None:
    first, second = [0] * 6, [1, 1, 2, -1, 3, 2]
    sizes = np.array([2, 2, 4.5, 2, 6, 4.5])
    smaller = 2.0
    patterns = [sum(sizes[np.array(s, bool)]) for s in itertools.product([0, 1], repeat=6)]
    expected = 2 * np.mean([total <= smaller for total in patterns])
    result = wilcoxon(first, second, "exact")
    assert result.p == pytest.approx(expected)
    assert result.effect == pytest.approx((19 - 2) / 21)


def test_the_exact_signed_rank_test_without_ties_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    differences = np.array([0.3, -1.2, 2.5, 3.1, -0.4, 5.0, 6.2, 0.9, -7.0, 1.1])
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert wilcoxon(np.zeros(10), differences, "exact").p == pytest.approx(expected)


@pytest.mark.parametrize("df", [2, 3, 4, 7, 10])
def test_friedman_tail_probabilities_equal_scipy_for_any_number_of_arms(df: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    arms = np.random.default_rng(df).normal(size=(df + 1, 12)) + 0.4 * np.arange(df + 1)[:, None]
    expected = stats.friedmanchisquare(*arms).pvalue
    assert friedman(list(arms)).p == pytest.approx(expected, rel=1e-9)


def test_arms_without_any_difference_have_no_p_value_but_a_reason() -> None:
    assert wilcoxon([1, 2], [1, 2]).reason == "no item differs between the two"
    assert "no variation" in (friedman([[1, 1], [1, 1]]).reason or "")


tables = st.integers(2, 5).flatmap(
    lambda n: st.lists(
        st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=n, max_size=n),
        min_size=2,
        max_size=4,
    )
)


@settings(max_examples=60, deadline=None)
@given(tables)
def test_no_table_makes_a_nan_and_the_order_of_raters_does_not_matter(
    table: list[list[int | None]],
) -> None:
    for level in LEVELS:
        result = krippendorff_alpha(table, level)  # type: ignore[arg-type]
        turned = krippendorff_alpha(table[::-1], level)  # type: ignore[arg-type]
        assert (result.value is None) == (result.reason is not None)
        if result.value is not None:
            assert result.value <= 1 + 1e-12
            assert turned.value == pytest.approx(result.value)


def test_no_ratings_at_all_are_an_error_in_words() -> None:
    for cells in ([], np.empty((0, 3))):
        with pytest.raises(DataError, match="not one rater"):
            as_table(cells)
