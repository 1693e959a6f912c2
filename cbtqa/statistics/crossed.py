"""Means, differences and one test of systems whose items and raters are both random.

    found = crossed_means(values, systems, items, raters, scale=(0, 2))
    found.mean("ours").low, found.difference("base", "ours").p, found.omnibus().p
    crossed_mean(values, items, raters)          # one group: corrections, single systems

A rating is the mean of its system, plus what is peculiar to the item (the question), to the rater,
to the item and to the rater on this system, plus the rest. Items and raters are samples: the
intervals hold for other items of the kind and for other raters of the kind. With one rater only
items are random, and the figures hold for this rater alone (`are_raters_random` is False).

Estimation. Means are generalised least squares under the fixed ratios of variances below, so the
weights depend on who rated what, never on the ratings; in a complete design they are plain means. A
rater who rated one system alone moves the means of all systems, not their difference. Variances are
by moments: the weighted residuals, summed by item, by rater and not at all, have three sums of
squares whose expectations are solved for the variances of items, raters and rest; negative ones
are 0. In a complete design these are the mean squares of the two-way analysis of variance, of the
differences of each rater on each item where two systems are compared. So raters who differ in
strictness and items that differ in quality drop out of a difference; what stays is how raters and
items differ in their differences, each system with its own variance.

Degrees of freedom. Satterthwaite's, between those of items and of raters. As it stands it is too
sure where a part with few degrees of freedom happens to come out small (coverage .86 with two
raters, .90 with three); each part therefore enters with 1 + 5/df + 5/df^2 times its size, found by
simulation: coverage .93 to .99 over 2 to 10 raters and 3 to 100 items, above .97 where raters do
not differ at all and there are two or three of them.

Source: Searle, Casella & McCulloch, Variance Components (1992), ch. 5; Satterthwaite 1946; quasi-F
over items and raters, Clark 1973.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbtqa.statistics.intervals import (
    SHORT_SCALE,
    f_tail,
    mean_interval,
    t_quantile,
    t_tail,
)
from cbtqa.statistics.resampling import Floats

Ints = NDArray[np.int64]
RATER, RATER_BY_GROUP, ITEM, ITEM_BY_GROUP = 10.0, 0.1, 1.0, 0.5
"""Variances by that of the rest, for the weights alone; assumed. They do not enter the intervals.
That of raters is large, so that systems are compared within raters."""
NOTHING = 1e-20
"""Variance, by the square of the greatest value, below which nothing but rounding is left."""

LARGEST_CONDITION = 1e8
ALIKE = "all are alike: their spread is not known"


class CrossedEstimate(NamedTuple):
    """A mean or a difference of means."""

    value: float
    low: float | None
    """Lower end of the 95 % interval; None with a reason."""
    high: float | None
    p: float | None
    """Two-sided, of the hypothesis that the value is 0."""
    se: float | None
    df: float | None
    n_items: int
    n_raters: int
    are_raters_random: bool
    """False with one rater: the interval holds for this rater alone."""
    reason: str | None
    """Why there is no interval and no p; None where there is."""


class CrossedTest(NamedTuple):
    """Quasi-F of all groups being equal."""

    statistic: float | None
    df_numerator: float | None
    df_denominator: float | None
    p: float | None
    n_items: int
    n_raters: int
    reason: str | None


def crossed_mean(
    values: Sequence[float] | Floats,
    items: Sequence[Hashable],
    raters: Sequence[Hashable],
    *,
    scale: tuple[float, float] | None = None,
) -> CrossedEstimate:
    """The mean of one group; see `crossed_means`."""
    return crossed_means(values, [0] * len(items), items, raters, scale=scale).mean(0)


def crossed_means(
    values: Sequence[float] | Floats,
    groups: Sequence[Hashable],
    items: Sequence[Hashable],
    raters: Sequence[Hashable],
    *,
    scale: tuple[float, float] | None = None,
) -> CrossedMeans:
    """Means of all groups, from one row for each rating.

    Args:
        values: ratings, or differences of two; no gaps.
        groups: such as the system of each row.
        items: what is drawn at random, such as the question: rows of all groups share them.
        raters: who rated; a rater need not have rated all items or groups.
        scale: the least and greatest value there can be. Ends lie on it, and on a short scale no
            further in than those of `intervals.mean_interval` with items drawn.
    """
    given = np.asarray(values, dtype=np.float64)
    names, of_group = _numbered(groups)
    n_items, of_item = _numbered(items)
    n_raters, of_rater = _numbered(raters)
    if not len(given) == len(of_group) == len(of_item) == len(of_rater):
        raise ValueError("values, groups, items and raters do not fit each other")
    return CrossedMeans(
        given, tuple(names), of_group, of_item, of_rater, (len(n_items), len(n_raters)), scale
    )


def _numbered(names: Sequence[Hashable]) -> tuple[list[Hashable], Ints]:
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return list(number), np.array([number[name] for name in names], dtype=np.int64)


class _Variance(NamedTuple):
    """Variance of a contrast and its two parts, each with the rest in it."""

    whole: float
    by_item: float
    by_rater: float
    df_item: float
    df_rater: float

    def df(self) -> float:
        parts = ((self.by_item, self.df_item), (self.by_rater, self.df_rater))
        sized = [(size * (1 + 5 / df + 5 / df**2), df) for size, df in parts if df > 0]
        below = sum(size**2 / df for size, df in sized)
        return sum(size for size, _ in sized) ** 2 / below


@dataclass(frozen=True)
class CrossedMeans:
    """Fitted means; made by `crossed_means`."""

    values: Floats
    names: tuple[Hashable, ...]
    group: Ints
    item: Ints
    rater: Ints
    shape: tuple[int, int]
    """Items and raters."""
    scale: tuple[float, float] | None

    @cached_property
    def _weights(self) -> Floats:
        """`(rows, groups)`: the means are its transpose by the values."""
        n, (n_items, n_raters) = len(self.names), self.shape
        cell = (self.group * n_items + self.item) * n_raters + self.rater
        one_hot = np.eye(n)[self.group]
        if len(cell) == n * n_items * n_raters == len(np.unique(cell)):
            return np.asarray(one_hot / one_hot.sum(axis=0))
        return self._least_squares(one_hot)

    def _least_squares(self, one_hot: Floats) -> Floats:
        """Weights of generalised least squares; items are eliminated, raters solved for."""
        n, (n_items, n_raters) = len(self.names), self.shape
        rater = np.eye(n_raters)[self.rater]
        both = np.eye(n_raters * n)[self.rater * n + self.group]
        design = np.column_stack([one_hot, rater, both])
        # rows of an item: I + ITEM_BY_GROUP within a group + ITEM over all, inverted in two steps
        pair = self.item * n + self.group
        size = np.bincount(pair, minlength=n_items * n)
        shrink = ITEM_BY_GROUP / (1 + ITEM_BY_GROUP * size[pair])
        inner = 1 / (1 + ITEM_BY_GROUP * size[pair])
        total = np.bincount(self.item, weights=inner, minlength=n_items)
        outer = inner * (ITEM / (1 + ITEM * total))[self.item]
        solved = design - shrink[:, None] * _sums(design, pair, n_items * n)[pair]
        solved -= outer[:, None] * _sums(inner[:, None] * design, self.item, n_items)[self.item]
        ridge = np.repeat([0, 1 / RATER, 1 / RATER_BY_GROUP], [n, n_raters, n_raters * n])
        system = design.T @ solved + np.diag(ridge)
        return np.asarray(solved @ np.linalg.inv(system)[:, :n])

    @cached_property
    def _means(self) -> Floats:
        middle = self.values.mean()  # off first, so that equal ratings have exactly their mean
        return np.asarray(middle + self._weights.T @ (self.values - middle))

    @cached_property
    def _residuals(self) -> Floats:
        return np.asarray(self.values - self._means[self.group])

    def mean(self, name: Hashable) -> CrossedEstimate:
        """The mean of one group."""
        place = self.names.index(name)
        contrast = np.eye(len(self.names))[place]
        own = self.group == place
        found = self._estimate(contrast, own)
        return found if self.scale is None else self._on_scale(found, own, self.scale)

    def difference(self, first: Hashable, second: Hashable) -> CrossedEstimate:
        """Mean of `second` less mean of `first`, within raters and items."""
        low, high = self.names.index(first), self.names.index(second)
        contrast = np.zeros(len(self.names))
        contrast[[low, high]] = -1, 1
        n_raters = self.shape[1]
        cells = self.item * n_raters + self.rater
        rated = [np.unique(cells[self.group == place]) for place in (low, high)]
        paired = np.intersect1d(rated[0], rated[1])
        return self._estimate(contrast, np.isin(cells, paired) & np.isin(self.group, (low, high)))

    def omnibus(self) -> CrossedTest:
        """One test that all groups have the same mean.

        The mean square of the differences by their mean variance. Groups may differ in variance:
        both degrees of freedom are multiplied by Box's epsilon.
        """
        n = len(self.names)
        pairs = list(combinations(range(n), 2))
        found = [self.difference(self.names[a], self.names[b]) for a, b in pairs]
        reasons = [one.reason for one in found if one.reason and one.reason != ALIKE]
        if all(one.se is None for one in found):
            reasons.append(ALIKE)
        if reasons:
            return CrossedTest(None, None, None, None, *self.shape, reasons[0])
        squares = np.zeros((n, n))
        parts = []
        for (a, b), one in zip(pairs, found, strict=True):
            contrast = np.zeros(n)
            contrast[[a, b]] = -1, 1
            parts.append(self._variance(contrast))
            squares[a, b] = squares[b, a] = float(one.se or 0) ** 2
        centred = squares - squares.mean(axis=0) - squares.mean(axis=1)[:, None] + squares.mean()
        epsilon = float(np.trace(centred) ** 2 / ((n - 1) * (centred**2).sum()))
        whole, item, rater = np.mean([part[:3] for part in parts], axis=0).tolist()
        pooled = _Variance(whole, item, rater, parts[0].df_item, parts[0].df_rater)
        statistic = sum(one.value**2 for one in found) / float(squares.sum() / 2)
        df = epsilon * (n - 1), epsilon * (n - 1) * pooled.df()
        return CrossedTest(statistic, *df, f_tail(statistic, *df), *self.shape, None)

    def _estimate(self, contrast: Floats, entering: NDArray[np.bool_]) -> CrossedEstimate:
        """A contrast of the means; `entering` are the rows that can tell its variance."""
        value = float(contrast @ self._means)
        n_items, n_raters = (len(np.unique(one[entering])) for one in (self.item, self.rater))
        n_all = len(np.unique(self.rater[np.isin(self.group, np.flatnonzero(contrast))]))
        size = n_items, n_raters
        none = (None, None, None, None, None)
        if n_raters < 2 <= n_all:
            reason = "fewer than two raters rated both: raters and systems cannot be told apart"
            return CrossedEstimate(value, *none, *size, False, reason)
        if n_items < 2:
            reason = "rests on one item: how items differ is not known"
            return CrossedEstimate(value, *none, *size, n_raters > 1, reason)
        variance = self._variance(contrast)
        if variance.whole <= NOTHING * max(1.0, float(np.abs(self.values).max())) ** 2:
            return CrossedEstimate(value, *none, *size, n_raters > 1, ALIKE)
        se, df = math.sqrt(variance.whole), variance.df()
        half = t_quantile(df) * se
        p = t_tail(value / se, df)
        ends = value - half, value + half
        return CrossedEstimate(value, *ends, p, se, df, *size, n_raters > 1, None)

    def _on_scale(
        self, found: CrossedEstimate, own: NDArray[np.bool_], scale: tuple[float, float]
    ) -> CrossedEstimate:
        """Ends where the scale ends, and no interval of 0 width from ratings that are alike."""
        low, high, reason = found.low, found.high, found.reason
        is_short = scale[1] - scale[0] <= SHORT_SCALE
        if is_short and found.n_items > 1:
            drawn = (
                [self.item] if low is not None or found.n_raters < 2 else [self.item, self.rater]
            )
            for one in drawn:
                inner = mean_interval(self.values[own], scale=scale, clusters=one[own].tolist())
                if inner.low is not None and inner.high is not None:
                    low = min(inner.low, inner.low if low is None else low)
                    high = max(inner.high, inner.high if high is None else high)
                    reason = None
        if low is None or high is None:
            return found
        low, high = max(low, float(scale[0])), min(high, float(scale[1]))
        return found._replace(low=low, high=high, reason=reason)

    def _variance(self, contrast: Floats) -> _Variance:
        """Of a contrast of means, by moments; the module's docstring says how."""
        n_items, n_raters = self.shape
        weight = self._weights @ contrast
        cell = self.item * n_raters + self.rater
        score = np.bincount(cell, weights=weight * self._residuals, minlength=n_items * n_raters)
        # how much a cell (rater on item) counts: of a difference the mean of both sides
        counted = weight * contrast[self.group] / float(contrast @ contrast)
        share = np.bincount(cell, weights=counted, minlength=n_items * n_raters)
        scores = score.astype(np.float64).reshape(self.shape)
        shares = share.astype(np.float64).reshape(self.shape)
        if not np.count_nonzero(np.abs(shares).sum(axis=0) > 0) > 1:
            return _items_alone(scores.sum(axis=1), shares.sum(axis=1))
        by_item, by_rater = shares.sum(axis=1), shares.sum(axis=0)
        squares = np.array(
            [(scores.sum(axis=1) ** 2).sum(), (scores.sum(axis=0) ** 2).sum(), (scores**2).sum()]
        )
        of_item, of_rater, of_rest = (float((s**2).sum()) for s in (by_item, by_rater, shares))
        expected = _expectations(shares, by_item, by_rater)
        if np.linalg.cond(expected) < LARGEST_CONDITION:
            found = np.linalg.solve(expected, squares)
        else:
            # each rater has items of their own: the spread between raters holds that of items
            found = np.array([0.0, squares[1] / expected[1, 1], 0.0])
        item, rater, rest = np.maximum(found, 0.0) * (of_item, of_rater, of_rest)
        return _Variance(
            float(item + rater + rest),
            float(item + rest),
            float(rater + rest),
            _freedom(by_item),
            _freedom(by_rater),
        )


def _items_alone(scores: Floats, shares: Floats) -> _Variance:
    """One rater: only items are random."""
    size = float((shares**2).sum())
    expected = float((shares**2 * (1 - 2 * shares + size)).sum())
    whole = float((scores**2).sum()) * size / expected
    return _Variance(whole, whole, 0.0, _freedom(shares), 0.0)


def _expectations(shares: Floats, by_item: Floats, by_rater: Floats) -> Floats:
    """Of the sums of squares by item, by rater and by cell (rows): times the variances of items,
    raters and rest (columns), the mean having been taken off."""
    of_item, of_rater, of_rest = (float((s**2).sum()) for s in (by_item, by_rater, shares))
    leak = float(((shares - np.outer(by_item, by_rater)) ** 2).sum())
    squared = shares**2
    item_rest = float((squared * (1 - 2 * by_item[:, None])).sum()) + of_item * of_rest
    rater_rest = float((squared * (1 - 2 * by_rater)).sum()) + of_rater * of_rest
    return np.array(
        [
            [_own(by_item), leak, item_rest],
            [leak, _own(by_rater), rater_rest],
            [item_rest, rater_rest, _own(shares)],
        ]
    )


def _own(shares: Floats) -> float:
    return float((shares**2 * (1 - 2 * shares + (shares**2).sum())).sum())


def _freedom(shares: Floats) -> float:
    """Degrees of freedom of the spread of independent units that count so much; n - 1 if alike."""
    two, three, four = (float((shares**power).sum()) for power in (2, 3, 4))
    diagonal = (1 - 2 * shares + two) ** 2 - (two - 2 * shares) ** 2
    below = float((shares**4 * diagonal).sum())
    below += two**4 + 2 * four * two + 2 * three**2 - 4 * two**2 * three
    return _own(shares) ** 2 / below


def _sums(rows: Floats, place: Ints, n: int) -> Floats:
    found = np.zeros((n, rows.shape[1]))
    np.add.at(found, place, rows)
    return found
