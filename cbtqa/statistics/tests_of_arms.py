"""Do arms differ? Rank tests for ratings, and corrections for asking several times.

The same items rated for every arm: `friedman`, then `wilcoxon` for pairs, or `nemenyi`.
Independent groups: `kruskal`, then `dunn`. Raw p-values go through `resampling.holm`. The unpaired
test on paired data costs power, so the two families are kept apart.

    friedman([base, tuned, large]).p
    wilcoxon(base, tuned).p

Values are lists of one number per item, in the same item order for every arm, without gaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from cbtqa.errors import MissingExtraError
from cbtqa.records import NonEmptyText, Record
from cbtqa.statistics.agreement import (
    NO_VARIATION,
    Cells,
    Coefficient,
    Floats,
    Values,
    as_table,
    undefined,
)

Arm = Sequence[float] | Floats
EXACT_LIMIT = 25
"""Up to this many non-zero differences the exact distribution is used when left to choose."""


class TestResult(Record):
    """One test; the p-value is two-sided."""

    __test__ = False  # keep pytest from taking the name for a test class

    name: NonEmptyText
    """The test with every choice that can change it, such as `wilcoxon|zero:drop|method:exact`."""
    statistic: float | None
    p: float | None
    """None when the data do not define it."""
    effect: float | None = None
    """Effect size: Kendall's W for `friedman`, matched-pairs rank-biserial for `wilcoxon`."""
    n: int = Field(ge=0)
    reason: str | None = None

    @model_validator(mode="after")
    def _value_or_reason(self) -> Self:
        if (self.p is None) == (self.reason is None):
            raise ValueError("a test has either a p-value or a reason why it has none")
        return self


def friedman(arms: Sequence[Arm]) -> TestResult:
    """Friedman's test of arms rated on the same items, corrected for ties.

    The effect is Kendall's W over items: 0 no common order of the arms, 1 the same on every item.

    Source: Friedman 1937; tie correction as in Conover, Practical Nonparametric Statistics.
    """
    table = _same_length(arms).T
    n, k = table.shape
    w = kendall_w(table)
    if w.value is None:
        return _no_result("friedman", n, w.reason or "")
    statistic = n * (k - 1) * w.value
    return TestResult(
        name="friedman", statistic=statistic, p=chi2_tail(statistic, k - 1), effect=w.value, n=n
    )


def kruskal(groups: Sequence[Arm]) -> TestResult:
    """Kruskal-Wallis test of independent groups, corrected for ties."""
    pooled = np.concatenate([np.asarray(group, dtype=np.float64) for group in groups])
    n = len(pooled)
    correction = 1 - tie_term(pooled) / (n**3 - n) if n > 1 else 0.0
    if correction <= 0:
        return _no_result("kruskal", n, "no variation: all values are the same")
    rank_sums = [part.sum() ** 2 / len(part) for part in _ranked_parts(groups, pooled)]
    statistic = (12 / (n * (n + 1)) * sum(rank_sums) - 3 * (n + 1)) / correction
    return TestResult(
        name="kruskal",
        statistic=float(statistic),
        p=chi2_tail(float(statistic), len(groups) - 1),
        n=n,
    )


def wilcoxon(
    first: Arm, second: Arm, method: Literal["auto", "exact", "approx"] = "auto"
) -> TestResult:
    """Wilcoxon's signed-rank test of `second` against `first`; items without difference drop out.

    `exact` counts every sign pattern of the (tied) ranks, so ties do not spoil it; `approx` is the
    normal approximation with tie correction and without continuity correction; `auto` is exact up
    to `EXACT_LIMIT` differences. The statistic is the smaller rank sum; the effect is the
    matched-pairs rank-biserial correlation, positive when `second` is higher.

    Source: Wilcoxon 1945; effect: Kerby 2014.
    """
    a, b = _same_length([first, second])
    differences = (b - a)[b != a]
    n = len(differences)
    chosen = method if method != "auto" else ("exact" if n <= EXACT_LIMIT else "approx")
    name = f"wilcoxon|zero:drop|method:{chosen}"
    if n == 0:
        return _no_result(name, 0, "no item differs between the two")
    sizes = ranks(np.abs(differences))
    plus, total = float(sizes[differences > 0].sum()), n * (n + 1) / 2
    smaller = min(plus, total - plus)
    if chosen == "exact":
        p = _exact_signed_rank_p(sizes, smaller)
    else:
        variance = n * (n + 1) * (2 * n + 1) / 24 - tie_term(np.abs(differences)) / 48
        p = math.erfc(abs(plus - total / 2) / math.sqrt(2 * variance))
    effect = 2 * plus / total - 1
    return TestResult(name=name, statistic=smaller, p=p, effect=effect, n=n)


def _exact_signed_rank_p(sizes: Floats, smaller: float) -> float:
    """Share of the 2^n sign patterns whose smaller rank sum is at most this one."""
    halves = np.rint(2 * sizes).astype(np.int64)  # mean ranks are multiples of one half
    patterns = np.zeros(int(halves.sum()) + 1)
    patterns[0] = 1.0
    for size in halves:
        shifted = np.zeros_like(patterns)
        shifted[size:] = patterns[: len(patterns) - size]
        patterns = (patterns + shifted) / 2
    return min(1.0, 2 * float(patterns[: round(2 * smaller) + 1].sum()))


def dunn(groups: Sequence[Arm]) -> dict[tuple[int, int], float]:
    """Raw two-sided p of Dunn's test for every pair of independent groups. Source: Dunn 1964."""
    pooled = np.concatenate([np.asarray(group, dtype=np.float64) for group in groups])
    n = len(pooled)
    parts = _ranked_parts(groups, pooled)
    variance = (n * (n + 1) - tie_term(pooled) / (n - 1)) / 12
    result = {}
    for i, j in combinations(range(len(parts)), 2):
        spread = math.sqrt(variance * (1 / len(parts[i]) + 1 / len(parts[j])))
        z = abs(float(parts[i].mean() - parts[j].mean())) / spread if spread else 0.0
        result[i, j] = math.erfc(z / math.sqrt(2))
    return result


def nemenyi(arms: Sequence[Arm]) -> dict[tuple[int, int], float]:
    """p of Nemenyi's test after Friedman for every pair of arms; already corrected for all pairs.

    Raises:
        MissingExtraError: scipy is not installed.

    Source: Nemenyi 1963; Demsar 2006.
    """
    try:
        from scipy.stats import studentized_range
    except ModuleNotFoundError:
        raise MissingExtraError("scipy", "rate") from None
    table = _same_length(arms).T
    n, k = table.shape
    mean_ranks = np.array([ranks(row) for row in table]).mean(axis=0)
    unit = math.sqrt(k * (k + 1) / (6 * n))
    return {
        (i, j): float(
            studentized_range.sf(
                abs(mean_ranks[i] - mean_ranks[j]) / unit * math.sqrt(2), k, math.inf
            )
        )
        for i, j in combinations(range(k), 2)
    }


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """False-discovery-rate adjusted p-values, in the order given. Source: Benjamini & Hochberg."""
    count, running = len(p_values), 1.0
    adjusted = [0.0] * count
    descending = sorted(range(count), key=lambda i: p_values[i], reverse=True)
    for place, index in enumerate(descending):
        running = min(running, p_values[index] * count / (count - place))
        adjusted[index] = running
    return adjusted


def _same_length(arms: Sequence[Arm]) -> Floats:
    table = [np.asarray(arm, dtype=np.float64) for arm in arms]
    if len({len(row) for row in table}) != 1:
        raise ValueError("every arm needs one value per item")
    if len(table) < 2:
        raise ValueError("needs two arms")
    return np.stack(table)


def _ranked_parts(groups: Sequence[Arm], pooled: Floats) -> list[Floats]:
    ends = np.cumsum([len(group) for group in groups])[:-1]
    return np.split(ranks(pooled), ends)


def chi2_tail(statistic: float, df: int) -> float:
    """Upper tail of the chi-squared distribution, by its finite sums for whole degrees."""
    half = statistic / 2
    if half <= 0:
        return 1.0
    start = 0.5 if df % 2 else 0.0
    powers = (start + i for i in range(1 if df % 2 == 0 else 0, df // 2))
    first = math.erfc(math.sqrt(half)) if df % 2 else math.exp(-half)
    return first + sum(math.exp(a * math.log(half) - math.lgamma(a + 1) - half) for a in powers)


def _no_result(name: str, n: int, reason: str) -> TestResult:
    return TestResult(name=name, statistic=None, p=None, n=n, reason=reason)


# --- ranks ---------------------------------------------------------------------------------------
# Ranks with ties, rank correlation of two raters, and concordance of several.
#
# kendall_w([[1, 2, 3], [1, 2, 3]]).value == 1.0


def ranks(values: Values) -> Floats:
    """Ranks from 1, ties sharing their mean rank; the input has no gaps."""
    data = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(data, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    result: Floats = (last - (counts - 1) / 2)[inverse]
    return result


def tie_term(values: Values) -> float:
    """The sum of t^3 - t over groups of t equal values, as tie corrections want it."""
    counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)[1]
    return float((counts.astype(np.float64) ** 3 - counts).sum())


def kendall_w(cells: Cells) -> Coefficient:
    """Kendall's W of concordance with the correction for ties. Source: Kendall & Gibbons 1990."""
    table = as_table(cells)
    table = table[:, ~np.isnan(table).any(axis=0)]
    m, n = table.shape
    if m < 2 or n < 2:
        return undefined("kendall_w", "needs two raters and two items rated by all", n, m * n)
    ranked = np.array([ranks(row) for row in table])
    spread = float(((ranked.sum(axis=0) - m * (n + 1) / 2) ** 2).sum())
    below = m**2 * (n**3 - n) - m * sum(tie_term(row) for row in table)
    if below <= 0:
        return undefined("kendall_w", NO_VARIATION, n, m * n)
    return Coefficient(name="kendall_w", value=12 * spread / below, n_items=n, n_ratings=m * n)


def spearman_rho(first: Values, second: Values) -> Coefficient:
    """Spearman's rank correlation: Pearson's on mean ranks. Gaps are passed over pairwise."""
    a, b = _complete_pairs(first, second)
    if len(a) < 2:
        return undefined("spearman", "needs two pairs", len(a), 2 * len(a))
    x, y = ranks(a) - (len(a) + 1) / 2, ranks(b) - (len(a) + 1) / 2
    below = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return _correlation("spearman", float((x * y).sum()), below, len(a))


def kendall_tau(first: Values, second: Values) -> Coefficient:
    """Kendall's tau-b, which allows for ties. Gaps are passed over pairwise."""
    a, b = _complete_pairs(first, second)
    n = len(a)
    if n < 2:
        return undefined("kendall_tau_b", "needs two pairs", n, 2 * n)
    score = tied_a = tied_b = 0.0
    for i in range(n - 1):
        sign_a, sign_b = np.sign(a[i + 1 :] - a[i]), np.sign(b[i + 1 :] - b[i])
        score += float(sign_a @ sign_b)
        tied_a += float((sign_a == 0).sum())
        tied_b += float((sign_b == 0).sum())
    n_pairs = n * (n - 1) / 2
    return _correlation(
        "kendall_tau_b", score, float(np.sqrt((n_pairs - tied_a) * (n_pairs - tied_b))), n
    )


def _complete_pairs(first: Values, second: Values) -> tuple[Floats, Floats]:
    table = as_table([list(first), list(second)])
    kept = table[:, ~np.isnan(table).any(axis=0)]
    return kept[0], kept[1]


def _correlation(name: str, above: float, below: float, n: int) -> Coefficient:
    if below <= 0:
        return undefined(name, "no variation on one side", n, 2 * n)
    return Coefficient(name=name, value=above / below, n_items=n, n_ratings=2 * n)
