"""How far raters agree: coefficients for tables of raters by items, gaps allowed where defined.

A table is `(raters, items)`: one row per rater, one column per item, None or NaN for a gap.

    krippendorff_alpha([[0, 1, 2, 2], [0, 1, 2, None]], "ordinal").value == 1.0

A coefficient that the data do not define (all ratings alike, nothing rated twice) comes back with
value None and the reason in words, never as NaN and never as 0 or 1. Reading aid for alpha: .80
and above is good, .667 to .80 tentative (Krippendorff, Content Analysis, ch. 12).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from cbtqa.errors import DataError
from cbtqa.records import NonEmptyText, Record
from cbtqa.statistics.intervals import SHORT_SCALE, share_interval
from cbtqa.statistics.jackknife import (
    Spread,
    Statistic,
    Unit,
    crossed_spread,
    interval_below_one,
    share_interval_of,
)
from cbtqa.statistics.resampling import Interval

Level = Literal["nominal", "ordinal", "interval", "ratio"]
Weights = Literal["none", "linear", "quadratic"]
Floats = npt.NDArray[np.float64]
Cells = Sequence[Sequence[float | None]] | Floats
Values = Sequence[float | None] | Floats

NO_VARIATION = "no variation: every rating that can be compared is the same"
NOTHING_TO_COMPARE = "no item was rated by two raters"
FEWEST_ITEMS = 3
TOO_FEW = f"fewer than {FEWEST_ITEMS} items say nothing about agreement"


class Coefficient(Record):
    """One agreement coefficient and what it rests on."""

    name: NonEmptyText
    """Such as `alpha_ordinal` or `icc_A_k`."""
    value: float | None
    """None when the data do not define it."""
    low: float | None = None
    """Lower end of the 95 % interval; None where there is none."""
    high: float | None = None
    interval_reason: str | None = None
    """Why there is a value without an interval."""
    random: tuple[Unit, ...] = ()
    """What the interval takes as drawn from many: `items` or their `clusters` (such as questions),
    and `raters` where there are enough of them; whatever is not here is fixed."""
    n_items: int = Field(ge=0)
    """Items that entered the coefficient."""
    n_ratings: int = Field(ge=0)
    """Ratings that entered it."""
    reason: str | None = None
    """Why there is no value."""

    @model_validator(mode="after")
    def _value_or_reason(self) -> Self:
        if (self.value is None) == (self.reason is None):
            raise ValueError("a coefficient has either a value or a reason why it has none")
        return self


def as_table(cells: Cells) -> Floats:
    """A `(raters, items)` float array with NaN in the gaps; a DataError without any row."""
    if not len(cells):
        raise DataError("no ratings to compare: not one rater has a row")
    if isinstance(cells, np.ndarray):
        return np.atleast_2d(cells.astype(np.float64))
    if len({len(row) for row in cells}) > 1:
        raise ValueError("every rater's row needs one cell per item")
    rows = [[np.nan if cell is None else float(cell) for cell in row] for row in cells]
    return np.array(rows, dtype=np.float64).reshape(len(rows), -1)


def krippendorff_alpha(
    cells: Cells,
    level: Level = "ordinal",
    *,
    clusters: Sequence[Hashable] | None = None,
    n_resamples: int = 0,
    seed: int = 0,
) -> Coefficient:
    """Krippendorff's alpha with its interval; any number of raters, gaps allowed.

    The interval holds the alpha of such raters on such questions: questions are random, and raters
    too where there are three or more (`jackknife`).

    Args:
        clusters: what each item belongs to, such as the question that an answer is for; None where
            every item stands for itself.

    Source: Krippendorff, Content Analysis (2004), section 11.3; differences as in his
        "Computing Krippendorff's Alpha-Reliability" (2011).
    """

    def statistic(some: Floats, weights: Floats) -> Floats:
        return _alphas([some], weights, level)

    table, names = kept_items(as_table(cells), clusters, 2)
    return estimate_below_one(f"alpha_{level}", statistic, table, names)


def alpha_within(
    repeats: Sequence[Cells],
    level: Level = "ordinal",
    *,
    clusters: Sequence[Hashable] | None = None,
) -> Coefficient:
    """How far raters agree with themselves: alpha of repeated ratings, within each rater alone.

    A rater's two ratings of an item are held against any two of the same rater's ratings, never
    against another's: raters who each give one value to everything show no variation at all, even
    if no two of them give the same one. With a single rater it is Krippendorff's alpha of the
    repeats.

    Args:
        repeats: one table `(raters, items)` for each time that the items were rated, such as the
            first and the second; gaps where a rater did not see an item again.
        clusters: what each item belongs to, as in `krippendorff_alpha`.
    """
    # (raters, items, repeats)
    stack = np.stack([as_table(one) for one in repeats], axis=-1)
    stack[(~np.isnan(stack)).sum(axis=-1) < 2] = np.nan

    def statistic(some: Floats, weights: Floats) -> Floats:
        return _alphas([one.T for one in some], weights, level)

    found = estimate_below_one(f"alpha_within_{level}", statistic, *kept_items(stack, clusters, 2))
    words = {
        NOTHING_TO_COMPARE: "no item was rated twice by the same rater",
        NO_VARIATION: "no variation: every rater gave one value to everything",
    }
    return found.model_copy(update={"reason": words.get(found.reason or "", found.reason)})


def kept_items(
    table: Floats, clusters: Sequence[Hashable] | None, n_ratings: int
) -> tuple[Floats, list[Hashable] | None]:
    """The items with at least so many ratings, and what they belong to."""
    if clusters is not None and len(clusters) != table.shape[1]:
        raise ValueError("every item needs its cluster")
    is_kept = _ratings_per_item(table) >= n_ratings
    places = np.flatnonzero(is_kept).tolist()
    return table[:, is_kept], None if clusters is None else [clusters[one] for one in places]


def _ratings_per_item(table: Floats) -> npt.NDArray[np.int64]:
    axes = tuple(axis for axis in range(table.ndim) if axis != 1)
    return np.asarray((~np.isnan(table)).sum(axis=axes))


def estimate_below_one(
    name: str, statistic: Statistic, table: Floats, clusters: Sequence[Hashable] | None
) -> Coefficient:
    """A coefficient that is 1 less a ratio of disagreements, with its interval.

    On a scale of few points the interval takes half an item more on which all agree in the value
    farthest from the most frequent one, and half an item more on which they are divided between the
    two: where hardly any item is other than usual, a jackknife of the data alone is far too sure
    (coverage .56 for two raters, 30 items and 8 % other than usual).
    """
    per_item = _ratings_per_item(table)
    sizes = int((per_item > 1).sum()), int(per_item[per_item > 1].sum())
    if not sizes[0]:
        return undefined(name, NOTHING_TO_COMPARE)
    value = float(statistic(table, np.ones((1, table.shape[1])))[0])
    if np.isnan(value):
        return undefined(name, NO_VARIATION, *sizes)
    if sizes[0] < FEWEST_ITEMS:
        return undefined(name, TOO_FEW, *sizes)
    wider = _with_half_items(table) if is_short_scale(table) else table
    n_added = wider.shape[1] - table.shape[1]
    base = np.ones(wider.shape[1])
    base[table.shape[1] :] = per_item.mean() / (table.size / table.shape[1]) / 2

    def weighted(some: Floats, weights: Floats) -> Floats:
        return statistic(some, weights * base)

    spread = crossed_spread(weighted, wider, clusters, n_added=n_added)
    middle = float(weighted(wider, np.ones((1, len(base))))[0])
    return measured(name, value, interval_below_one(middle, spread), spread, sizes)


def is_short_scale(table: Floats) -> bool:
    """Whether so few values occur that most items share theirs."""
    return 1 < len(np.unique(table[~np.isnan(table)])) <= SHORT_SCALE + 1


def _with_half_items(table: Floats) -> Floats:
    """Two more items: on one all agree on an unusual value, on the other they are divided."""
    values, counts = np.unique(table[~np.isnan(table)], return_counts=True)
    usual = values[counts.argmax()]
    unusual = values[np.abs(values - usual).argmax()]
    shape = table[:, :1].shape
    divided = np.indices(shape).sum(axis=0) % 2
    added = [np.full(shape, unusual), np.where(divided, usual, unusual)]
    return np.concatenate([table, *added], axis=1)


def measured(
    name: str, value: float, interval: Interval, spread: Spread, sizes: tuple[int, int]
) -> Coefficient:
    """A value with its interval, which holds it, and what is random in it.

    Args:
        sizes: items and ratings.
    """
    low, high = interval.low, interval.high
    is_there = low is not None and high is not None
    return Coefficient(
        name=name,
        value=value,
        low=min(low, value) if low is not None else None,
        high=max(high, value) if high is not None else None,
        interval_reason=interval.reason,
        random=spread.random if is_there else (),
        n_items=sizes[0],
        n_ratings=sizes[1],
    )


def _alphas(tables: Sequence[Floats], weights: Floats, level: Level) -> Floats:
    """Alpha for each row of weights of the items `(replicates, items)`; NaN where undefined.

    Of several tables, which share the items and the values, each is compared in itself only.
    """
    values = np.unique(np.concatenate([one[~np.isnan(one)] for one in tables]))
    counts = [_counts(one, values) for one in tables]
    for one in counts:
        one[one.sum(axis=1) < 2] = 0.0
    places = _places(np.sum([weights @ one for one in counts], axis=0), values, level)
    observed = expected = np.zeros(len(weights))
    for one in counts:
        totals, margins = one.sum(axis=1), weights @ one
        n = margins.sum(axis=1)
        if places is None:
            distances = _distances(values, level)
            within = ((one @ distances) * one).sum(axis=1)
            between = ((margins @ distances) * margins).sum(axis=1)
        else:
            within = 2 * (totals * (places**2 @ one.T) - (places @ one.T) ** 2)
            sums, squares = (margins * places).sum(axis=1), (margins * places**2).sum(axis=1)
            between = 2 * np.maximum(n * squares - sums**2, 0.0)
            between[between < 1e-9 * n * squares] = 0.0
        observed = observed + (weights * (within / np.maximum(totals - 1, 1))).sum(axis=1)
        expected = expected + between / np.maximum(n - 1, 1)
    ratio = np.divide(observed, expected, out=np.full(len(weights), np.nan), where=expected > 0)
    return np.asarray(1 - ratio)


def _counts(table: Floats, values: Floats) -> Floats:
    """How often each item got each value: `(items, values)`."""
    counts = np.zeros((table.shape[1], len(values)))
    raters, items = np.nonzero(~np.isnan(table))
    np.add.at(counts, (items, np.searchsorted(values, table[raters, items])), 1.0)
    return counts


def _places(margins: Floats, values: Floats, level: Level) -> Floats | None:
    """Where each value stands `(replicates, values)`, if distances are those of places, squared.

    Between ranks c and k Krippendorff sums the ratings from c to k less half of both ends, which is
    the distance between their mid-ranks.
    """
    if level in ("nominal", "ratio"):
        return None
    places = np.cumsum(margins, axis=1) - margins / 2
    if level == "interval":
        places = np.broadcast_to(values, margins.shape)
    n = np.maximum(margins.sum(axis=1, keepdims=True), 1.0)
    return np.asarray(places - (margins * places).sum(axis=1, keepdims=True) / n)


def _distances(values: Floats, level: Level) -> Floats:
    """Between values of the nominal or ratio level."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    difference, total = values[:, None] - values[None, :], values[:, None] + values[None, :]
    return np.divide(difference, total, out=np.zeros_like(difference), where=total != 0) ** 2


def cohen_kappa(
    first: Values,
    second: Values,
    labels: Sequence[float],
    weights: Weights = "none",
    *,
    clusters: Sequence[Hashable] | None = None,
) -> Coefficient:
    """Cohen's kappa of two raters with its interval; items that either left open are passed over.

    The interval holds the kappa of these two raters on other items, or other questions.

    Args:
        labels: every value of the scale, used or not, in order. Demanded, because a weighted kappa
            over only the values that occur is another number.
        clusters: what each item belongs to, as in `krippendorff_alpha`.

    Raises:
        ValueError: a rating that is not among the labels, or unequal lengths.

    Source: Cohen 1960, 1968; weights |i - j| and (i - j)^2 over positions in `labels`.
    """
    found = mean_kappa([list(first), list(second)], labels, weights, clusters=clusters)
    return found.model_copy(update={"name": "kappa" if weights == "none" else f"kappa_{weights}"})


def mean_kappa(
    cells: Cells,
    labels: Sequence[float],
    weights: Weights = "quadratic",
    *,
    against: Values | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> Coefficient:
    """Mean of Cohen's kappa over pairs of raters, weighted by the items that they share.

    Questions are random, and the raters too where there are three or more.

    Args:
        against: one rater who is no part of the table, such as a judge: the mean is that of its
            kappas with each row, and it stays fixed.
        labels, clusters: as in `cohen_kappa`.

    Source: Light 1971 for the mean of pairs.
    """
    table = as_table(cells)
    if against is not None:  # each rater's row beside the one's: (raters, items, 2)
        own = np.broadcast_to(as_table([list(against)]), table.shape)
        table = np.stack([table, own], axis=-1)
        table[np.isnan(table).any(axis=-1)] = np.nan
    points = np.array([float(label) for label in labels])
    for value in np.unique(table[~np.isnan(table)]).tolist():
        if value not in points:
            raise ValueError(f"rating {value:g} is not among the labels")
    disagreement = _disagreement(len(points), weights)

    def statistic(some: Floats, item_weights: Floats) -> Floats:
        pairs = combinations(some, 2) if some.ndim == 2 else (row.T for row in some)
        total = shared = np.zeros(len(item_weights))
        for first, second in pairs:
            kappas, n = _kappas(first, second, points, disagreement, item_weights)
            shared = shared + np.where(np.isnan(kappas), 0.0, n)
            total = total + np.where(np.isnan(kappas), 0.0, kappas * n)
        return _share(total, shared)

    name = "mean_kappa" if weights == "none" else f"mean_kappa_{weights}"
    return estimate_below_one(name, statistic, *kept_items(table, clusters, 2))


def _disagreement(n_labels: int, weights: Weights) -> Floats:
    """Between places on the scale, 0 for the same."""
    steps = np.abs(np.subtract.outer(np.arange(n_labels), np.arange(n_labels))).astype(np.float64)
    if weights == "none":
        return np.asarray(steps > 0, dtype=np.float64)
    return np.asarray(steps if weights == "linear" else steps**2)


def _kappas(
    first: Floats, second: Floats, points: Floats, disagreement: Floats, weights: Floats
) -> tuple[Floats, Floats]:
    """Kappa for each row of weights, NaN where undefined, and the weight of the items in it."""
    both = ~(np.isnan(first) | np.isnan(second))
    order = np.argsort(points)
    rows, columns = (order[np.searchsorted(points[order], one[both])] for one in (first, second))
    size = len(points)
    cells = np.zeros((int(both.sum()), size * size))
    cells[np.arange(len(rows)), rows * size + columns] = 1.0
    joint = (weights[:, both] @ cells).reshape(-1, size, size)
    n = joint.sum(axis=(1, 2))
    expected = ((joint.sum(axis=2) @ disagreement) * joint.sum(axis=1)).sum(axis=1)
    observed = (joint * disagreement).sum(axis=(1, 2)) * n
    ratio = np.divide(observed, expected, out=np.full(len(n), np.nan), where=expected > 0)
    return np.asarray(1 - ratio), n


def gwet_ac(
    cells: Cells,
    labels: Sequence[float],
    weights: Weights = "none",
    *,
    clusters: Sequence[Hashable] | None = None,
) -> Coefficient:
    """Gwet's AC1, or AC2 with weights: agreement beyond chance where nearly all ratings are alike.

    Where one value is given to nearly everything, alpha and kappa are low however well raters agree
    and AC is not: read them side by side. Questions are random, and the raters too where there are
    three or more.

    Args:
        labels: every value of the scale, used or not, in order.
        clusters: what each item belongs to, as in `krippendorff_alpha`.

    Source: Gwet 2008 (AC1); Gwet, Handbook of Inter-Rater Reliability, 2014, ch. 4 (AC2, gaps).
    """
    table = as_table(cells)
    points = np.array([float(label) for label in labels])
    for value in np.unique(table[~np.isnan(table)]).tolist():
        if value not in points:
            raise ValueError(f"rating {value:g} is not among the labels")
    distance = _disagreement(len(points), weights)
    agreement = 1 - distance / max(float(distance.max()), 1.0)

    def statistic(some: Floats, item_weights: Floats) -> Floats:
        counts = np.stack([(some == point).sum(axis=0) for point in points], axis=1).astype(float)
        n = counts.sum(axis=1)
        agreed = (counts * (counts @ agreement - 1)).sum(axis=1) / np.maximum(n * (n - 1), 1)
        observed = _share(item_weights @ (agreed * (n > 1)), item_weights @ (n > 1.0))
        shares = counts / np.maximum(n, 1)[:, None]
        use = _share(item_weights @ shares, (item_weights @ (n > 0.0))[:, None])
        scale = agreement.sum() / (len(points) * (len(points) - 1))
        chance = scale * (use * (1 - use)).sum(axis=1)
        return np.asarray((observed - chance) / (1 - chance))

    name = "ac1" if weights == "none" else f"ac2_{weights}"
    return estimate_below_one(name, statistic, *kept_items(table, clusters, 1))


def agreement_share(
    cells: Cells, tolerance: float = 0.0, *, clusters: Sequence[Hashable] | None = None
) -> Coefficient:
    """Share of rater pairs, over all items, whose ratings differ by at most `tolerance`.

    Its interval is Wilson's where two raters rated independent items, else with as many items as
    would have the same spread over questions and, from three on, raters.

    Args:
        clusters: what each item belongs to, as in `krippendorff_alpha`.
    """
    name = "exact_agreement" if tolerance == 0 else f"within_{tolerance:g}"
    table, names = kept_items(as_table(cells), clusters, 2)
    sizes = table.shape[1], int((~np.isnan(table)).sum())
    if not sizes[0]:
        return undefined(name, NOTHING_TO_COMPARE)

    def statistic(some: Floats, weights: Floats) -> Floats:
        agreed, n_pairs = np.zeros(some.shape[1]), np.zeros(some.shape[1])
        for first, second in combinations(some, 2):
            gap = np.abs(first - second)
            agreed, n_pairs = agreed + (gap <= tolerance), n_pairs + ~np.isnan(gap)
        return _share(weights @ agreed, weights @ n_pairs)

    value = float(statistic(table, np.ones((1, sizes[0])))[0])
    if names is None and len(table) == 2:
        plain = Spread(0.0, math.inf, sizes[0], ("items",))
        interval = share_interval(round(value * sizes[0]), sizes[0])
        return measured(name, value, interval, plain, sizes)
    spread = crossed_spread(statistic, table, names)
    return measured(name, value, share_interval_of(value, spread), spread, sizes)


def _share(part: Floats, whole: Floats) -> Floats:
    """NaN where there is nothing to share."""
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


def undefined(name: str, reason: str, n_items: int = 0, n_ratings: int = 0) -> Coefficient:
    """A coefficient that the data do not define, with the reason."""
    return Coefficient(name=name, value=None, n_items=n_items, n_ratings=n_ratings, reason=reason)
