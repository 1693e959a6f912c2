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
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from cbtqa.errors import require
from cbtqa.statistics.resampling import DEFAULT_SEED, Floats, Interval

CONFIDENCE = 0.95
SHORT_SCALE = 10
"""A scale of no more than so many steps from end to end gets the interval of a short scale."""
MANY = 500
"""Above so many items the ends of a short scale no longer move the interval."""
N_DRAWS = 2_000
LEAST = 1e-9
"""Nearer to the end of its scale than this a score is taken as this near: a logit needs room."""
MOST_EXPONENT = 700.0
FEWEST_LEFT_OUT = 3
"""Clusters of a jackknife interval: on two, that of BLEU of short answers covers .90."""
MOST_STRETCHED = 1.25
"""Skewness moves an end of a t interval outwards only, by no more than this. As it comes out of few
items it made one interval in ten of ten BLEU scores four times too wide (21 [10, 97]), and those of
heavy-tailed differences too narrow (.91 at 100)."""
END_WEIGHT = 0.5
"""Of one observation at each end of a short scale; on 0 and 1 alone it gives Jeffreys' interval."""


@lru_cache(256)
def t_quantile(df: float) -> float:
    """How many standard errors a two-sided 95 % interval reaches; infinite degrees give 1.96."""
    share = (1 + CONFIDENCE) / 2
    if math.isinf(df):
        return NormalDist().inv_cdf(share)  # shares need no scipy: cards and reports show them
    special = require("scipy.special", "metrics")  # fifty times as fast as scipy.stats, same digits
    return float(special.stdtrit(df, share))


def t_tail(statistic: float, df: float) -> float:
    """Two-sided p of a t statistic."""
    return float(2 * require("scipy.special", "metrics").stdtr(df, -abs(statistic)))


def f_tail(statistic: float, df_numerator: float, df_denominator: float) -> float:
    """Upper p of an F statistic."""
    special = require("scipy.special", "metrics")
    return float(special.fdtrc(df_numerator, df_denominator, statistic))


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
    # the jackknife: a large cluster pulls the mean its own way, so its rest looks too small
    rest = (hits - mean * sizes) / (n - sizes)
    variance = (n_clusters - 1) / n_clusters * float(rest @ rest)
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

    The t interval, with clusters by their sums (the ratio estimator, `effective_number` less one
    degrees of freedom). It is as wide as its few items make it and ends where the scale ends. On a
    scale of `SHORT_SCALE` steps or fewer each end lies no further in than that of a Bayesian
    bootstrap with half an observation at each end of the scale: t is far too sure where nearly all
    items have the same rating.

    Args:
        scale: the least and greatest value there can be.
        clusters: what each value belongs to, such as its question; clusters are drawn.

    Source: cluster sums, Cochran, Sampling Techniques, ch. 9; Bayesian bootstrap, Rubin 1981.
    """
    given = np.asarray(values, dtype=np.float64)
    names = list(range(len(given))) if clusters is None else list(clusters)
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    place = np.array([number[name] for name in names], dtype=np.int64)
    sums, sizes = (
        np.bincount(place, weights=one).astype(np.float64) for one in (given, np.ones_like(given))
    )
    return ratio_interval(sums, sizes, scale=scale, word="item" if clusters is None else "cluster")


def ratio_interval(
    sums: Floats,
    sizes: Floats,
    *,
    scale: tuple[float, float] | None = None,
    word: str = "cluster",
) -> Interval:
    """`mean_interval` of clusters whose values are added up already: sums by sizes.

    A share of labels, such as an F1, is one too: twice the hits by hits and misses. A cluster of
    size 0 says nothing and is left out. Clusters of unequal size are as few as their sizes make
    them (`effective_number`).
    """
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    n = len(sums)
    is_short = scale is not None and scale[1] - scale[0] <= SHORT_SCALE and n <= MANY
    if n < 2:
        return Interval(None, None, f"rests on {n} {word}{'' if n == 1 else 's'}", 0)
    mean = sums.sum() / sizes.sum()
    rest = sums - mean * sizes
    se = math.sqrt(n / (n - 1) * float(rest @ rest)) / float(sizes.sum())
    if se <= 1e-12 * max(1.0, abs(mean)) and not is_short:
        return Interval(None, None, f"all {n} are alike: their spread is not known", 0)
    half = t_quantile(max(1.0, effective_number(sizes) - 1)) * se
    low, high = float(mean - half), float(mean + half)
    if scale is not None and is_short:
        inner = _short_scale_interval(sums, sizes, scale)
        low, high = min(low, inner[0]), max(high, inner[1])
    if scale is not None:
        low, high = max(low, float(scale[0])), min(high, float(scale[1]))
    return Interval(low, high, None, 0)


def effective_number(sizes: Floats) -> float:
    """How many clusters of equal size say as much as these; their number where sizes are equal.

    One cluster of 30 rows among nine of three is half of all that is known: t with nine degrees
    of freedom covers .90 then. Source: Kish, Survey Sampling, 1965.
    """
    return float(sizes.sum() ** 2 / (sizes @ sizes))


def jackknife_interval(
    score: float,
    left_out: Floats,
    sizes: Floats,
    *,
    scale: tuple[float, float] = (-math.inf, math.inf),
    word: str = "question",
) -> Interval:
    """The t interval of any smooth score of independent clusters, such as a corpus BLEU.

    Its standard error is the jackknife's. Between a scale's ends it is taken on the logit of the
    score, above 0 on its logarithm, so that no end lies off the scale. Where what the clusters add
    is skewed the end on its long side reaches further, by a quarter at most.

    Args:
        score: of all clusters.
        left_out: the score without each of them.
        sizes: how much each weighs in the score, such as its rows or the length of its texts.
        scale: ends of the score, or infinite; a difference has none.
        word: what is drawn.

    Source: Efron and Tibshirani 1993, ch. 11; Hall 1992, J. Roy. Stat. Soc. B 54, for the
    skewness; degrees of freedom by `effective_number`.
    """
    n = len(left_out)
    if n < FEWEST_LEFT_OUT:
        reason = f"rests on {n} {word}{'' if n == 1 else 's'}, fewer than {FEWEST_LEFT_OUT}"
        return Interval(None, None, reason, 0)
    if np.isnan(left_out).any():
        return Interval(None, None, f"undefined without one of its {word}s", 0)
    if np.ptp(left_out) <= 1e-12 * max(1.0, abs(score)):
        return Interval(None, None, f"all {n} {word}s are alike: their spread is not known", 0)
    if any(np.abs(left_out - end).min() <= LEAST for end in scale if not math.isinf(end)):
        # its logit would be that of LEAST, and the interval the whole scale
        return Interval(None, None, f"without one {word} it is at an end of its scale", 0)
    without = _unbounded(left_out, scale)
    rest = without.mean() - without  # of a cluster that raises the score above 0
    variance = float(rest @ rest) / n
    se = math.sqrt((n - 1) * variance)
    # of clusters of unequal size the largest decide the third moment: it is as known as they are
    n_alike = effective_number(sizes)
    skewness = float((rest**3).mean()) / variance**1.5 / n * math.sqrt(n_alike)
    t = t_quantile(max(1.0, n_alike - 1))
    middle = float(_unbounded(np.array([score]), scale)[0])
    low, high = (middle - se * _unskewed(end, skewness) for end in (t, -t))
    return Interval(_bounded(low, scale), _bounded(high, scale), None, 0)


def _unskewed(t: float, skewness: float) -> float:
    """Hall's cubic transformation of t, turned round, between t and `MOST_STRETCHED` times t.

    Args:
        skewness: by the root of n.
    """
    if abs(skewness) < LEAST:
        return t
    turned = 3 / skewness * (math.cbrt(1 + skewness * (t - skewness / 6)) - 1)
    return math.copysign(min(max(abs(turned), abs(t)), MOST_STRETCHED * abs(t)), t)


def _unbounded(scores: Floats, scale: tuple[float, float]) -> Floats:
    low, high = scale
    if math.isinf(low):
        return scores
    above = np.maximum(scores - low, LEAST)
    if math.isinf(high):
        return np.asarray(np.log(above))
    return np.asarray(np.log(above / np.maximum(high - scores, LEAST * (high - low))))


def _bounded(value: float, scale: tuple[float, float]) -> float:
    """The score whose `_unbounded` is this."""
    low, high = scale
    if math.isinf(low):
        return value
    if math.isinf(high):
        return low + math.exp(min(value, MOST_EXPONENT))
    return low + (high - low) / (1 + math.exp(min(-value, MOST_EXPONENT)))


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
