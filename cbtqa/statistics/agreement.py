"""How far raters agree: coefficients for tables of raters by items, gaps allowed where defined.

A table is `(raters, items)`: one row per rater, one column per item, None or NaN for a gap.

    krippendorff_alpha([[0, 1, 2, 2], [0, 1, 2, None]], "ordinal").value == 1.0

A coefficient that the data do not define (all ratings alike, nothing rated twice) comes back with
value None and the reason in words, never as NaN and never as 0 or 1. Reading aid for alpha: .80
and above is good, .667 to .80 tentative (Krippendorff, Content Analysis, ch. 12).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from cbtqa.errors import DataError
from cbtqa.records import NonEmptyText, Record
from cbtqa.statistics.jackknife import Spread, Unit, crossed_spread, interval_below_one
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
    name = f"alpha_{level}"
    table, names = _comparable(as_table(cells), clusters)
    n_items, n_ratings = table.shape[1], int((~np.isnan(table)).sum())
    if not n_items:
        return undefined(name, NOTHING_TO_COMPARE)

    def statistic(some: Floats, weights: Floats) -> Floats:
        return _alphas([some], weights, level)

    value = float(statistic(table, np.ones((1, n_items)))[0])
    if np.isnan(value):
        return undefined(name, NO_VARIATION, n_items, n_ratings)
    if n_items < FEWEST_ITEMS:
        return undefined(name, TOO_FEW, n_items, n_ratings)
    spread = crossed_spread(statistic, table, names)
    return _measured(name, value, interval_below_one(value, spread), spread, (n_items, n_ratings))


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
    name = f"alpha_within_{level}"
    # (raters, items, repeats)
    stack = np.stack([as_table(one) for one in repeats], axis=-1)
    stack[(~np.isnan(stack)).sum(axis=-1) < 2] = np.nan
    is_kept = ~np.isnan(stack).all(axis=(0, 2))
    names = None if clusters is None else [clusters[place] for place in np.flatnonzero(is_kept)]
    stack = stack[:, is_kept]
    sizes = stack.shape[1], int((~np.isnan(stack)).sum())
    if not sizes[0]:
        return undefined(name, "no item was rated twice by the same rater")

    def statistic(some: Floats, weights: Floats) -> Floats:
        return _alphas([one.T for one in some], weights, level)

    value = float(statistic(stack, np.ones((1, sizes[0])))[0])
    if np.isnan(value):
        return undefined(name, "no variation: every rater gave one value to everything", *sizes)
    if sizes[0] < FEWEST_ITEMS:
        return undefined(name, TOO_FEW, *sizes)
    spread = crossed_spread(statistic, stack, names)
    return _measured(name, value, interval_below_one(value, spread), spread, sizes)


def _comparable(
    table: Floats, clusters: Sequence[Hashable] | None
) -> tuple[Floats, list[Hashable] | None]:
    """The items that two raters rated, and what they belong to."""
    if clusters is not None and len(clusters) != table.shape[1]:
        raise ValueError("every item needs its cluster")
    is_kept = (~np.isnan(table)).sum(axis=0) >= 2
    names = None if clusters is None else [clusters[place] for place in np.flatnonzero(is_kept)]
    return table[:, is_kept], names


def _measured(
    name: str, value: float, interval: Interval, spread: Spread, sizes: tuple[int, int]
) -> Coefficient:
    return Coefficient(
        name=name,
        value=value,
        low=interval.low,
        high=interval.high,
        interval_reason=interval.reason,
        random=() if interval.low is None else spread.random,
        n_items=sizes[0],
        n_ratings=sizes[1],
    )


def _alphas(tables: Sequence[Floats], weights: Floats, level: Level) -> Floats:
    """Alpha for each row of weights of the items `(replicates, items)`; NaN where undefined.

    Of several tables, which share the items and the values, each is compared in itself only.
    """
    values = np.unique(np.concatenate([one[~np.isnan(one)] for one in tables]))
    # how often each item got each value: (items, values)
    counts = [(one[:, :, None] == values).sum(axis=0).astype(float) for one in tables]
    for one in counts:
        one[one.sum(axis=1) < 2] = 0.0
    places = _places(sum(weights @ one for one in counts), values, level)
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
    return 1 - ratio


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
    first: Values, second: Values, labels: Sequence[float], weights: Weights = "none"
) -> Coefficient:
    """Cohen's kappa of two raters; items that either left open are passed over.

    Args:
        labels: every value of the scale, used or not, in order. Demanded, because a weighted kappa
            over only the values that occur is another number.

    Raises:
        ValueError: a rating that is not among the labels, or unequal lengths.

    Source: Cohen 1960, 1968; weights |i - j| and (i - j)^2 over positions in `labels`.
    """
    a, b = as_table([list(first), list(second)])
    both = ~(np.isnan(a) | np.isnan(b))
    position = {float(label): index for index, label in enumerate(labels)}
    try:
        rows = [position[float(value)] for value in a[both]]
        columns = [position[float(value)] for value in b[both]]
    except KeyError as error:
        raise ValueError(f"rating {error.args[0]:g} is not among the labels") from None
    name = "kappa" if weights == "none" else f"kappa_{weights}"
    n = len(rows)
    if n == 0:
        return undefined(name, NOTHING_TO_COMPARE)
    joint = np.zeros((len(position), len(position)))
    np.add.at(joint, (rows, columns), 1)
    steps = np.abs(np.subtract.outer(np.arange(len(position)), np.arange(len(position))))
    disagreement = {"none": steps > 0, "linear": steps, "quadratic": steps**2}[weights]
    expected = (disagreement * np.outer(joint.sum(axis=1), joint.sum(axis=0))).sum() / n
    if expected == 0:
        return undefined(name, NO_VARIATION, n, 2 * n)
    value = 1 - float((disagreement * joint).sum() / expected)
    return Coefficient(name=name, value=value, n_items=n, n_ratings=2 * n)


def agreement_share(cells: Cells, tolerance: float = 0.0) -> Coefficient:
    """Share of rater pairs, over all items, whose ratings differ by at most `tolerance`."""
    table = as_table(cells)
    name = "exact_agreement" if tolerance == 0 else f"within_{tolerance:g}"
    agreed = n_pairs = 0
    items = np.zeros(table.shape[1], dtype=bool)
    for first, second in combinations(table, 2):
        both = ~(np.isnan(first) | np.isnan(second))
        items |= both
        n_pairs += int(both.sum())
        agreed += int((np.abs(first - second)[both] <= tolerance).sum())
    if n_pairs == 0:
        return undefined(name, NOTHING_TO_COMPARE)
    n_ratings = int((~np.isnan(table[:, items])).sum())
    return Coefficient(
        name=name, value=agreed / n_pairs, n_items=int(items.sum()), n_ratings=n_ratings
    )


def undefined(name: str, reason: str, n_items: int = 0, n_ratings: int = 0) -> Coefficient:
    """A coefficient that the data do not define, with the reason."""
    return Coefficient(name=name, value=None, n_items=n_items, n_ratings=n_ratings, reason=reason)
