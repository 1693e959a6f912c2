"""95 % intervals of means and shares that hold their level on few items, and at a scale's ends.

    mean_interval([2, 2, 1, 2, 2], scale=(0, 2))       # low 1.11, high 2.00
    share_interval(9, 10)                              # low 0.60, high 0.98
    mean_interval(values, clusters=question_ids)       # questions are random, not their answers

A percentile bootstrap of 2 to 10 items covers .50 to .88 of what it says; its place here is taken
by the t interval, on the short scale of a rating together with the Bayesian bootstrap below. What
is random and what is fixed in each interval of the product: docs/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from cbtqa.errors import require
from cbtqa.statistics.resampling import DEFAULT_SEED, Floats, Interval

CONFIDENCE = 0.95
SHORT_SCALE = 10
"""A scale of no more than so many steps from end to end gets the interval of a short scale."""
MANY = 500
"""Above so many items the ends of a short scale no longer move the interval."""
N_DRAWS = 2_000
END_WEIGHT = 0.5
"""Of one observation at each end of a short scale; on 0 and 1 alone it gives Jeffreys' interval."""


def t_quantile(df: float) -> float:
    """How many standard errors a two-sided 95 % interval reaches; infinite degrees give 1.96."""
    stats = require("scipy.stats", "metrics")
    tail = (1 - CONFIDENCE) / 2
    return float(stats.norm.isf(tail) if math.isinf(df) else stats.t.isf(tail, df))


def t_tail(statistic: float, df: float) -> float:
    """Two-sided p of a t statistic."""
    stats = require("scipy.stats", "metrics")
    return float(2 * stats.t.sf(abs(statistic), df))


def f_tail(statistic: float, df_numerator: float, df_denominator: float) -> float:
    """Upper p of an F statistic."""
    stats = require("scipy.stats", "metrics")
    return float(stats.f.sf(statistic, df_numerator, df_denominator))


def share_interval(n_hits: float, n: float) -> Interval:
    """Wilson's interval of a share of independent items; none without items.

    Of items in clusters both numbers may be those of `effective_size`.

    Source: Wilson 1927; recommended for small n by Brown, Cai and DasGupta 2001.
    """
    if n == 0:
        return Interval(None, None, "no items", 0)
    z = t_quantile(math.inf)
    middle = (n_hits + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(n_hits * (n - n_hits) / n + z**2 / 4)
    return Interval(max(0.0, middle - half), min(1.0, middle + half), None, 0)


def effective_size(hits: Floats, sizes: Floats) -> float:
    """How many independent items a share of items in clusters is worth, at most as many as it has.

    The t quantile of the clusters less one is part of it, so that `share_interval` of the share
    and this number has the clustered interval. Where all items or none are hits each cluster
    counts once. Clusters that are one item each are worth their number; a single cluster of
    several items is worth nothing.

    Args:
        hits, sizes: of each cluster; sizes of 0 do not count.

    Source: Korn and Graubard, Survey Methodology 24 (1998), 193-201.
    """
    counted = sizes > 0
    hits, sizes = hits[counted], sizes[counted]
    n_clusters, n = len(sizes), float(sizes.sum())
    if n_clusters == 0 or sizes.max() <= 1:
        return n
    if n_clusters == 1:
        return 0.0
    mean = float(hits.sum()) / n
    rest = hits - mean * sizes
    variance = n_clusters / (n_clusters - 1) * float(rest @ rest) / n**2
    worth = float(n_clusters)
    if 0 < mean < 1:
        worth = min(n, mean * (1 - mean) / variance) if variance > 0 else n
    return worth * (t_quantile(math.inf) / t_quantile(n_clusters - 1)) ** 2


def mean_interval(
    values: Sequence[float] | Floats,
    *,
    scale: tuple[float, float] | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """The interval of a mean of independent values, or of values in independent clusters.

    The t interval, with clusters by their sums (the ratio estimator, clusters less one degree of
    freedom). It is as wide as its few items make it and ends where the scale ends. On a scale of
    `SHORT_SCALE` steps or fewer each end lies no further in than that of a Bayesian bootstrap with
    half an observation at each end of the scale: t is far too sure where nearly all items have
    the same rating.

    Args:
        scale: the least and greatest value there can be.
        clusters: what each value belongs to, such as its question; clusters are drawn.

    Source: cluster sums, Cochran, Sampling Techniques, ch. 9; Bayesian bootstrap, Rubin 1981.
    """
    given = np.asarray(values, dtype=np.float64)
    names = list(range(len(given))) if clusters is None else list(clusters)
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    place = np.array([number[name] for name in names], dtype=np.int64)
    sums, sizes = (np.bincount(place, weights=one) for one in (given, np.ones_like(given)))
    n = len(sums)
    is_short = scale is not None and scale[1] - scale[0] <= SHORT_SCALE and n <= MANY
    if n < 2:
        word = "item" if clusters is None else "cluster"
        return Interval(None, None, f"rests on {n} {word}{'' if n == 1 else 's'}", 0)
    mean = sums.sum() / sizes.sum()
    rest = sums - mean * sizes
    se = math.sqrt(n / (n - 1) * float(rest @ rest)) / float(sizes.sum())
    if se <= 1e-12 * max(1.0, abs(mean)) and not is_short:
        return Interval(None, None, f"all {n} are alike: their spread is not known", 0)
    half = t_quantile(n - 1) * se
    low, high = float(mean - half), float(mean + half)
    if scale is not None and is_short:
        inner = _short_scale_interval(sums.astype(np.float64), sizes.astype(np.float64), scale)
        low, high = min(low, inner[0]), max(high, inner[1])
    if scale is not None:
        low, high = max(low, float(scale[0])), min(high, float(scale[1]))
    return Interval(low, high, None, 0)


def _short_scale_interval(
    sums: Floats, sizes: Floats, scale: tuple[float, float]
) -> tuple[float, float]:
    """Quantiles of the mean under random weights of the clusters and of the scale's two ends."""
    rng = np.random.default_rng(DEFAULT_SEED)
    weights = rng.standard_exponential((N_DRAWS, len(sums)))
    ends = rng.gamma(END_WEIGHT, size=(N_DRAWS, 2)) * float(sizes.mean())
    drawn = (weights @ sums + ends @ np.array(scale)) / (weights @ sizes + ends.sum(axis=1))
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
