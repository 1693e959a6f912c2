"""Intraclass correlation: how much of the spread of ratings lies between the items.

    intraclass_correlation(table, "A").value          # one rater's absolute agreement, ICC(2,1)
    intraclass_correlation(table, "A", of_mean=True)  # the mean of all raters, ICC(2,k)

A table is `(raters, items)` without gaps; `agreement` says what a coefficient without value means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cbtqa.errors import MissingExtraError
from cbtqa.statistics.agreement import (
    CONFIDENCE,
    NO_VARIATION,
    Cells,
    Coefficient,
    Floats,
    as_table,
    undefined,
)

IccForm = Literal["1", "A", "C"]


@dataclass(frozen=True)
class _Anova:
    """Mean squares of a complete table of `n` items and `k` raters."""

    n: int
    k: int
    rows: float
    columns: float
    error: float
    within: float


def intraclass_correlation(
    cells: Cells, form: IccForm = "A", *, of_mean: bool = False
) -> Coefficient:
    """ICC with its 95 % interval, for one rating or for the mean of all raters.

    Args:
        form: `1` one-way (raters differ from item to item), `A` two-way absolute agreement (what
            is often called ICC2), `C` two-way consistency (ICC3).
        of_mean: the reliability of the mean of the k raters instead of a single one.

    Raises:
        MissingExtraError: scipy, whose F quantiles make the interval, is not installed.

    Source: McGraw & Wong 1996, tables 4 and 7.
    """
    table = as_table(cells)
    name = f"icc_{form}_{'k' if of_mean else '1'}"
    n_ratings = int((~np.isnan(table)).sum())
    if np.isnan(table).any():
        n_gaps = int(np.isnan(table).any(axis=0).sum())
        reason = f"{n_gaps} of {table.shape[1]} items lack a rating; the ICC wants a full table"
        return undefined(name, reason, table.shape[1], n_ratings)
    if table.shape[0] < 2 or table.shape[1] < 2:
        return undefined(name, "needs two raters and two items", table.shape[1], n_ratings)
    anova = _mean_squares(table)
    if anova.rows + anova.columns + anova.error <= 1e-12:
        return undefined(name, NO_VARIATION, anova.n, n_ratings)
    single = _single_icc(anova, form)
    low, high = _single_icc_interval(anova, form, single)
    if of_mean:
        single, low, high = (_spearman_brown(r, anova.k) for r in (single, low, high))
    if single is None:
        reason = "raters disagree more than items differ; the reliability of a mean is undefined"
        return undefined(name, reason, anova.n, n_ratings)
    return Coefficient(
        name=name, value=single, low=low, high=high, n_items=anova.n, n_ratings=n_ratings
    )


def _mean_squares(table: Floats) -> _Anova:
    k, n = table.shape
    grand = table.mean()
    rows = k * ((table.mean(axis=0) - grand) ** 2).sum()
    columns = n * ((table.mean(axis=1) - grand) ** 2).sum()
    total = ((table - grand) ** 2).sum()
    error = max(total - rows - columns, 0.0)  # rounding may leave -1e-16
    return _Anova(
        n=n,
        k=k,
        rows=float(rows / (n - 1)),
        columns=float(columns / (k - 1)),
        error=float(error / ((n - 1) * (k - 1))),
        within=float((columns + error) / (n * (k - 1))),
    )


def _single_icc(anova: _Anova, form: IccForm) -> float | None:
    n, k = anova.n, anova.k
    noise = anova.within if form == "1" else anova.error
    below = anova.rows + (k - 1) * noise
    if form == "A":
        below += k / n * (anova.columns - anova.error)
    return (anova.rows - noise) / below if below > 0 else None


def _single_icc_interval(
    anova: _Anova, form: IccForm, single: float | None
) -> tuple[float | None, float | None]:
    try:
        from scipy.stats import f as f_distribution
    except ModuleNotFoundError:
        raise MissingExtraError("scipy", "rate") from None
    n, k = anova.n, anova.k
    tail = (1 - CONFIDENCE) / 2
    noise = anova.within if form == "1" else anova.error
    if single is None or noise <= 0:
        return None, None
    if form != "A":
        df = n * (k - 1) if form == "1" else (n - 1) * (k - 1)
        ratio = anova.rows / noise
        low = ratio / f_distribution.isf(tail, n - 1, df)
        high = ratio * f_distribution.isf(tail, df, n - 1)
        return float((low - 1) / (low + k - 1)), float((high - 1) / (high + k - 1))
    a = k * single / (n * (1 - single))
    b = 1 + k * single * (n - 1) / (n * (1 - single))
    spread = (a * anova.columns + b * anova.error) ** 2
    freedom = spread / (
        (a * anova.columns) ** 2 / (k - 1) + (b * anova.error) ** 2 / ((n - 1) * (k - 1))
    )
    rest = k * anova.columns + (k * n - k - n) * anova.error
    f_low = f_distribution.isf(tail, n - 1, freedom)
    f_high = f_distribution.isf(tail, freedom, n - 1)
    low = n * (anova.rows - f_low * anova.error) / (f_low * rest + n * anova.rows)
    high = n * (f_high * anova.rows - anova.error) / (rest + n * f_high * anova.rows)
    return float(low), float(high)


def _spearman_brown(single: float | None, k: int) -> float | None:
    """Reliability of the mean of k ratings; None where the single one is too negative."""
    if single is None or 1 + (k - 1) * single <= 0:
        return None
    return k * single / (1 + (k - 1) * single)
