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
from cbtqa.statistics.agreement import Floats
from cbtqa.statistics.ranks import kendall_w, ranks, tie_term

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
