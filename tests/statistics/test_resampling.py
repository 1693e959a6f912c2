"""Resampling against sacrebleu for its seed, and against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from cbtqa.metrics.lexical import Bleu, Chrf
from cbtqa.statistics.resampling import (
    FEWEST_FOR_BOOTSTRAP,
    Floats,
    PConvention,
    benjamini_hochberg,
    bootstrap_p,
    bootstrap_sums,
    defined_interval,
    holm,
    percentile_interval,
    randomisation_p,
    sum_by_cluster,
    swapped_sums,
)

WORDS = [
    "我们",
    "可以",
    "先",
    "把",
    "担心",
    "的",
    "事情",
    "写",
    "下来",
    "再",
    "去",
    "看",
    "压力",
    "很大",
    "，",
    "。",
    "睡眠",
    "不好",
    "朋友",
    "聊聊",
]


def corpus(n_pairs: int) -> tuple[list[str], list[str], list[str]]:
    """References and two systems, the second a little worse."""
    rng = np.random.default_rng(4)
    references = ["".join(rng.choice(WORDS, size=20)) for _ in range(n_pairs)]

    def damaged(share: float) -> list[str]:
        return ["".join(c if rng.random() > share else "啊" for c in text) for text in references]

    return references, damaged(0.30), damaged(0.32)


@pytest.mark.parametrize("n_pairs", [5, 40, 333])
def test_intervals_and_p_values_are_those_of_sacrebleu(n_pairs: int) -> None:
    references, first, second = corpus(n_pairs)
    theirs: dict[str, Any] = {"BLEU": BLEU(tokenize="zh"), "chrF2": CHRF()}
    ours = {"BLEU": Bleu("zh"), "chrF2": Chrf()}
    found = {
        kind: PairedTest([("a", first), ("b", second)], theirs, [references], test_type=kind)()[1]
        for kind in ("bs", "ar")
    }
    for name, metric in ours.items():
        one, other = (
            np.array(theirs[name]._extract_corpus_statistics(side, [references]), np.float64)
            for side in (first, second)
        )
        values = [float(metric.from_sums(side.sum(0))) for side in (one, other)]
        sums = bootstrap_sums(np.concatenate([one, other], axis=1))
        drawn = [
            metric.from_sums(part)
            for part in (sums[:, : metric.n_columns], sums[:, metric.n_columns :])
        ]
        swapped = [metric.from_sums(half) for half in swapped_sums(one, other)]
        expected = found["bs"][name][1]
        low, high = percentile_interval(drawn[1])
        # sacrebleu sums in single precision, hence the tolerance on mean and width only
        assert drawn[1].mean() == pytest.approx(expected.mean, rel=1e-5)
        assert (high - low) / 2 == pytest.approx(expected.ci, rel=1e-4, abs=1e-5)
        difference = values[1] - values[0]
        ours_bs = bootstrap_p(drawn[0], drawn[1], difference, "sacrebleu")
        ours_ar = randomisation_p(swapped[0], swapped[1], difference, "sacrebleu")
        assert (ours_bs, ours_ar) == (expected.p_value, found["ar"][name][1].p_value)


def test_draws_do_not_depend_on_how_they_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    one, other = (rng.integers(0, 50, (77, 4)).astype(np.float64) for _ in range(2))
    whole = bootstrap_sums(one, 333), *swapped_sums(one, other, 333)
    monkeypatch.setattr("cbtqa.statistics.resampling.CELLS_PER_CHUNK", 77 * 32)
    parts = bootstrap_sums(one, 333), *swapped_sums(one, other, 333)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_swapped_sums_are_exact_beyond_single_precision() -> None:
    """Counts so large that float32 would round them."""
    rng = np.random.default_rng(2)
    one, other = (rng.integers(0, 1 << 22, (64, 2)).astype(np.float64) for _ in range(2))
    first, second = swapped_sums(one, other, 64)
    heads = np.random.default_rng(12345).integers(2, size=(64, 64), dtype=np.bool_)
    expected = heads.astype(np.float64) @ one + (~heads).astype(np.float64) @ other
    assert np.array_equal(first, expected)
    assert np.array_equal(first + second, np.tile(one.sum(0) + other.sum(0), (64, 1)))


def test_the_interval_of_a_mean_has_the_width_of_the_closed_form() -> None:
    values = np.random.default_rng(3).normal(10, 2, 400)
    sums = bootstrap_sums(np.stack([values, np.ones(400)], axis=1), 4_000)
    low, high = percentile_interval(sums[:, 0] / sums[:, 1])
    error = values.std(ddof=1) / np.sqrt(400)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    assert low < values.mean() < high


def test_clusters_are_drawn_whole() -> None:
    """Ten copies of each row carry no more information than one."""
    values = np.random.default_rng(5).normal(0, 1, 60)
    rows = np.stack([np.repeat(values, 10), np.ones(600)], axis=1)
    clusters = [str(number) for number in np.repeat(np.arange(60), 10)]
    summed = sum_by_cluster(rows, clusters)
    assert np.allclose(summed, np.stack([values * 10, np.full(60, 10)], axis=1))

    def width(statistics: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        sums = bootstrap_sums(statistics)
        low, high = percentile_interval(sums[:, 0] / sums[:, 1])
        return high - low

    assert width(summed) > 2.5 * width(rows)


CONVENTIONS: tuple[PConvention, ...] = ("ties", "sacrebleu")


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_p_is_never_zero_and_equal_scores_get_one(convention: PConvention) -> None:
    same = np.ones(999)
    assert randomisation_p(same, same, 1.0, convention) == pytest.approx(0.001)
    for p_of in (bootstrap_p, randomisation_p):
        assert p_of(same, same, 0.0, convention) == 1.0


def test_trials_as_far_apart_as_the_systems_count_as_ties_unless_sacrebleu_is_matched() -> None:
    """One item of 54 differs: every swap gives the same distance, so nothing was learnt."""
    one, other = np.zeros((2, 54, 1))
    other[7] = 1
    first, second = (half[:, 0] / 54 for half in swapped_sums(one, other, 999))
    assert randomisation_p(first, second, 1 / 54) == 1
    assert randomisation_p(first, second, 1 / 54, "sacrebleu") == pytest.approx(0.001)


def test_ties_are_found_across_rounding() -> None:
    """Distances equal but for the order of summation, at the size of a score of 0-100."""
    rng = np.random.default_rng(7)
    first = rng.normal(60, 1, 999)
    second = first + rng.choice([-1, 1], 999) * (0.3 + rng.normal(0, 1e-14, 999))
    assert randomisation_p(first, second, 0.3) == 1
    assert randomisation_p(first, second, 0.3 + 1e-6) == pytest.approx(0.001)


def test_the_bootstrap_null_is_centred_on_the_observed_difference() -> None:
    baseline, system = np.zeros(4), np.array([0.5, 1.0, 1.5, 2.5])
    assert bootstrap_p(baseline, system, 1.0) == pytest.approx((1 + 1) / 5)
    assert bootstrap_p(system, baseline, -1.0) == pytest.approx((1 + 1) / 5)


def equal_systems(kind: str, n_items: int) -> tuple[Floats, Floats]:
    """Values of two systems, one column a pair of systems; the two may be exchanged everywhere."""
    rng = np.random.default_rng(11)
    shape = (n_items, N_EQUAL_PAIRS)
    difficulty = rng.normal(0, 1, shape)
    spread = {"normal": 1.0, "nearly always tied": 0.1, "often tied": 0.5}[kind]
    one, other = (difficulty + rng.normal(0, spread, shape) for _ in range(2))
    if kind == "normal":
        return one, other
    return (one > 0).astype(np.float64), (other > 0).astype(np.float64)


def most_false_alarms(level: float = 0.05, error: float = 0.001) -> int:
    """The number that a test of this level exceeds with a probability under `error`."""
    n, more = N_EQUAL_PAIRS, 1.0
    for number in range(n + 1):
        more -= math.exp(
            math.lgamma(n + 1)
            - math.lgamma(number + 1)
            - math.lgamma(n - number + 1)
            + number * math.log(level)
            + (n - number) * math.log1p(-level)
        )
        if more < error:
            break
    return number


N_EQUAL_PAIRS = 2_000
KINDS = ("normal", "nearly always tied", "often tied")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_items", [9, 54, 500])
def test_randomisation_keeps_its_level_when_nothing_differs(kind: str, n_items: int) -> None:
    one, other = equal_systems(kind, n_items)
    first, second = (sums.T / n_items for sums in swapped_sums(one, other, 999))
    observed = (other - one).mean(0)
    p = [randomisation_p(*row) for row in zip(first, second, observed, strict=True)]
    assert np.sum(np.array(p) <= 0.05) <= most_false_alarms()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_items", [FEWEST_FOR_BOOTSTRAP, 500])
def test_the_bootstrap_test_keeps_its_level_from_its_floor_on(kind: str, n_items: int) -> None:
    one, other = equal_systems(kind, n_items)
    sums = bootstrap_sums(np.concatenate([one, other], axis=1), 999).T / n_items
    observed = (other - one).mean(0)
    sides = sums[:N_EQUAL_PAIRS], sums[N_EQUAL_PAIRS:]
    p = [bootstrap_p(*row) for row in zip(*sides, observed, strict=True)]
    assert np.sum(np.array(p) <= 0.05) <= most_false_alarms()


def test_real_differences_are_still_found() -> None:
    rng = np.random.default_rng(12)
    one = rng.normal(0, 1, (200, 1))
    other = one + rng.normal(0.3, 1, (200, 1))
    observed = float((other - one).mean())
    swapped = [half[:, 0] / 200 for half in swapped_sums(one, other, 999)]
    drawn = bootstrap_sums(np.concatenate([one, other], axis=1), 999) / 200
    assert randomisation_p(swapped[0], swapped[1], observed) < 0.01
    assert bootstrap_p(drawn[:, 0], drawn[:, 1], observed) < 0.01


def test_holm_multiplies_by_what_is_left_and_never_decreases() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_interval_rests_on_enough_items_and_resamples_or_says_why_not() -> None:
    drawn = np.linspace(0, 1, 1_000)
    drawn[::25] = np.nan
    found = defined_interval(drawn, n_scored=10)
    assert (found.low, found.high) == percentile_interval(drawn[~np.isnan(drawn)])
    assert (found.reason, found.n_left_out) == (None, 40)
    few = defined_interval(drawn, n_scored=9)
    assert few == (None, None, "9 scored questions, fewer than 10", 40)
    drawn[1:500:25] = np.nan
    assert defined_interval(drawn, 10) == (None, None, "undefined in 60 of 1000 resamples", 60)
    assert defined_interval(np.full(50, np.nan), 1).reason == "1 scored question, fewer than 10"


def test_benjamini_hochberg_equals_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    generator = np.random.default_rng(4)
    for n in (1, 2, 15):
        p_values = [float(p) for p in generator.random(n) ** 3]
        expected = multipletests(p_values, method="fdr_bh")[1]
        assert benjamini_hochberg(p_values) == pytest.approx(expected)
    assert benjamini_hochberg([]) == []
