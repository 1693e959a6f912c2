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
    Cells,
    Coefficient,
    Floats,
    as_table,
    estimate_below_one,
    is_short_scale,
    measured,
    undefined,
)
from cbtqa.statistics.intervals import CONFIDENCE
from cbtqa.statistics.jackknife import Spread, Unit
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

    Of independent items with many values the interval is that of normal ratings, items and (in form
    `A`) raters random. On a scale of few points, where that covers .75 near the ceiling, and with
    clusters it is that of the jackknife: items or clusters random and, from three on, raters.

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
    ones = np.ones((1, n))
    rows, columns, noise = (float(one[0]) for one in _mean_squares(table, ones, form))
    if rows + columns + noise <= 1e-12:
        return undefined(name, NO_VARIATION, n, n_ratings)
    single = float(_single(table, ones, form)[0])
    if math.isnan(_of_mean(single, k) if of_mean else single):
        reason = "raters disagree more than items differ; the reliability of a mean is undefined"
        return undefined(name, reason, n, n_ratings)

    def statistic(some: Floats, weights: Floats) -> Floats:
        return _single(some, weights, form)

    if clusters is None and not is_short_scale(table) and n >= FEWEST_ITEMS:
        units: tuple[Unit, ...] = ("items", "raters") if form == "A" else ("items",)
        interval = _interval(form, single, (n, k), (rows, columns, noise))
        found = measured(name, single, interval, Spread(0.0, n - 1, n, units), (n, n_ratings))
    else:
        found = estimate_below_one(name, statistic, table, clusters)
    return _for_mean(found, k) if of_mean else found


def _for_mean(single: Coefficient, k: int) -> Coefficient:
    """From the reliability of one rating that of the mean of k; the interval not below -1."""
    ends = (single.value, single.low, single.high)
    value, low, high = (None if one is None else _of_mean(one, k) for one in ends)
    low = None if low is None else max(-1.0, low)  # NaN gives -1
    return single.model_copy(update={"value": value, "low": low, "high": high})


def _mean_squares(table: Floats, weights: Floats, form: IccForm) -> tuple[Floats, Floats, Floats]:
    """Of items, of raters, and of what is noise in this form, for each row of item weights."""
    k, n = len(table), weights.sum(axis=1)
    centred = table - table.mean()
    of_items = centred.mean(axis=0)
    grand = weights @ of_items / n
    ss_rows = k * (weights @ of_items**2 - n * grand**2)
    ss_columns = n * ((weights @ centred.T / n[:, None] - grand[:, None]) ** 2).sum(axis=1)
    total = weights @ (centred**2).sum(axis=0) - n * k * grand**2
    # rounding may leave -1e-16
    ss_error = np.maximum(total - ss_rows - ss_columns, 0.0)
    error = ss_error / ((n - 1) * (k - 1))
    noise = (ss_columns + ss_error) / (n * (k - 1)) if form == "1" else error
    return ss_rows / (n - 1), ss_columns / (k - 1), noise


def _single(table: Floats, weights: Floats, form: IccForm) -> Floats:
    """The reliability of one rating for each row of item weights; NaN where it is undefined."""
    k, n = len(table), weights.sum(axis=1)
    if k < 2:
        return np.full(len(n), np.nan)
    rows, columns, noise = _mean_squares(table, weights, form)
    below = rows + (k - 1) * noise + (k / n * (columns - noise) if form == "A" else 0)
    is_defined = below > 1e-12
    found: Floats = np.full(len(n), np.nan)
    np.divide(rows - noise, below, out=found, where=is_defined)
    return found


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
