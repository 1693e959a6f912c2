"""Do arms differ? Rank tests for ratings of the same items, and correlation of ranks.

`friedman` for all arms, then `wilcoxon` for pairs; raw p-values go through `resampling.holm`.

    friedman([base, tuned, large]).p
    wilcoxon(base, tuned).p
    sign_test(41, 19)      # of patients with whom one arm did better, and with whom the other

Values are lists of one number per item, in the same item order for every arm, without gaps.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from cbtqa.errors import require
from cbtqa.records import NonEmptyText, Record
from cbtqa.statistics.agreement import (
    NO_VARIATION,
    Cells,
    Coefficient,
    Floats,
    Values,
    as_table,
    kept_items,
    measured,
    undefined,
)
from cbtqa.statistics.jackknife import correlation_interval, crossed_spread
from cbtqa.statistics.resampling import Interval

Arm = Sequence[float] | Floats
EXACT_LIMIT = 25
"""Up to this many non-zero differences the exact distribution is used when left to choose."""

MOST_ALIKE = 0.75
FEWEST_UNLIKE = 30
"""Where more than this share of one side have the same value and fewer than so many another, a
correlation has no interval: it covered .89 on 30 pairs with 88 % alike."""


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
    sizes = require("scipy.stats", "rate").rankdata(np.abs(differences))
    plus, total = float(sizes[differences > 0].sum()), n * (n + 1) / 2
    smaller = min(plus, total - plus)
    if chosen == "exact":
        p = _exact_signed_rank_p(sizes, smaller)
    else:
        variance = n * (n + 1) * (2 * n + 1) / 24 - tie_term(np.abs(differences)) / 48
        p = math.erfc(abs(plus - total / 2) / math.sqrt(2 * variance))
    effect = 2 * plus / total - 1
    return TestResult(name=name, statistic=smaller, p=p, effect=effect, n=n)


def sign_test(n_higher: int, n_lower: int) -> float:
    """Two-sided exact p that either of two is as often the higher; ties are no part of it.

    Without any difference it is 1. Source: Conover, Practical Nonparametric Statistics, 3.4.
    """
    n, fewer = n_higher + n_lower, min(n_higher, n_lower)
    return min(1.0, 2 * float(require("scipy.special", "rate").bdtr(fewer, n, 0.5))) if n else 1.0


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


def _same_length(arms: Sequence[Arm]) -> Floats:
    table = [np.asarray(arm, dtype=np.float64) for arm in arms]
    if len({len(row) for row in table}) != 1:
        raise ValueError("every arm needs one value per item")
    if len(table) < 2:
        raise ValueError("needs two arms")
    return np.stack(table)


def chi2_tail(statistic: float, df: int) -> float:
    return float(require("scipy.special", "rate").chdtrc(df, max(statistic, 0.0)))


def _no_result(name: str, n: int, reason: str) -> TestResult:
    return TestResult(name=name, statistic=None, p=None, n=n, reason=reason)


def tie_term(values: Values) -> float:
    """The sum of t^3 - t over groups of t equal values, as tie corrections need it."""
    counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)[1]
    return float((counts.astype(np.float64) ** 3 - counts).sum())


def kendall_w(cells: Cells) -> Coefficient:
    """Kendall's W of concordance with the correction for ties. Source: Kendall & Gibbons 1990."""
    table = as_table(cells)
    table = table[:, ~np.isnan(table).any(axis=0)]
    m, n = table.shape
    if m < 2 or n < 2:
        return undefined("kendall_w", "needs two raters and two items rated by all", n, m * n)
    ranked = require("scipy.stats", "rate").rankdata(table, axis=1)
    spread = float(((ranked.sum(axis=0) - m * (n + 1) / 2) ** 2).sum())
    below = m**2 * (n**3 - n) - m * sum(tie_term(row) for row in table)
    if below <= 0:
        return undefined("kendall_w", NO_VARIATION, n, m * n)
    return Coefficient(name="kendall_w", value=12 * spread / below, n_items=n, n_ratings=m * n)


def spearman_rho(
    first: Values, second: Values, *, clusters: Sequence[Hashable] | None = None
) -> Coefficient:
    """Spearman's rank correlation with its interval. Gaps are passed over pairwise.

    Args:
        clusters: what each pair of values belongs to, such as its question; clusters are random.
    """
    table, names = kept_items(as_table([list(first), list(second)]), clusters, 2)
    n = table.shape[1]
    if n < 2:
        return undefined("spearman", "needs two pairs", n, 2 * n)
    if np.ptp(table[0]) == 0 or np.ptp(table[1]) == 0:
        return undefined("spearman", "no variation on one side", n, 2 * n)

    def statistic(some: Floats, weights: Floats) -> Floats:
        return np.array([_rho(some[:, row > 0]) for row in weights])

    value = _rho(table)
    spread = crossed_spread(statistic, table, names)
    interval = correlation_interval(value, spread)
    usual = max(int(np.unique(row, return_counts=True)[1].max()) for row in table)
    if interval.reason is None and usual > MOST_ALIKE * n and n - usual < FEWEST_UNLIKE:
        reason = f"{usual} of {n} have the same value; an interval needs {FEWEST_UNLIKE} others"
        interval = Interval(None, None, reason, 0)
    return measured("spearman", value, interval, spread, (n, 2 * n))


def _rho(table: Floats) -> float:
    ranks = require("scipy.stats", "rate").rankdata(table, axis=1)
    a, b = ranks - ranks.mean(axis=1, keepdims=True)
    below = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / below if below > 0 else math.nan
