"""Intraclass correlation: how much of the spread of ratings lies between the items.

    intraclass_correlation(table, "A").value          # one rater's absolute agreement, ICC(2,1)
    intraclass_correlation(table, "A", of_mean=True)  # the mean of all raters, ICC(2,k)

A table is `(raters, items)` without gaps; see `agreement` for coefficients without value.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from cbtqa.errors import require
from cbtqa.statistics.agreement import (
    NO_VARIATION,
    Cells,
    Coefficient,
    as_table,
    undefined,
)
from cbtqa.statistics.intervals import CONFIDENCE

IccForm = Literal["1", "A", "C"]


def intraclass_correlation(
    cells: Cells, form: IccForm = "A", *, of_mean: bool = False
) -> Coefficient:
    """ICC with its 95 % interval, for one rating or for the mean of all raters.

    Args:
        form: `1` one-way (raters differ from item to item), `A` two-way absolute agreement (what
            is often called ICC2), `C` two-way consistency (ICC3).
        of_mean: the reliability of the mean of the k raters instead of a single one.

    Source: McGraw & Wong 1996, tables 4 and 7.
    """
    table = as_table(cells)
    name = f"icc_{form}_{'k' if of_mean else '1'}"
    k, n = table.shape
    n_ratings = int((~np.isnan(table)).sum())
    if n_gaps := int(np.isnan(table).any(axis=0).sum()):
        reason = f"{n_gaps} of {n} items lack a rating; the ICC wants a full table"
        return undefined(name, reason, n, n_ratings)
    if k < 2 or n < 2:
        return undefined(name, "needs two raters and two items", n, n_ratings)
    grand = table.mean()
    ss_rows = k * ((table.mean(axis=0) - grand) ** 2).sum()
    ss_columns = n * ((table.mean(axis=1) - grand) ** 2).sum()
    # rounding may leave -1e-16
    ss_error = max(((table - grand) ** 2).sum() - ss_rows - ss_columns, 0.0)
    rows, columns = float(ss_rows / (n - 1)), float(ss_columns / (k - 1))
    error = float(ss_error / ((n - 1) * (k - 1)))
    if rows + columns + error <= 1e-12:
        return undefined(name, NO_VARIATION, n, n_ratings)
    noise = float((ss_columns + ss_error) / (n * (k - 1))) if form == "1" else error
    below = rows + (k - 1) * noise + (k / n * (columns - error) if form == "A" else 0)
    found: tuple[float | None, ...] = (None, None, None)
    if below > 0:
        single = (rows - noise) / below
        found = (single, *_interval(form, single, (n, k), (rows, columns, noise)))
    value, low, high = (_spearman_brown(one, k) for one in found) if of_mean else found
    if value is None:
        reason = "raters disagree more than items differ; the reliability of a mean is undefined"
        return undefined(name, reason, n, n_ratings)
    return Coefficient(name=name, value=value, low=low, high=high, n_items=n, n_ratings=n_ratings)


def _interval(
    form: IccForm, single: float, shape: tuple[int, int], squares: tuple[float, float, float]
) -> tuple[float | None, float | None]:
    """The interval of a single rating from the mean squares of items, raters and noise."""
    f_distribution = require("scipy.stats", "rate").f
    (n, k), (rows, columns, noise) = shape, squares
    tail = (1 - CONFIDENCE) / 2
    if noise <= 0:
        return None, None
    if form != "A":
        df = n * (k - 1) if form == "1" else (n - 1) * (k - 1)
        low = rows / noise / f_distribution.isf(tail, n - 1, df)
        high = rows / noise * f_distribution.isf(tail, df, n - 1)
        return float((low - 1) / (low + k - 1)), float((high - 1) / (high + k - 1))
    a = k * single / (n * (1 - single)) * columns
    b = (1 + k * single * (n - 1) / (n * (1 - single))) * noise
    freedom = (a + b) ** 2 / (a**2 / (k - 1) + b**2 / ((n - 1) * (k - 1)))
    rest = k * columns + (k * n - k - n) * noise
    f_low = f_distribution.isf(tail, n - 1, freedom)
    f_high = f_distribution.isf(tail, freedom, n - 1)
    low = n * (rows - f_low * noise) / (f_low * rest + n * rows)
    high = n * (f_high * rows - noise) / (rest + n * f_high * rows)
    return float(low), float(high)


def _spearman_brown(single: float | None, k: int) -> float | None:
    """Reliability of the mean of k ratings; None where the single one is too negative."""
    if single is None or 1 + (k - 1) * single <= 0:
        return None
    return k * single / (1 + (k - 1) * single)
