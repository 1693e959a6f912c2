"""Linear model with a random intercept per group (patient): y = X b + u[group] + e.

    fit_mixed(y, x, ("intercept", "tuned"), patients).effect("tuned").estimate

*Closed form* where every group has the same rows of X; else *profile likelihood*: all but the
ratio of the two variances is solved exactly, and the likelihood is searched along that ratio.

Source: Laird & Ware 1982; closed form: Searle, Casella & McCulloch, Variance Components, ch. 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from cbtqa.records import NonEmptyText, Record
from cbtqa.statistics.agreement import Floats
from cbtqa.statistics.resampling import percentile_interval, step_down
from cbtqa.statistics.tests_of_arms import chi2_tail

Method = Literal["reml", "ml"]
LARGEST_SHARE = 1 - 1e-9
"""Of the variance between groups, as the search goes; 1 would leave no residual."""
GRID = 48


class GroupSums:
    """Sums of products of (x, y, 1) per group and over all, each group counted `weights` times."""

    def __init__(self, moments: Floats, weights: Floats) -> None:
        """Takes `moments` of shape (m, p + 2, p + 2) and `weights` of shape (m,)."""
        self.moments, self.weights = moments, weights
        self.sizes = moments[:, -1, -1]
        self.group_x, self.group_y = moments[:, :-2, -1], moments[:, -2, -1]
        total = np.tensordot(weights, moments, 1)
        self.xx, self.xy, self.yy = total[:-2, :-2], total[:-2, -2], float(total[-2, -2])
        self.n, self.p = round(float(total[-1, -1])), len(total) - 2

    @classmethod
    def of(cls, y: Floats, x: Floats, groups: Sequence[str]) -> GroupSums:
        names, rows = np.array(groups), np.column_stack([x, y, np.ones(len(y))])
        parts = [rows[names == name] for name in np.unique(names)]
        return cls(np.array([part.T @ part for part in parts]), np.ones(len(parts)))

    def drawn(self, weights: Floats) -> GroupSums:
        """The sums of a sample in which each group occurs so many times."""
        return GroupSums(self.moments, weights)


@dataclass(frozen=True)
class Solved:
    """The best fit for one ratio of variances (group by residual)."""

    beta: Floats
    precision: Floats
    """X' R^-1 X, where R is the covariance of y by the residual variance."""
    rss: float
    log_det_r: float

    def residual_variance(self, n: int, method: Method) -> float:
        return self.rss / (n - (len(self.beta) if method == "reml" else 0))

    def log_likelihood(self, n: int, method: Method) -> float:
        p = len(self.beta)
        df = n - p if method == "reml" else n
        if self.rss <= 0:
            return math.inf
        value = -0.5 * (df * (math.log(2 * math.pi * self.rss / df) + 1) + self.log_det_r)
        if method == "reml":
            value -= 0.5 * float(np.linalg.slogdet(self.precision)[1])
        return value


def solve(sums: GroupSums, ratio: float) -> Solved:
    shrink = sums.weights * ratio / (1 + ratio * sums.sizes)
    precision = sums.xx - (sums.group_x * shrink[:, None]).T @ sums.group_x
    right = sums.xy - sums.group_x.T @ (shrink * sums.group_y)
    beta = np.linalg.solve(precision, right).astype(np.float64)
    whole = sums.yy - float(shrink @ sums.group_y**2)
    log_det = float(sums.weights @ np.log1p(ratio * sums.sizes))
    return Solved(beta, precision, max(whole - float(beta @ right), 0.0), log_det)


def closed_ratio(sums: GroupSums, method: Method) -> float:
    """From the mean squares between and within groups, for groups with the same x."""
    m, size, weights = sums.weights.sum(), float(sums.sizes[0]), sums.weights
    means = sums.group_x * weights[:, None]
    within_xx = sums.xx - means.T @ sums.group_x / size
    within_xy = sums.xy - means.T @ sums.group_y / size
    explained = float(within_xy @ np.linalg.pinv(within_xx) @ within_xy)
    ss_within = sums.yy - float(weights @ sums.group_y**2) / size - explained
    off_mean = sums.group_y - weights @ sums.group_y / m
    ss_between = float(weights @ off_mean**2) / size
    # the intercept is the only column that does not vary within groups
    df_within = m * (size - 1) - ((sums.p - 1) if method == "reml" else 0)
    df_between = m - 1 if method == "reml" else m
    if ss_within <= 0:
        return LARGEST_SHARE / (1 - LARGEST_SHARE)
    return float(max(0.0, (ss_between / df_between) / (ss_within / df_within) - 1) / size)


def search_ratio(sums: GroupSums, method: Method) -> float:
    """The ratio at the highest likelihood: a grid over the share between groups, then bisection.

    The grid guards against a second, lower hill; the share runs from 0 to (almost) 1. The slope is
    bisected, not the height: heights differ too little near the top to place it well.
    """
    n = sums.n
    shares = np.linspace(0, 1, GRID) ** 2 * LARGEST_SHARE  # finer near 0, where ICCs lie
    ratios = shares / (1 - shares)
    heights = [solve(sums, float(ratio)).log_likelihood(n, method) for ratio in ratios]
    best = int(np.argmax(heights))
    low, high = float(shares[max(best - 1, 0)]), float(shares[min(best + 1, GRID - 1)])
    if best == 0 and _slope(sums, 0.0, method) <= 0:
        return 0.0
    while high - low > 1e-13 * max(high, 1e-3):
        middle = (low + high) / 2
        if _slope(sums, middle / (1 - middle), method) > 0:
            low = middle
        else:
            high = middle
    return low / (1 - low)


def _slope(sums: GroupSums, ratio: float, method: Method) -> float:
    """Derivative of the profile log-likelihood by the ratio."""
    solved = solve(sums, ratio)
    if solved.rss <= 0:
        return 1.0
    shrink = 1 + ratio * sums.sizes
    residual = sums.group_y - sums.group_x @ solved.beta
    falling = sums.weights / shrink**2
    df = sums.n - (sums.p if method == "reml" else 0)
    value: float = df * float(falling @ residual**2) / solved.rss
    value -= float(sums.weights @ (sums.sizes / shrink))
    if method == "reml":
        inverse = np.linalg.inv(solved.precision)
        value += float(falling @ np.einsum("gi,ij,gj->g", sums.group_x, inverse, sums.group_x))
    return value / 2


NORMAL_95 = 1.959963984540054
BOUNDARY = 1e-7
LARGEST_RATIO = 1e6
NOTHING = 1e-10
"""Share of the variance below which nothing but rounding is left."""


class Effect(Record):
    """One fixed effect."""

    name: NonEmptyText
    estimate: float
    se: float
    z: float
    p: float
    """Two-sided, from the normal distribution."""
    low: float
    """Lower end of the 95 % interval."""
    high: float


class MixedFit(Record):
    """A fitted model."""

    engine: NonEmptyText
    """What computed it: `closed form` or `profile likelihood`."""
    method: Method
    n: int
    n_groups: int
    effects: tuple[Effect, ...]
    covariance: tuple[tuple[float, ...], ...]
    """Of the fixed effects, in their order."""
    var_group: float
    var_residual: float
    log_likelihood: float
    aic: float | None
    """None under REML, whose likelihoods of different X are not comparable."""
    is_balanced: bool
    is_boundary: bool
    """True when the variance between groups is estimated as 0."""

    @property
    def icc(self) -> float:
        """Share of the variance, beyond the fixed effects, that lies between groups."""
        return self.var_group / (self.var_group + self.var_residual)

    @property
    def estimates(self) -> Floats:
        return np.array([effect.estimate for effect in self.effects])

    def effect(self, name: str) -> Effect:
        return {effect.name: effect for effect in self.effects}[name]


def fit_mixed(
    y: Sequence[float] | Floats,
    x: Floats,
    names: Sequence[str],
    groups: Sequence[str],
    *,
    method: Method = "reml",
) -> MixedFit:
    """Fits the model.

    Args:
        y: outcome, shape (n,).
        x: fixed effects, shape (n, p); a column of ones is the intercept and must be there.
        names: of the columns of x.
        groups: the group of each row, such as the patient.

    Raises:
        ValueError: too few groups or rows, gaps, dependent columns of x, or no variation left.
    """
    outcome, design = np.asarray(y, dtype=np.float64), np.asarray(x, dtype=np.float64)
    _check(outcome, design, names, groups)
    sums = GroupSums.of(outcome, design, groups)
    is_balanced = _has_equal_groups(design, groups)
    ratio = (closed_ratio if is_balanced else search_ratio)(sums, method)
    if ratio > LARGEST_RATIO or solve(sums, 0.0).rss <= NOTHING * float(outcome.var()) * sums.n:
        raise ValueError("no variation is left beside the effects and the groups")
    solved, n = solve(sums, ratio), sums.n
    variance = solved.residual_variance(n, method)
    covariance = variance * np.linalg.inv(solved.precision)
    height = solved.log_likelihood(n, method)
    return MixedFit(
        engine="closed form" if is_balanced else "profile likelihood",
        method=method,
        n=n,
        n_groups=len(sums.sizes),
        effects=tuple(
            make_effect(name, float(beta), math.sqrt(float(square)))
            for name, beta, square in zip(names, solved.beta, np.diag(covariance), strict=True)
        ),
        covariance=tuple(map(tuple, covariance.tolist())),
        var_group=ratio * variance,
        var_residual=variance,
        log_likelihood=height,
        aic=2 * (sums.p + 2) - 2 * height if method == "ml" else None,
        is_balanced=is_balanced,
        is_boundary=ratio < BOUNDARY,
    )


def bootstrap_icc(
    y: Sequence[float] | Floats,
    x: Floats,
    groups: Sequence[str],
    *,
    method: Method = "reml",
    n_trials: int = 500,
    seed: int = 12345,
) -> tuple[float, float] | None:
    """95 % percentile interval of the ICC, drawing whole groups; None below three groups.

    A sample in which the fixed effects are not identified is left out.
    """
    design = np.asarray(x, np.float64)
    sums = GroupSums.of(np.asarray(y, np.float64), design, groups)
    ratio_of = closed_ratio if _has_equal_groups(design, groups) else search_ratio
    n_groups = len(sums.sizes)
    if n_groups < 3:
        return None
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(n_trials):
        counts = np.bincount(generator.integers(0, n_groups, n_groups), minlength=n_groups)
        drawn = sums.drawn(counts.astype(np.float64))
        if np.linalg.matrix_rank(drawn.xx) == drawn.p:
            ratio = ratio_of(drawn, method)
            found.append(ratio / (1 + ratio))
    return percentile_interval(np.array(found)) if len(found) > n_trials // 2 else None


def _check(y: Floats, x: Floats, names: Sequence[str], groups: Sequence[str]) -> None:
    if x.ndim != 2 or not len(y) == len(x) == len(groups) or x.shape[1] != len(names):
        raise ValueError("y, x, names and groups do not fit each other")
    if not (np.isfinite(y).all() and np.isfinite(x).all()):
        raise ValueError("y or x has gaps; leave out what is missing first")
    if len(set(groups)) < 2:
        raise ValueError("a random intercept needs at least two groups")
    if not (x == 1).all(axis=0).any():
        raise ValueError("x needs a column of ones, the intercept")
    if len(y) < x.shape[1] + 2:
        raise ValueError(f"{len(y)} rows are too few for {x.shape[1]} effects")
    if np.linalg.matrix_rank(x) < x.shape[1]:
        raise ValueError(f"the columns {', '.join(names)} depend on each other")


def _has_equal_groups(x: Floats, groups: Sequence[str]) -> bool:
    """True when every group has the same rows of x, in whatever order."""
    rows: dict[str, list[tuple[float, ...]]] = {}
    for group, row in zip(groups, x.tolist(), strict=True):
        rows.setdefault(group, []).append(tuple(row))
    sorted_rows = [sorted(own) for own in rows.values()]
    return all(own == sorted_rows[0] for own in sorted_rows)


def make_effect(name: str, estimate: float, se: float) -> Effect:
    """An estimate with its z, two-sided p and 95 % interval; a zero standard error gives z 0."""
    z = estimate / se if se > 0 else 0.0
    return Effect(
        name=name,
        estimate=estimate,
        se=se,
        z=z,
        p=math.erfc(abs(z) / math.sqrt(2)),
        low=estimate - NORMAL_95 * se,
        high=estimate + NORMAL_95 * se,
    )


# --- contrasts -----------------------------------------------------------------------------------
# What follows from a fit: omnibus test, pairs of arms, effect sizes, R2. `rows` holds a line of x
# per arm: pairwise(fit, rows, arms)[0].p_adjusted


class Wald(Record):
    """One test that several effects are all zero."""

    name: NonEmptyText
    chi2: float
    df: int
    p: float


class Contrast(Record):
    """Two arms: `second` less `first`."""

    first: str
    second: str
    difference: float
    se: float
    z: float
    p: float
    p_adjusted: float
    """Holm-Sidak over all pairs of the same model."""
    low: float
    """Lower end of the 95 % interval, not widened for the number of pairs."""
    high: float
    d: float
    """Difference by the standard deviation of one session: residual and patient together."""


class ExplainedVariance(Record):
    """Nakagawa & Schielzeth's R2: by the fixed effects, and by them and the groups."""

    marginal: float
    conditional: float


def wald(fit: MixedFit, names: Sequence[str], title: str = "arms") -> Wald:
    """Wald's chi-square test that the named effects are all 0."""
    places = [i for i, effect in enumerate(fit.effects) if effect.name in names]
    beta = fit.estimates[places]
    covariance = np.array(fit.covariance)[np.ix_(places, places)]
    chi2 = float(beta @ np.linalg.solve(covariance, beta))
    return Wald(name=title, chi2=chi2, df=len(places), p=chi2_tail(chi2, len(places)))


def combine(fit: MixedFit, row: Floats, name: str) -> Effect:
    """A weighted sum of the fixed effects, such as the mean of one arm."""
    variance = float(row @ np.array(fit.covariance) @ row)
    return make_effect(name, float(row @ fit.estimates), math.sqrt(max(variance, 0.0)))


def pairwise(fit: MixedFit, rows: Sequence[Floats], arms: Sequence[str]) -> list[Contrast]:
    """Every pair of arms, by z; `rows` holds one line of x per arm."""
    spread = math.sqrt(fit.var_group + fit.var_residual)
    pairs = list(combinations(range(len(arms)), 2))
    found = [combine(fit, rows[j] - rows[i], f"{arms[j]}-{arms[i]}") for i, j in pairs]
    adjusted = holm_sidak([effect.p for effect in found])
    return [
        Contrast(
            first=arms[i],
            second=arms[j],
            difference=effect.estimate,
            se=effect.se,
            z=effect.z,
            p=effect.p,
            p_adjusted=p_adjusted,
            low=effect.low,
            high=effect.high,
            d=effect.estimate / spread if spread > 0 else 0.0,
        )
        for (i, j), effect, p_adjusted in zip(pairs, found, adjusted, strict=True)
    ]


def holm_sidak(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing them all, in the order given. Source: Sidak 1967; Holm 1979."""
    # 1 - (1 - p)^n, without losing p-values below 1e-16 to rounding
    return step_down(p_values, lambda p, n: -math.expm1(n * math.log1p(-p)) if p < 1 else 1.0)


def explained_variance(fit: MixedFit, x: Floats) -> ExplainedVariance:
    """R2 of the fixed effects, and of these with the groups. Source: Nakagawa & Schielzeth 2013."""
    fixed = float(np.var(x @ fit.estimates, ddof=1))
    whole = fixed + fit.var_group + fit.var_residual
    return ExplainedVariance(marginal=fixed / whole, conditional=(fixed + fit.var_group) / whole)


def cohen_f(test: Wald, n: int) -> float:
    """Cohen's f as in arXiv 2509.09712: sqrt(chi2 / (n - k)) of Wald's test of k arms in n rows.

    It is the arms' sum of squares by the model's error, which leaves out what patients differ in,
    and is upward biased: chance alone gives .20 with six arms of 20 sessions.
    """
    return math.sqrt(test.chi2 / (n - test.df - 1))


class LikelihoodRatio(Record):
    """A test that the further effects of the larger of two models are all 0."""

    log_likelihood: float
    """Of the larger model."""
    chi2: float
    df: int
    p: float


def likelihood_ratio(larger: MixedFit, smaller: MixedFit) -> LikelihoodRatio:
    """Twice the gain in log-likelihood, by chi-square; the smaller model is within the larger.

    Raises:
        ValueError: fits by REML, whose likelihoods of different x are not comparable, or of other
            rows.
    """
    if {larger.method, smaller.method} != {"ml"} or larger.n != smaller.n:
        raise ValueError("a likelihood ratio needs two fits by ML of the same rows")
    df = len(larger.effects) - len(smaller.effects)
    chi2 = max(0.0, 2 * (larger.log_likelihood - smaller.log_likelihood))
    return LikelihoodRatio(
        log_likelihood=larger.log_likelihood, chi2=chi2, df=df, p=chi2_tail(chi2, df)
    )
