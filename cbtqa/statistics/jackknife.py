"""How far a coefficient would differ with other questions, and with other raters.

    spread = crossed_spread(statistic, table, clusters)   # standard error, degrees of freedom
    interval_below_one(alpha, spread)                     # for 1 less a ratio: alpha, kappa, AC

A jackknife leaves out every cluster (the question that items belong to, or the item itself), and
from `FEWEST_RATERS` raters every rater as well. The rater's part counts only as far as it is larger
than what the choice of questions alone would make of it; degrees of freedom after Satterthwaite.
Below `FEWEST_CLUSTERS` clusters there is no interval. Two raters are fixed: the interval is about
these two on other questions.

Source: Efron and Stein 1981; two crossed random factors as in Owen, The pigeonhole bootstrap, 2007,
with the part counted twice taken off; Satterthwaite 1946.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cbtqa.statistics.intervals import CONFIDENCE, t_quantile
from cbtqa.statistics.resampling import DEFAULT_SEED, Floats, Interval

Unit = Literal["items", "clusters", "raters"]
Statistic = Callable[[Floats, Floats], Floats]
"""Values of a coefficient from a table `(raters, items)` under rows of weights of the items
`(replicates, items)`; NaN where it is undefined."""
FEWEST_CLUSTERS = 5
"""Below this many clusters there is no interval."""
FEWEST_RATERS = 3
"""From this many raters on they are random; below they are fixed."""
MOST_GROUPS = 200
"""More clusters than this are left out in so many groups, drawn at random."""


@dataclass(frozen=True)
class Spread:
    """The standard error of a coefficient, or the reason why there is none."""

    se: float
    df: float
    n_clusters: int
    random: tuple[Unit, ...]
    """What would differ in another study; all else is fixed."""
    reason: str | None = None


def crossed_spread(
    statistic: Statistic,
    table: Floats,
    clusters: Sequence[Hashable] | None = None,
    *,
    are_raters_random: bool = True,
) -> Spread:
    """The spread of a coefficient over clusters of items and, where there are enough, raters.

    Args:
        table: `(raters, items)`, NaN in the gaps; items that do not enter the coefficient left out.
        clusters: what each item belongs to, such as its question; None where items are independent.
        are_raters_random: False for coefficients of named raters, such as the kappa of a pair.
    """
    units: tuple[Unit, ...] = ("items",) if clusters is None else ("clusters",)
    group, n = _groups(table.shape[1], clusters)
    if n < FEWEST_CLUSTERS:
        word = units[0] if n != 1 else units[0][:-1]
        reason = f"rests on {n} {word}; an interval needs {FEWEST_CLUSTERS}"
        return Spread(math.nan, math.nan, n, units, reason)
    n_groups = int(group.max()) + 1
    weights = np.ones((n_groups + 1, table.shape[1]))
    weights[group + 1, np.arange(table.shape[1])] = 0.0
    left_out = statistic(table, weights)[1:]
    if np.isnan(left_out).any():
        reason = f"all variation rests on one of {n} {units[0]}"
        return Spread(math.nan, math.nan, n, units, reason)
    v_items, df_items = _variance(left_out), n_groups - 1
    is_present = ~np.isnan(table).reshape(len(table), -1).all(axis=1)
    places = np.flatnonzero(is_present)
    k = len(places)
    if not are_raters_random or k < FEWEST_RATERS:
        return Spread(math.sqrt(v_items), df_items, n, units)
    both = np.array([statistic(np.delete(table, place, axis=0), weights) for place in places])
    if np.isnan(both[:, 0]).any():
        return Spread(math.sqrt(v_items), df_items, n, units)
    v_raters = _variance(both[:, 0])
    # what the choice of questions alone adds to the differences between raters
    apart = both[:, 1:] - both[:, 1:].mean(axis=0)
    apart = np.where(np.isnan(apart), 0.0, apart)
    v_both = (k - 1) / k * sum(_variance(row) for row in apart)
    variance = v_items + max(0.0, v_raters - v_both)
    if v_raters > v_both:
        parts = ((v_items, df_items), (v_raters, k - 1), (v_both, df_items * (k - 1)))
        df = variance**2 / sum(part**2 / its_df for part, its_df in parts)
    else:
        df = float(df_items)
    return Spread(math.sqrt(variance), df, n, (*units, "raters"))


def _groups(n_items: int, clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, int]:
    """Each item's group, and the number of clusters."""
    names: Sequence[Hashable] = range(n_items) if clusters is None else clusters
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    group = np.array([number[name] for name in names], dtype=np.int64)
    n = len(number)
    if n > MOST_GROUPS:
        shuffled = np.random.default_rng(DEFAULT_SEED).permutation(n)
        group = shuffled[group] % MOST_GROUPS
    return group, n


def _variance(left_out: Floats) -> float:
    n = len(left_out)
    return float((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())


def interval_below_one(value: float, spread: Spread) -> Interval:
    """The interval of 1 less a ratio of disagreements, symmetric in the logarithm of the ratio.

    It ends below 1 and not below -1. Where not one pair disagrees, the lower end is what clusters
    rated by chance in place of perfectly could still be, after as many clusters without any.
    """
    if spread.reason is not None:
        return Interval(None, None, spread.reason, 0)
    if value >= 1 - 1e-12:
        return Interval(((1 - CONFIDENCE) / 2) ** (1 / spread.n_clusters), 1.0, None, 0)
    if spread.se <= 1e-12:
        return Interval(None, None, "every cluster is alike: their spread is not known", 0)
    reach = min(50.0, t_quantile(spread.df) * spread.se / (1 - value))
    low, high = (1 - (1 - value) * math.exp(side * reach) for side in (1, -1))
    return Interval(max(-1.0, low), high, None, 0)
