"""F1 and its 95 % intervals: of one decision, of all types together, of their mean, of differences.

    counts = Counts.of(truth[:, 0], given[:, 0], clusters)
    counts.f1                              # 0.727
    counts.interval()                      # Interval(low=0.53, high=0.86, ...)
    macro_interval(by_type), difference(by_type_of_one, by_type_of_other)

F1 = 2J / (1 + J), where J is the share of right decisions among the texts in which people or the
labeller have the type. J is a plain share of those texts, so F1 has the interval of a share. What
is random: texts, or the documents they belong to. What is fixed: labeller and people's labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cbtqa.errors import require
from cbtqa.statistics.intervals import CONFIDENCE, effective_size, share_interval
from cbtqa.statistics.resampling import Interval

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
FEWEST = 4
"""Below so many texts (documents) that have a type its F1 gets no interval."""
FEWEST_DIFFERENT = 10
"""Below so many texts (documents) that two labellers differ in, the difference has no interval."""
MOST_RARE = 0.5
"""Above this share of types with fewer texts than that their mean gets no interval."""


def cluster_numbers(names: Sequence[str]) -> Ints:
    """The place of each text's cluster, in the order in which clusters first come."""
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names], np.int64)


def sum_by_place(values: npt.NDArray[Any], places: Ints) -> Floats:
    return np.bincount(places, values).astype(np.float64)


@dataclass(frozen=True)
class Counts:
    """Decisions of a labeller beside people's, summed over clusters of texts."""

    hits: Floats
    """Right decisions for a type, by cluster."""
    unions: Floats
    """Decisions for a type by people or labeller, by cluster."""
    unit: str
    """What a cluster is: `text` or `document`."""

    @classmethod
    def of(cls, truth: Bools, given: Bools, clusters: Ints | None = None) -> Counts:
        """Of `(texts,)` or `(texts, types)`; each text alone without clusters."""
        places = np.arange(len(truth)) if clusters is None else clusters
        hits, unions = (
            sum_by_place(part.reshape(len(truth), -1).sum(axis=1), places)
            for part in (truth & given, truth | given)
        )
        return cls(hits, unions, "text" if clusters is None else "document")

    @cached_property
    def share(self) -> float:
        """J; 0 where nothing was decided for."""
        total = float(self.unions.sum())
        return float(self.hits.sum()) / total if total else 0.0

    @property
    def f1(self) -> float | None:
        """None when neither people nor labeller have the type."""
        return f1_of_share(self.share) if self.unions.any() else None

    @property
    def n_with(self) -> int:
        """Clusters in which people or labeller have the type."""
        return int((self.unions > 0).sum())

    @cached_property
    def worth(self) -> float:
        return effective_size(self.hits, self.unions)

    @property
    def influence(self) -> Floats:
        """How far each cluster pulls F1."""
        slope = 2 / (1 + self.share) ** 2
        return slope * (self.hits - self.share * self.unions) / max(1.0, float(self.unions.sum()))

    def interval(self) -> Interval:
        """Wilson's interval of J, as F1; none from three texts or fewer.

        Source: the indirect method of Lam et al., arXiv 2309.14621.
        """
        if self.n_with < FEWEST:
            if not self.n_with:
                return Interval(None, None, "occurs nowhere", 0)
            plural = "s" if self.n_with > 1 else ""
            return Interval(None, None, f"in {self.n_with} {self.unit}{plural}", 0)
        found = share_interval(self.share * self.worth, self.worth)
        assert found.low is not None and found.high is not None
        return Interval(f1_of_share(found.low), f1_of_share(found.high), None, 0)

    @cached_property
    def exact_ends(self) -> tuple[float, float]:
        """Clopper and Pearson's ends as F1: they hold for one text, too, as part of a mean."""
        beta_quantile = require("scipy.special", "metrics").betaincinv
        right, wrong = self.share * self.worth, (1 - self.share) * self.worth
        tail = (1 - CONFIDENCE) / 2
        low = float(beta_quantile(right, wrong + 1, tail)) if right > 0 else 0.0
        high = float(beta_quantile(right + 1, wrong, 1 - tail)) if wrong > 0 else 1.0
        return f1_of_share(low), f1_of_share(high)


def f1_of_share(share: float) -> float:
    """F1 of the share of right decisions among those that people or labeller took."""
    return 2 * share / (1 + share)


class _Sides(NamedTuple):
    """How far the ends of each type's interval lie from its F1, and how the types go together."""

    below: Floats
    above: Floats
    correlation: Floats

    @classmethod
    def of(cls, counts: Sequence[Counts], ends: Sequence[tuple[float, float]]) -> _Sides:
        values = np.array([one.f1 for one in counts], np.float64)
        low, high = np.array(ends, np.float64).T
        pulls = np.stack([one.influence for one in counts])
        norms = np.sqrt((pulls**2).sum(axis=1))
        correlation = pulls @ pulls.T / np.maximum(np.outer(norms, norms), 1e-300)
        np.fill_diagonal(correlation, 1.0)
        return cls(values - low, high - values, correlation)

    def reach(self, distances: Floats) -> float:
        return math.sqrt(max(0.0, float(distances @ self.correlation @ distances)))


def macro_interval(counts: Sequence[Counts]) -> Interval:
    """Of the mean F1 of the types that occur; none where more than half have three texts or fewer.

    The distances of the types' own ends from their F1 are joined with the correlation of the
    types over the texts. A mean of F1 of few texts lies too low, so the upper end takes the larger
    of both distances.

    Source: Zou and Donner, Statistics in Medicine 27 (2008), 1693-1702.
    """
    counts = [one for one in counts if one.n_with]
    if reason := _why_none(counts, len(counts)):
        return Interval(None, None, reason, 0)
    sides = _Sides.of(counts, [one.exact_ends for one in counts])
    mean = float(np.mean([one.f1 for one in counts]))
    middle = (sides.below + sides.above) / 2
    low = max(map(sides.reach, (sides.below, middle))) / len(counts)
    high = sides.reach(np.maximum(sides.below, sides.above)) / len(counts)
    return Interval(max(0.0, mean - low), min(1.0, mean + high), None, 0)


def difference(first: Sequence[Counts], second: Sequence[Counts]) -> tuple[float | None, Interval]:
    """Mean F1 of the first labeller less that of the second, both on the same texts and types.

    Types that one of them does not have an F1 for are left out for both. With one type it is the
    difference of its F1.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a.n_with and b.n_with]
    if not pairs:
        return None, Interval(None, None, "no type occurs for both", 0)
    counts = [*(a for a, _ in pairs), *(b for _, b in pairs)]
    value = float(np.mean([(a.f1 or 0.0) - (b.f1 or 0.0) for a, b in pairs]))
    n_differ = int(np.any([_differ(a, b) for a, b in pairs], axis=0).sum())
    if n_differ < FEWEST_DIFFERENT:
        unit = counts[0].unit if n_differ == 1 else f"{counts[0].unit}s"
        return value, Interval(None, None, f"they differ in {n_differ} {unit}", 0)
    if reason := _why_none(counts, len(pairs)):
        return value, Interval(None, None, reason, 0)
    if len(pairs) == 1:
        ends = [(found.low or 0.0, found.high or 0.0) for found in (a.interval() for a in counts)]
    else:
        ends = [one.exact_ends for one in counts]
    sides = _Sides.of(counts, ends)
    sign = np.repeat([1.0, -1.0], len(pairs))
    middle = sign * (sides.below + sides.above) / 2
    down = sign * np.where(sign > 0, sides.below, sides.above)
    up = sign * np.where(sign > 0, sides.above, sides.below)
    low, high = (max(map(sides.reach, (own, middle))) / len(pairs) for own in (down, up))
    return value, Interval(max(-1.0, value - low), min(1.0, value + high), None, 0)


def _differ(first: Counts, second: Counts) -> Bools:
    """Clusters in which two labellers do not count the same."""
    differ: Bools = (first.hits != second.hits) | (first.unions != second.unions)
    return differ


def _why_none(counts: Sequence[Counts], n_types: int) -> str | None:
    if not counts:
        return "no type occurs"
    rare = [one for one in counts if one.n_with < FEWEST]
    if n_types == 1 and rare:
        return rare[0].interval().reason
    if len(rare) > MOST_RARE * len(counts):
        return f"{len(rare)} of {len(counts)} types in {FEWEST - 1} {counts[0].unit}s or fewer"
    return None
