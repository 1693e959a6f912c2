"""The mixed model against statsmodels, against plain sums of squares, and where data are poor."""

from __future__ import annotations

import math
import warnings
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbtqa.statistics.mixed_model import (
    GroupSums,
    Method,
    MixedFit,
    Wald,
    bootstrap_icc,
    closed_ratio,
    cohen_f,
    combine,
    explained_variance,
    fit_mixed,
    holm_sidak,
    likelihood_ratio,
    pairwise,
    search_ratio,
    solve,
    wald,
)

ARMS = ("base", "base-cot", "tuned", "tuned-cot", "orpo", "orpo-cot")
ROWS = np.hstack([np.ones((6, 1)), np.eye(6)[:, 1:]])
NAMES = ("intercept", *ARMS[1:])


def balanced(
    seed: int, n_groups: int = 20, spread: float = 2.5
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[str]]:
    """Each patient once with each arm."""
    generator = np.random.default_rng(seed)
    patients = generator.normal(0, spread, n_groups)
    y = 25 + np.arange(6) * 0.8 + patients[:, None] + generator.normal(0, 5.7, (n_groups, 6))
    groups = [f"p{i:03}" for i in range(n_groups) for _ in range(6)]
    return y.ravel(), np.tile(ROWS, (n_groups, 1)), groups


def unbalanced(seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[str]]:
    """A third of the sessions lost, and a covariate that differs from row to row."""
    y, x, groups = balanced(seed, 30)
    generator = np.random.default_rng(seed + 1)
    kept = generator.random(len(y)) > 0.33
    covariate = generator.normal(size=len(y))
    x = np.hstack([x, covariate[:, None]])
    return y[kept] + covariate[kept], x[kept], [g for g, k in zip(groups, kept, strict=True) if k]


def by_statsmodels(
    y: np.ndarray[Any, Any], x: np.ndarray[Any, Any], groups: list[str], method: Method
) -> Any:
    """statsmodels' own search from its own start, made to go on until the slope is tiny."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MixedLM(y, x, np.asarray(groups)).fit(
            reml=method == "reml", method=["bfgs"], gtol=1e-10, maxiter=1000
        )


def assert_same(fit: MixedFit, theirs: Any, tolerance: float) -> None:
    assert fit.estimates == pytest.approx(theirs.fe_params, rel=tolerance, abs=tolerance)
    assert fit.var_residual == pytest.approx(theirs.scale, rel=tolerance)
    assert fit.var_group == pytest.approx(theirs.cov_re[0, 0], rel=tolerance)
    assert fit.log_likelihood == pytest.approx(theirs.llf, rel=tolerance)
    errors = [effect.se for effect in fit.effects]
    assert errors == pytest.approx(theirs.bse_fe, rel=tolerance)


@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_closed_form_equals_statsmodels_on_balanced_data(method: Method, seed: int) -> None:
    y, x, groups = balanced(seed)
    fit = fit_mixed(y, x, NAMES, groups, method=method)
    assert fit.engine == "closed form"
    assert fit.is_balanced
    assert_same(fit, by_statsmodels(y, x, groups, method), 1e-6)


@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("seed", [4, 5])
def test_the_profile_equals_statsmodels_on_unbalanced_data(method: Method, seed: int) -> None:
    y, x, groups = unbalanced(seed)
    names = (*NAMES, "covariate")
    fit = fit_mixed(y, x, names, groups, method=method)
    assert fit.engine == "profile likelihood"
    theirs = by_statsmodels(y, x, groups, method)
    assert fit.estimates == pytest.approx(theirs.fe_params, rel=1e-5, abs=1e-5)
    assert fit.var_group == pytest.approx(theirs.cov_re[0, 0], rel=1e-4)
    assert fit.log_likelihood == pytest.approx(theirs.llf, rel=1e-9)
    # statsmodels takes errors from the observed curvature, which differs a little off balance
    assert [e.se for e in fit.effects] == pytest.approx(theirs.bse_fe, rel=5e-2)
    assert not fit.is_balanced


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0, 8), method=st.sampled_from(["ml", "reml"]))
def test_closed_form_and_profile_are_one(seed: int, spread: float, method: Method) -> None:
    sums = GroupSums.of(*balanced(seed, 8, spread))
    closed, searched = closed_ratio(sums, method), search_ratio(sums, method)
    assert searched == pytest.approx(closed, rel=1e-8, abs=1e-8)
    heights = [solve(sums, ratio).log_likelihood(sums.n, method) for ratio in (searched, closed)]
    assert heights[0] == pytest.approx(heights[1], rel=1e-12)


def test_no_spread_between_patients_is_the_boundary_and_not_a_failure() -> None:
    generator = np.random.default_rng(3)
    y = generator.normal(size=(10, 6))
    y -= y.mean(axis=1, keepdims=True)
    x, groups = np.tile(ROWS, (10, 1)), [f"p{i}" for i in range(10) for _ in range(6)]
    fit = fit_mixed(y.ravel(), x, NAMES, groups)
    assert fit.is_boundary
    assert fit.var_group == 0
    assert fit.icc == 0
    assert fit.estimates == pytest.approx(np.linalg.lstsq(x, y.ravel(), rcond=None)[0])
    assert search_ratio(GroupSums.of(y.ravel(), x, groups), "reml") == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y, x, g: (y, x, ["one"] * len(y)), "two groups"),
        (lambda y, x, g: (y, np.hstack([x, x[:, :1] - x[:, 1:2]]), g), "depend on each other"),
        (lambda y, x, g: (np.where(np.arange(len(y)) == 3, np.nan, y), x, g), "gaps"),
        (lambda y, x, g: (y, x[:, 1:], g), "intercept"),
        (lambda y, x, g: (y[:7], x[:7], g[:7]), "too few"),
        (lambda y, x, g: (y[1:], x, g), "do not fit"),
        (lambda y, x, g: (np.full(len(y), 3.0), x, g), "no variation is left"),
        (lambda y, x, g: (x @ np.arange(6.0), x, g), "no variation is left"),
        (lambda y, x, g: (x[:, 1] + [float(one[1:]) for one in g], x, g), "no variation is left"),
    ],
)
def test_data_that_give_no_model_are_refused_in_words(change: Any, words: str) -> None:
    y, x, groups = change(*balanced(1, 5))
    names = [f"x{i}" for i in range(x.shape[1])]
    with pytest.raises(ValueError, match=words):
        fit_mixed(y, x, names, groups)


# --- what follows from a fit ---------------------------------------------------------------------


def test_the_omnibus_test_of_a_balanced_design_is_a_ratio_of_sums_of_squares() -> None:
    y, x, groups = balanced(11, 50)
    table = y.reshape(50, 6)
    arms = 50 * ((table.mean(axis=0) - table.mean()) ** 2).sum()
    residual = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    mean_square = (residual**2).sum() / (49 * 5)
    found = wald(fit_mixed(y, x, NAMES, groups), ARMS[1:])
    assert found.chi2 == pytest.approx(arms / mean_square, rel=1e-10)
    assert found.df == 5


def test_published_omnibus_figures_follow_from_published_means_and_variances() -> None:
    """arXiv 2509.09712: chi2(5) = 185.15, R2 .148 / .281, ICC .156, from data with its sums."""
    means = np.array([26.25, 26.87, 22.12, 24.79, 29.48, 29.56])
    generator = np.random.default_rng(1)
    noise = generator.normal(size=(150, 6))
    noise -= noise.mean(0) + noise.mean(1, keepdims=True) - noise.mean()
    noise *= math.sqrt(32.853 * 149 * 5 / (noise**2).sum())
    patients = generator.normal(size=(150, 1))
    patients -= patients.mean()
    patients *= math.sqrt((6.056 + 32.853 / 6) * 149 / (patients**2).sum())
    y = means + patients + noise
    x, groups = np.tile(ROWS, (150, 1)), [f"p{i}" for i in range(150) for _ in range(6)]
    fit = fit_mixed(y.ravel(), x, NAMES, groups)
    assert fit.var_residual == pytest.approx(32.853)
    assert fit.var_group == pytest.approx(6.056)
    assert wald(fit, ARMS[1:]).chi2 == pytest.approx(185.15, abs=0.2)  # means have two digits
    explained = explained_variance(fit, x)
    assert round(explained.marginal, 3) == 0.148
    assert round(explained.conditional, 3) == 0.281
    assert round(fit.icc, 3) == 0.156
    pair = next(
        c for c in pairwise(fit, ROWS, ARMS) if (c.first, c.second) == ("tuned", "tuned-cot")
    )
    assert pair.difference == pytest.approx(2.67)
    assert pair.p_adjusted == pytest.approx(0.00033, abs=0.00003)


def test_cohens_f_is_that_of_the_model_and_of_chance_alone() -> None:
    assert round(cohen_f(Wald(name="arms", chi2=185.15162623709278, df=5, p=0.0), 900), 4) == 0.4551
    assert round(cohen_f(Wald(name="arms", chi2=140.36697080118935, df=5, p=0.0), 900), 4) == 0.3962
    found = []
    for seed in range(200):
        y, x, groups = balanced(seed)
        y = np.random.default_rng(seed).normal(size=len(y))
        found.append(cohen_f(wald(fit_mixed(y, x, NAMES, groups), ARMS[1:]), len(y)))
    assert 0.18 < np.mean(found) < 0.22  # where arms do not differ


def test_a_likelihood_ratio_equals_statsmodels() -> None:
    import pandas as pd
    from statsmodels.formula.api import mixedlm

    y, x, groups = balanced(7)
    frame = pd.DataFrame({"y": y, "arm": x[:, 1:] @ np.arange(1, x.shape[1]), "group": groups})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = [
            mixedlm(formula, frame, groups="group").fit(reml=False, method=["powell"])
            for formula in ("y ~ C(arm)", "y ~ 1")
        ]
    larger = fit_mixed(y, x, NAMES, groups, method="ml")
    found = likelihood_ratio(larger, fit_mixed(y, x[:, :1], NAMES[:1], groups, method="ml"))
    assert found.log_likelihood == pytest.approx(theirs[0].llf, abs=1e-4)
    assert found.chi2 == pytest.approx(2 * (theirs[0].llf - theirs[1].llf), abs=1e-3)
    assert found.df == 5
    with pytest.raises(ValueError, match="two fits by ML"):
        likelihood_ratio(larger, fit_mixed(y, x, NAMES, groups))


def test_holm_sidak_equals_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    generator = np.random.default_rng(5)
    for n in (1, 2, 15):
        p_values = [float(p) for p in generator.random(n) ** 4]
        theirs = multipletests(p_values, method="holm-sidak")[1]
        assert holm_sidak(p_values) == pytest.approx(theirs, rel=1e-12)
    assert holm_sidak([1e-30, 0.5])[0] == pytest.approx(2e-30)
    assert holm_sidak([1.0, 1.0]) == [1.0, 1.0]


def test_pairs_of_arms_and_means_of_arms_hold_together() -> None:
    y, x, groups = balanced(12)
    fit = fit_mixed(y, x, NAMES, groups)
    means = [combine(fit, row, arm) for row, arm in zip(ROWS, ARMS, strict=True)]
    table = y.reshape(20, 6).mean(axis=0)
    assert [mean.estimate for mean in means] == pytest.approx(table)
    pairs = pairwise(fit, ROWS, ARMS)
    assert [(c.first, c.second) for c in pairs] == list(combinations(ARMS, 2))
    for contrast in pairs:
        i, j = ARMS.index(contrast.first), ARMS.index(contrast.second)
        assert contrast.difference == pytest.approx(table[j] - table[i])
        assert contrast.p <= contrast.p_adjusted
        assert contrast.low < contrast.difference < contrast.high


def test_the_interval_of_the_icc_covers_the_truth_and_repeats_itself() -> None:
    hits = 0
    for seed in range(20):
        y, x, groups = balanced(100 + seed, 40)
        interval = bootstrap_icc(y, x, groups, n_trials=60)
        assert interval is not None
        hits += interval[0] <= 2.5**2 / (2.5**2 + 5.7**2) <= interval[1]
    assert hits >= 15
    assert bootstrap_icc(y, x, groups, n_trials=60) == interval
    assert bootstrap_icc(y[:12], x[:12], groups[:12]) is None
