"""Intraclass correlation: how much of the spread of ratings lies between the items.

    intraclass_correlation(table, "A").value          # one rater's absolute agreement, ICC(2,1)
    intraclass_correlation(table, "A", of_mean=True)  # the mean of all raters, ICC(2,k)

A table is `(raters, items)` without gaps; see `agreement` for coefficients without value.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from cbtqa.errors import require
from cbtqa.statistics.agreement import (
    FEWEST_ITEMS,
    NO_VARIATION,
    TOO_FEW,
    Cells,
    Coefficient,
    Floats,
    as_table,
    measured,
    undefined,
)
from cbtqa.statistics.intervals import CONFIDENCE
from cbtqa.statistics.jackknife import Spread, Unit, crossed_spread, interval_below_one
from cbtqa.statistics.resampling import Interval

IccForm = Literal["1", "A", "C"]


def intraclass_correlation(
    cells: Cells,
    form: IccForm = "A",
    *,
    of_mean: bool = False,
    clusters: Sequence[Hashable] | None = None,
) -> Coefficient:
    """ICC with its 95 % interval, for one rating or for the mean of all raters.

    Of independent items the interval is that of normal ratings, items and (in form `A`) raters
    random. With clusters it is that of the jackknife, clusters random and, from three on, raters.

    Args:
        form: `1` one-way (raters differ from item to item), `A` two-way absolute agreement (what
            is often called ICC2), `C` two-way consistency (ICC3).
        of_mean: the reliability of the mean of the k raters instead of a single one.
        clusters: what each item belongs to, such as the question that an answer is for; None where
            every item stands for itself.

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
    squares = _mean_squares(table, form)
    if sum(squares) <= 1e-12:
        return undefined(name, NO_VARIATION, n, n_ratings)
    single = _single(table, form)
    value = _of_mean(single, k) if of_mean else single
    if math.isnan(value):
        reason = "raters disagree more than items differ; the reliability of a mean is undefined"
        return undefined(name, reason, n, n_ratings)
    if n < FEWEST_ITEMS:
        return undefined(name, TOO_FEW, n, n_ratings)
    if clusters is None:
        units: tuple[Unit, ...] = ("items", "raters") if form == "A" else ("items",)
        spread = Spread(0.0, n - 1, n, units)
        interval = _interval(form, single, (n, k), squares)
    else:
        spread = crossed_spread(
            lambda some, weights: np.array([_single(some[:, row > 0], form) for row in weights]),
            table,
            clusters,
            are_raters_random=form != "1",
        )
        interval = interval_below_one(single, spread)
    if of_mean and interval.low is not None and interval.high is not None:
        low, high = (_of_mean(end, k) for end in (interval.low, interval.high))
        low, high = (-1.0 if math.isnan(end) else max(-1.0, end) for end in (low, high))
        interval = Interval(low, high, None, 0)
    return measured(name, value, interval, spread, (n, n_ratings))


def _mean_squares(table: Floats, form: IccForm) -> tuple[float, float, float]:
    """Of items, of raters, and of what is noise in this form."""
    k, n = table.shape
    grand = table.mean()
    ss_rows = k * ((table.mean(axis=0) - grand) ** 2).sum()
    ss_columns = n * ((table.mean(axis=1) - grand) ** 2).sum()
    # rounding may leave -1e-16
    ss_error = max(((table - grand) ** 2).sum() - ss_rows - ss_columns, 0.0)
    error = ss_error / ((n - 1) * (k - 1))
    noise = (ss_columns + ss_error) / (n * (k - 1)) if form == "1" else error
    return float(ss_rows / (n - 1)), float(ss_columns / (k - 1)), float(noise)


def _single(table: Floats, form: IccForm) -> float:
    """The reliability of one rating; NaN where it is undefined."""
    k, n = table.shape
    rows, columns, noise = _mean_squares(table, form)
    below = rows + (k - 1) * noise + (k / n * (columns - noise) if form == "A" else 0)
    return (rows - noise) / below if below > 1e-12 else math.nan


def _interval(
    form: IccForm, single: float, shape: tuple[int, int], squares: tuple[float, float, float]
) -> Interval:
    """The interval of a single rating from the mean squares of items, raters and noise."""
    f_distribution = require("scipy.stats", "rate").f
    (n, k), (rows, columns, noise) = shape, squares
    tail = (1 - CONFIDENCE) / 2
    if noise <= 1e-12 or single >= 1:
        return Interval(None, None, "no noise between raters: its spread is not known", 0)
    if form != "A":
        df = n * (k - 1) if form == "1" else (n - 1) * (k - 1)
        low = rows / noise / f_distribution.isf(tail, n - 1, df)
        high = rows / noise * f_distribution.isf(tail, df, n - 1)
        low, high = ((one - 1) / (one + k - 1) for one in (low, high))
    else:
        a = k * single / (n * (1 - single)) * columns
        b = (1 + k * single * (n - 1) / (n * (1 - single))) * noise
        freedom = (a + b) ** 2 / (a**2 / (k - 1) + b**2 / ((n - 1) * (k - 1)))
        rest = k * columns + (k * n - k - n) * noise
        f_low = f_distribution.isf(tail, n - 1, freedom)
        f_high = f_distribution.isf(tail, freedom, n - 1)
        low = n * (rows - f_low * noise) / (f_low * rest + n * rows)
        high = n * (f_high * rows - noise) / (rest + n * f_high * rows)
    return Interval(max(-1.0, float(low)), min(1.0, float(high)), None, 0)


def _of_mean(single: float, k: int) -> float:
    """Reliability of the mean of k ratings; NaN where the single one is too negative."""
    if math.isnan(single) or 1 + (k - 1) * single <= 0:
        return math.nan
    return k * single / (1 + (k - 1) * single)
