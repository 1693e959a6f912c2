"""How far a coefficient would differ with other questions, and with other raters.

    spread = crossed_spread(statistic, table, clusters)   # standard error, degrees of freedom
    interval_below_one(value, spread)                     # for 1 less a ratio: alpha, kappa, AC

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
import numpy.typing as npt

from cbtqa.statistics.intervals import t_quantile
from cbtqa.statistics.resampling import DEFAULT_SEED, Floats, Interval

Unit = Literal["items", "clusters", "raters"]
Statistic = Callable[[Floats, Floats], Floats]
"""Values of a coefficient from a table `(raters, items)` under rows of weights of the items
`(replicates, items)`; NaN where it is undefined."""
FEWEST_CLUSTERS = 10
"""Below this many clusters there is no interval: ten raters on eight questions held .915."""
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
    bias: float = 0.0
    """What few clusters add to the value."""
    reason: str | None = None


def crossed_spread(
    statistic: Statistic,
    table: Floats,
    clusters: Sequence[Hashable] | None = None,
    *,
    n_added: int = 0,
    are_raters_random: bool = True,
) -> Spread:
    """The spread of a coefficient over clusters of items and, where there are enough, raters.

    Args:
        table: `(raters, items)`, NaN in the gaps; items that do not enter the coefficient left out.
        clusters: what each item belongs to, such as its question; None where items are independent.
        n_added: so many of the last items were added to the data and each stand for themselves.
        are_raters_random: False for coefficients of named raters, such as the kappa of a pair.
    """
    units: tuple[Unit, ...] = ("items",) if clusters is None else ("clusters",)
    n_items = table.shape[1] - n_added
    names: list[Hashable] = list(range(n_items) if clusters is None else clusters)
    n = len(set(names))
    if n < FEWEST_CLUSTERS:
        word = units[0] if n != 1 else units[0][:-1]
        reason = f"rests on {n} {word}; an interval needs {FEWEST_CLUSTERS}"
        return Spread(math.nan, math.nan, n, units, reason=reason)
    group = _groups([*names, *((None, place) for place in range(n_added))])
    n_groups = int(group.max()) + 1
    weights = np.ones((n_groups + 1, len(group)))
    weights[group + 1, np.arange(len(group))] = 0.0
    whole, left_out = np.split(statistic(table, weights), [1])
    if np.isnan(left_out).any():
        reason = f"all variation rests on one of {n} {units[0]}"
        return Spread(math.nan, math.nan, n, units, reason=reason)
    variance, df = _variance(left_out), float(n_groups - n_added - 1)
    bias = (n_groups - 1) * float(left_out.mean() - whole[0])
    places = np.flatnonzero(~np.isnan(table).reshape(len(table), -1).all(axis=1))
    if are_raters_random and len(places) >= FEWEST_RATERS:
        both = np.array([statistic(np.delete(table, place, axis=0), weights) for place in places])
        if not np.isnan(both[:, 0]).any():
            variance, df = _with_raters(variance, df, both)
            units = (*units, "raters")
    return Spread(math.sqrt(variance), df, n, units, bias)


def _with_raters(v_items: float, df_items: float, both: Floats) -> tuple[float, float]:
    """Variance and degrees of freedom over clusters and raters.

    Args:
        both: the coefficient without each rater, and without each rater and each cluster:
            `(raters, 1 + clusters)`.
    """
    k = len(both)
    v_raters = _variance(both[:, 0])
    # what the choice of clusters alone makes of the differences between raters
    apart = np.where(np.isnan(both[:, 1:]).any(axis=0), 0.0, both[:, 1:])
    apart -= apart.mean(axis=0)
    v_both = (k - 1) / k * sum(_variance(row) for row in apart)
    if v_raters <= v_both:
        return v_items, df_items
    variance = v_items + v_raters - v_both
    parts = ((v_items, df_items), (v_raters, k - 1), (v_both, df_items * (k - 1)))
    return variance, variance**2 / sum(part**2 / its_df for part, its_df in parts)


def _groups(names: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """Each item's group."""
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    group = np.array([number[name] for name in names], dtype=np.int64)
    if len(number) > MOST_GROUPS:
        group = np.random.default_rng(DEFAULT_SEED).permutation(len(number))[group] % MOST_GROUPS
    return group


def _variance(left_out: Floats) -> float:
    n = len(left_out)
    return float((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())


NO_SPREAD = "every one of them is alike: their spread is not known"


def interval_below_one(value: float, spread: Spread) -> Interval:
    """The interval of 1 less a ratio of disagreements, symmetric in the logarithm of the ratio.

    It ends below 1 and not below -1.
    """
    if spread.reason is not None or value >= 1 - 1e-12 or spread.se <= 1e-12:
        return Interval(None, None, spread.reason or NO_SPREAD, 0)
    reach = min(50.0, t_quantile(spread.df) * spread.se / (1 - value))
    centre = min(value - spread.bias, (1 + value) / 2)
    low, high = (1 - (1 - centre) * math.exp(side * reach) for side in (1, -1))
    return Interval(max(-1.0, low), high, None, 0)


def share_interval_of(share: float, spread: Spread) -> Interval:
    """Wilson's interval with as many independent items as would have this spread, and t for z.

    Source: Korn and Graubard 1998, with Wilson's interval as in Dean and Pagano 2015.
    """
    if spread.reason is not None:
        return Interval(None, None, spread.reason, 0)
    n = float(spread.n_clusters)
    if 0 < share < 1 and spread.se > 1e-12:
        n = share * (1 - share) / spread.se**2
    t = t_quantile(spread.df)
    middle = (share * n + t**2 / 2) / (n + t**2)
    half = t / (n + t**2) * math.sqrt(n * share * (1 - share) + t**2 / 4)
    return Interval(max(0.0, middle - half), min(1.0, middle + half), None, 0)


def correlation_interval(value: float, spread: Spread) -> Interval:
    """The interval of a correlation, symmetric in Fisher's z."""
    if spread.reason is not None or abs(value) >= 1 - 1e-12 or spread.se <= 1e-12:
        return Interval(None, None, spread.reason or NO_SPREAD, 0)
    reach = t_quantile(spread.df) * spread.se / (1 - value**2)
    low, high = (math.tanh(math.atanh(value) + side * reach) for side in (-1, 1))
    return Interval(low, high, None, 0)
