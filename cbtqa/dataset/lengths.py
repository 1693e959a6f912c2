"""Mean, spread, exact quantiles and histogram bars of text lengths, from counts per length.

summarise_lengths(Counter({120: 3, 340: 1})).median == 120.0
"""

from __future__ import annotations

import math
from collections import Counter

from cbtqa.records import Record

BIN_WIDTHS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000)
MAX_BINS = 30
TAIL = 0.995
"""The bars reach to this quantile when the longest text lies far beyond it."""


class Bin(Record):
    """One bar of a histogram."""

    low: int
    high: int | None
    """The first length that no longer counts; None for a last bar that takes all beyond."""
    n: int


class LengthSummary(Record):
    """Lengths of one column in characters, over the rows where it is not null."""

    n: int
    mean: float
    sd: float
    """Population standard deviation."""
    min: int
    median: float
    p95: float
    max: int
    bins: tuple[Bin, ...]


def summarise_lengths(histogram: Counter[int]) -> LengthSummary:
    """Summary of at least one length; `histogram` holds the number of texts by length."""
    n = histogram.total()
    ordered = sorted(histogram.items())
    mean = sum(value * count for value, count in ordered) / n
    variance = math.fsum((value - mean) ** 2 * count for value, count in ordered) / n
    return LengthSummary(
        n=n,
        mean=mean,
        sd=math.sqrt(variance),
        min=ordered[0][0],
        median=_quantile(ordered, n, 0.5),
        p95=_quantile(ordered, n, 0.95),
        max=ordered[-1][0],
        bins=_bins(ordered, n),
    )


def _quantile(ordered: list[tuple[int, int]], n: int, share: float) -> float:
    """Linear between the two nearest values, as numpy's default."""
    position = share * (n - 1)
    low_rank = math.floor(position)
    low, high = _value_at(ordered, low_rank), _value_at(ordered, math.ceil(position))
    return low + (high - low) * (position - low_rank)


def _value_at(ordered: list[tuple[int, int]], rank: int) -> int:
    seen = 0
    for value, count in ordered:
        seen += count
        if rank < seen:
            return value
    raise ValueError(f"rank {rank} is beyond {seen} values")


def _bins(ordered: list[tuple[int, int]], n: int) -> tuple[Bin, ...]:
    """At most 31 bars of a round width; empty ones between the first and the last are kept.

    A few very long texts must not squeeze all others into one bar: then the last bar is open.
    """
    low, high = ordered[0][0], ordered[-1][0]
    shown = _value_at(ordered, math.floor(TAIL * (n - 1)))
    if high <= low + 1.5 * (shown - low):
        shown = high
    width = next((w for w in BIN_WIDTHS if shown // w - low // w < MAX_BINS), None)
    width = width or math.ceil((shown - low + 1) / (MAX_BINS - 1))
    start = low // width * width
    last = (shown - start) // width
    counts: Counter[int] = Counter()
    for value, count in ordered:
        counts[min((value - start) // width, last + 1)] += count
    bars = [
        Bin(low=start + k * width, high=start + (k + 1) * width, n=counts[k])
        for k in range(last + 1)
    ]
    if counts[last + 1]:
        bars.append(Bin(low=start + (last + 1) * width, high=None, n=counts[last + 1]))
    return tuple(bars)
