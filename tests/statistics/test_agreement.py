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
    gwet_ac,
    krippendorff_alpha,
    mean_kappa,
)
from cbtqa.statistics.intervals import share_interval
from cbtqa.statistics.intraclass import intraclass_correlation
from cbtqa.statistics.resampling import holm
from cbtqa.statistics.tests_of_arms import (
    friedman,
    kendall_w,
    sign_test,
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
    result = krippendorff_alpha(table, "ordinal")
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


ABSTRACTORS = [(0, 0)] * 13 + [(1, 1)] * 20 + [(1, 2)] * 7 + [(2, 1)] * 4 + [(2, 2)] * 56
"""Two abstractors and a hundred pregnancies, in Gwet's R package irrCAC (`cont3x3abstractors`)."""
FOUR_RATERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, None],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 3],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
"""Krippendorff's example of twelve units, with gaps; in irrCAC `cac.raw4raters`."""


def test_ac1_equals_gwets_worked_examples() -> None:
    # Source: Gwet, Handbook of Inter-Rater Reliability, 2014, and the vignette of his irrCAC
    first, second = (list(side) for side in zip(*ABSTRACTORS, strict=True))
    assert gwet_ac([first, second], [0, 1, 2]).value == pytest.approx(0.8493305, abs=1e-7)
    assert cohen_kappa(first, second, [0, 1, 2]).value == pytest.approx(0.7964094, abs=1e-7)
    found = gwet_ac(FOUR_RATERS, [1, 2, 3, 4, 5])
    assert found.value == pytest.approx(0.77544, abs=5e-6)
    assert found.n_items == 11, "the unit with one rating tells how often a value is used, no more"


def test_ac2_is_agreement_beyond_chance_with_the_weights_of_kappa() -> None:
    pairs = np.array(ABSTRACTORS)
    weights = 1 - (np.subtract.outer(np.arange(3), np.arange(3)) / 2) ** 2
    observed = np.mean([weights[a, b] for a, b in pairs])
    use = np.bincount(pairs.ravel(), minlength=3) / 200
    chance = weights.sum() / 6 * (use * (1 - use)).sum()
    found = gwet_ac(pairs.T, [0, 1, 2], "quadratic")
    assert found.name == "ac2_quadratic"
    assert found.value == pytest.approx((observed - chance) / (1 - chance))


def test_where_one_value_prevails_ac1_tells_agreement_that_alpha_does_not() -> None:
    rows = [[0] * 95 + [1] * 3 + [0] * 2, [0] * 95 + [0] * 3 + [1] * 2]
    alpha, ac1 = krippendorff_alpha(rows, "nominal").value, gwet_ac(rows, [0, 1]).value
    assert alpha is not None and ac1 is not None
    assert alpha < 0 and ac1 > 0.9


def test_two_items_rated_alike_are_no_agreement_statement() -> None:
    rows = [[0, 2], [0, 2]]
    for found in (
        krippendorff_alpha(rows),
        cohen_kappa(*rows, [0, 1, 2]),
        mean_kappa(rows, [0, 1, 2]),
        gwet_ac(rows, [0, 1, 2]),
        intraclass_correlation(rows),
    ):
        assert found.value is None and "fewer than 3 items" in (found.reason or "")


def test_answers_to_few_questions_give_a_value_without_interval_and_the_reason() -> None:
    rows = np.random.default_rng(3).integers(0, 3, (3, 30))
    found = krippendorff_alpha(rows, clusters=["a", "b", "c"] * 10)
    assert found.value is not None and found.low is None and found.random == ()
    assert found.interval_reason == "rests on 3 clusters such as questions; an interval needs 10"


def test_perfect_agreement_on_few_items_is_no_certainty() -> None:
    rows = [[0, 2, 1] * 5] * 2
    for found in (
        krippendorff_alpha(rows),
        cohen_kappa(*rows, [0, 1, 2]),
        gwet_ac(rows, [0, 1, 2]),
    ):
        assert found.value == 1.0 == found.high
        assert found.low is not None and found.low < 0.8
    share = agreement_share(rows)
    assert (share.low, share.high) == share_interval(15, 15)[:2]


def test_questions_with_several_answers_each_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    quality = np.repeat(rng.normal(0, 1, 20), 5)
    rows = np.digitize(quality + rng.normal(0, 0.6, (2, 100)), [-0.5, 0.5])
    questions = np.repeat(np.arange(20), 5).tolist()
    for one, other in (
        (krippendorff_alpha(rows), krippendorff_alpha(rows, clusters=questions)),
        (cohen_kappa(*rows, [0, 1, 2]), cohen_kappa(*rows, [0, 1, 2], clusters=questions)),
        (spearman_rho(*rows), spearman_rho(*rows, clusters=questions)),
        (intraclass_correlation(rows), intraclass_correlation(rows, clusters=questions)),
    ):
        assert one.value == other.value
        assert None not in (one.low, one.high, other.low, other.high)
        assert other.high - other.low > one.high - one.low  # type: ignore[operator]
        assert one.random == ("items",) and other.random == ("clusters",)


def test_items_that_each_stand_for_themselves_are_no_clusters() -> None:
    alone = krippendorff_alpha(FULL, clusters=[f"q{place}" for place in range(10)])
    assert alone == krippendorff_alpha(FULL)


def test_raters_of_unlike_severity_make_the_interval_wider_than_their_number_alone() -> None:
    rng = np.random.default_rng(6)
    quality, noise = rng.normal(0, 1, 40), rng.normal(0, 0.5, (5, 40))
    widths = []
    for severity in (0.0, 0.8):
        rows = quality + severity * np.array([-2, -1, 0, 1, 2])[:, None] / 1.6 + noise
        found = krippendorff_alpha(np.digitize(rows, [-0.5, 0.5]))
        assert found.low is not None and found.high is not None
        widths.append(found.high - found.low)
    assert widths[1] > 2 * widths[0]


def test_the_mean_kappa_against_one_rater_never_compares_the_others_with_each_other() -> None:
    rng = np.random.default_rng(8)
    people = np.repeat(rng.integers(0, 3, (1, 60)), 4, axis=0)
    noise = rng.integers(0, 3, 60)
    found = mean_kappa(people, [0, 1, 2], against=noise)
    assert found.value == pytest.approx(cohen_kappa(noise, people[0], [0, 1, 2], "quadratic").value)
    assert mean_kappa(people, [0, 1, 2]).value == 1.0


def test_the_mean_kappa_weighs_pairs_by_the_items_they_share() -> None:
    pairs = [
        cohen_kappa(a, b, [1, 2, 3, 4, 5], "quadratic") for a, b in itertools.combinations(GAPS, 2)
    ]
    total = sum(one.n_items for one in pairs)
    expected = sum((one.value or 0) * one.n_items for one in pairs) / total
    assert mean_kappa(GAPS, [1, 2, 3, 4, 5]).value == pytest.approx(expected)


def test_no_rank_correlation_has_an_interval_where_nearly_all_values_are_the_same() -> None:
    first, second = [2] * 26 + [0, 1, 0, 1], [2] * 25 + [0, 0, 1, 1, 2]
    found = spearman_rho(first, second)
    assert found.value is not None and found.low is None
    assert "have the same value" in (found.interval_reason or "")


def test_the_reliability_of_a_mean_has_no_end_below_minus_one() -> None:
    rng = np.random.default_rng(9)
    for form in ("1", "A", "C"):
        found = intraclass_correlation(rng.normal(0, 1, (8, 12)), form, of_mean=True)
        if found.value is not None:
            assert found.low is not None and found.high is not None
            assert min(-1, found.value) <= found.low <= found.value <= found.high < 1


@settings(max_examples=60, deadline=None)
@given(tables, st.booleans())
def test_every_value_has_an_interval_that_is_no_point_or_the_reason(
    table: list[list[int | None]], is_long: bool
) -> None:
    rows = [row * 5 for row in table] if is_long else table
    pair = rows[0], rows[1]
    for found in (
        krippendorff_alpha(rows, "nominal"),
        alpha_within([rows, rows[::-1]]),
        mean_kappa(rows, [0, 1, 2, 3]),
        gwet_ac(rows, [0, 1, 2, 3]),
        agreement_share(rows, clusters=[place // 2 for place in range(len(rows[0]))]),
        spearman_rho(*pair),
        intraclass_correlation(rows),
    ):
        if found.value is None:
            assert found.reason and found.low is None
        elif found.low is None:
            assert found.interval_reason and found.high is None and not found.random
        else:
            assert found.high is not None and found.random
            assert min(-1, found.value) <= found.low <= found.value <= found.high <= 1
            assert found.low < found.high


def test_the_sign_test_equals_scipys_binomial() -> None:
    from scipy.stats import binomtest

    for higher, lower in ((0, 0), (1, 0), (5, 5), (90, 57), (3, 40)):
        n = higher + lower
        expected = binomtest(higher, n).pvalue if n else 1.0
        assert sign_test(higher, lower) == pytest.approx(expected)
