"""Means and shares of few independent items."""

from __future__ import annotations

from functools import partial

import numpy as np

from cbtqa.statistics.intervals import mean_interval, share_interval
from tests.coverage.cases import COVERAGE, Case, Generator, Shown, shown

SHAPES = {
    "even": (0.25, 0.5, 0.25),
    "skewed": (0.05, 0.15, 0.8),
    "near the ceiling": (0.02, 0.03, 0.95),
    "two points": (0.1, 0.0, 0.9),
}


def _mean_of_ratings(rng: Generator, n: int, shape: tuple[float, ...]) -> Shown | None:
    points = np.arange(3.0)
    ratings = rng.choice(points, n, p=shape)
    found = mean_interval(ratings, scale=(0, 2))
    return shown(float(ratings.mean()), found.low, found.high, float(points @ np.array(shape)))


def _mean_of_clusters(rng: Generator, n: int) -> Shown | None:
    names = np.repeat(np.arange(n), 3)
    values = rng.normal(0, 1, n)[names] + rng.normal(0, 0.5, 3 * n)
    found = mean_interval(values, clusters=names.tolist())
    return shown(float(values.mean()), found.low, found.high, 0.0)


def _share(rng: Generator, n: int, share: float) -> Shown | None:
    hits = int(rng.binomial(n, share))
    found = share_interval(hits, n)
    return shown(hits / n, found.low, found.high, share)


FEW_VALUES = "few values can occur: errs on the wide side"
OSCILLATES = "few values can occur: .92 to .98, .95 on average over shares"
CASES = [
    *(
        Case(
            f"mean of {n} ratings of 0-2, {name}",
            "statistics",
            partial(_mean_of_ratings, n=n, shape=shape),
            1_000,
            (COVERAGE[0], 1.0),
            note=FEW_VALUES,
            widest=1.55 if n < 10 else 1.3,
            tier="suite" if n <= 10 and name != "two points" else "bench",
        )
        for name, shape in SHAPES.items()
        for n in (2, 5, 10, 30)
    ),
    *(
        Case(
            f"mean of {n} questions with three rows each",
            "statistics",
            partial(_mean_of_clusters, n=n),
            2_000,
            COVERAGE,
            tier="suite" if n == 3 else "bench",
        )
        for n in (3, 10, 30)
    ),
    *(
        Case(
            f"share {share} of {n}",
            "statistics",
            partial(_share, n=n, share=share),
            2_000,
            (0.91, 0.99),
            note=OSCILLATES,
            widest=1.05,
            tier="suite" if n == 10 else "bench",
        )
        for share in (0.1, 0.5, 0.8)
        for n in (10, 30)
    ),
]
