"""How far raters agree: coefficients for tables of raters by items, gaps allowed where defined.

A table is `(raters, items)`: one row per rater, one column per item, None or NaN for a gap.

    krippendorff_alpha([[0, 1, 2, 2], [0, 1, 2, None]], "ordinal").value == 1.0

A coefficient that the data do not define (all ratings alike, nothing rated twice) comes back with
value None and the reason in words, never as NaN and never as 0 or 1. Reading aid for alpha: .80
and above is good, .667 to .80 tentative (Krippendorff, Content Analysis, ch. 12).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from cbtqa.errors import DataError
from cbtqa.records import NonEmptyText, Record
from cbtqa.statistics.intervals import CONFIDENCE

Level = Literal["nominal", "ordinal", "interval", "ratio"]
Weights = Literal["none", "linear", "quadratic"]
Floats = npt.NDArray[np.float64]
Cells = Sequence[Sequence[float | None]] | Floats
Values = Sequence[float | None] | Floats

NO_VARIATION = "no variation: every rating that can be compared is the same"
NOTHING_TO_COMPARE = "no item was rated by two raters"


class Coefficient(Record):
    """One agreement coefficient and what it rests on."""

    name: NonEmptyText
    """Such as `alpha_ordinal` or `icc_A_k`."""
    value: float | None
    """None when the data do not define it."""
    low: float | None = None
    """Lower end of the 95 % interval; None when no interval was asked for or is defined."""
    high: float | None = None
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
    cells: Cells, level: Level = "ordinal", *, n_resamples: int = 0, seed: int = 0
) -> Coefficient:
    """Krippendorff's alpha; any number of raters, gaps allowed.

    Args:
        n_resamples: bootstrap replicates over items for the interval; 0 gives none. A replicate
            without variation is left out.

    Source: Krippendorff, Content Analysis (2004), section 11.3; differences as in his
        "Computing Krippendorff's Alpha-Reliability" (2011).
    """
    table = as_table(cells)
    values = np.unique(table[~np.isnan(table)])
    # how often each item got each value: (items, values)
    counts = (table[:, :, None] == values).sum(axis=0).astype(float)
    counts = counts[counts.sum(axis=1) >= 2]
    name, n_items, n_ratings = f"alpha_{level}", len(counts), int(counts.sum())
    if not n_items:
        return undefined(name, NOTHING_TO_COMPARE)
    value = float(_alphas(counts, values, level, np.ones((1, n_items)))[0])
    if np.isnan(value):
        return undefined(name, NO_VARIATION, n_items, n_ratings)
    low = high = None
    if n_resamples:
        generator = np.random.default_rng(seed)
        draws = [generator.integers(0, n_items, n_items) for _ in range(n_resamples)]
        weights = np.stack([np.bincount(one, minlength=n_items) for one in draws], dtype=float)
        replicates = _alphas(counts, values, level, weights)
        kept = replicates[~np.isnan(replicates)]
        if len(kept):
            tail = 50 * (1 - CONFIDENCE)
            low, high = map(float, np.percentile(kept, [tail, 100 - tail]))
    return Coefficient(
        name=name, value=value, low=low, high=high, n_items=n_items, n_ratings=n_ratings
    )


def _alphas(counts: Floats, values: Floats, level: Level, weights: Floats) -> Floats:
    """Alpha for each row of item weights `(replicates, items)`; NaN where undefined."""
    totals = counts.sum(axis=1, keepdims=True)
    marginals = weights @ counts
    per_pair = counts / (totals - 1)
    alphas = np.empty(len(weights))
    for index, weight in enumerate(weights):
        observed = (counts * weight[:, None]).T @ per_pair
        observed[np.diag_indices_from(observed)] -= weight @ per_pair
        margin = marginals[index]
        distance = _squared_distances(values, margin, level)
        expected_sum = margin @ distance @ margin
        n = margin.sum()
        ratio = (observed * distance).sum() / expected_sum if expected_sum > 0 else np.nan
        alphas[index] = 1 - (n - 1) * ratio
    return alphas


def _squared_distances(values: Floats, margin: Floats, level: Level) -> Floats:
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    # between ranks c and k Krippendorff sums the ratings from c to k less half of both ends,
    # which is the distance between their mid-ranks
    place = np.cumsum(margin) - margin / 2 if level == "ordinal" else values
    difference = place[:, None] - place[None, :]
    if level == "ratio":
        total = values[:, None] + values[None, :]
        difference = np.divide(difference, total, out=np.zeros_like(difference), where=total != 0)
    return difference**2


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
