"""Means and shares of few independent items."""

from __future__ import annotations

from functools import partial

import numpy as np

from cbtqa.statistics.intervals import mean_interval, share_interval
from tests.coverage.cases import COVERAGE, Case, Generator

SHAPES = {
    "even": (0.25, 0.5, 0.25),
    "skewed": (0.05, 0.15, 0.8),
    "near the ceiling": (0.02, 0.03, 0.95),
    "two points": (0.1, 0.0, 0.9),
}


def _mean_of_ratings(rng: Generator, n: int, shape: tuple[float, ...]) -> bool:
    points = np.arange(3.0)
    found = mean_interval(rng.choice(points, n, p=shape), scale=(0, 2))
    assert found.low is not None and found.high is not None
    return bool(found.low <= points @ np.array(shape) <= found.high)


def _mean_of_clusters(rng: Generator, n: int) -> bool | None:
    names = np.repeat(np.arange(n), 3)
    values = rng.normal(0, 1, n)[names] + rng.normal(0, 0.5, 3 * n)
    found = mean_interval(values, clusters=names.tolist())
    return None if found.low is None or found.high is None else found.low <= 0 <= found.high


def _share(rng: Generator, n: int, share: float) -> bool:
    found = share_interval(int(rng.binomial(n, share)), n)
    assert found.low is not None and found.high is not None
    return found.low <= share <= found.high


CASES = [
    *(
        Case(
            f"mean of {n} ratings of 0-2, {name}",
            "statistics",
            partial(_mean_of_ratings, n=n, shape=shape),
            400,
            (COVERAGE[0], 1.0),
            note="few values can occur: the interval errs on the wide side",
        )
        for name, shape in SHAPES.items()
        for n in (2, 5, 10, 30)
    ),
    *(
        Case(
            f"mean of {n} questions with three rows each",
            "statistics",
            partial(_mean_of_clusters, n=n),
            1_500,
            COVERAGE,
        )
        for n in (3, 10, 30)
    ),
    *(
        Case(
            f"share {share} of {n}",
            "statistics",
            partial(_share, n=n, share=share),
            2_000,
            (0.92, 0.99),
            note="a share of few items takes few values; .95 on average over shares",
        )
        for share in (0.1, 0.5, 0.8)
        for n in (10, 30)
    ),
]
