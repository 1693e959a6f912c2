"""The ratio of two variances, between groups and residual, at the maximum of the likelihood.

    sums = GroupSums.of(y, x, groups)
    solve(sums, search_ratio(sums, "reml")).beta

All else in a model with a random intercept follows exactly from this one ratio. `mixed_model`
makes a fit of it.

Source: the profile likelihood of Lindstrom & Bates 1988, for one random effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cbtqa.statistics.agreement import Floats

Method = Literal["reml", "ml"]
LARGEST_SHARE = 1 - 1e-9
"""Of the variance between groups, as the search goes; 1 would leave no residual."""
GRID = 48


@dataclass(frozen=True)
class GroupSums:
    """Sums over rows, per group and in all; `weights` counts how often a group was drawn."""

    sizes: Floats  # (m,)
    group_x: Floats  # (m, p)
    group_y: Floats  # (m,)
    group_xx: Floats  # (m, p, p)
    group_xy: Floats  # (m, p)
    group_yy: Floats  # (m,)
    weights: Floats  # (m,)
    xx: Floats
    xy: Floats
    yy: float

    @classmethod
    def of(cls, y: Floats, x: Floats, groups: Sequence[str]) -> GroupSums:
        order = sorted(dict.fromkeys(groups))
        members = [np.array([i for i, g in enumerate(groups) if g == name]) for name in order]
        parts = [(x[rows], y[rows]) for rows in members]
        per_group = (
            np.array([float(len(b)) for _, b in parts]),
            np.array([a.sum(axis=0) for a, _ in parts]),
            np.array([b.sum() for _, b in parts]),
            np.array([a.T @ a for a, _ in parts]),
            np.array([a.T @ b for a, b in parts]),
            np.array([b @ b for _, b in parts]),
        )
        ones = np.ones(len(order))
        return cls(*per_group, ones, x.T @ x, x.T @ y, float(y @ y))

    def drawn(self, weights: Floats) -> GroupSums:
        """The sums of a sample in which each group stands so many times."""
        return GroupSums(
            *(self.sizes, self.group_x, self.group_y),
            *(self.group_xx, self.group_xy, self.group_yy),
            weights,
            np.tensordot(weights, self.group_xx, 1),
            weights @ self.group_xy,
            float(weights @ self.group_yy),
        )

    @property
    def n(self) -> int:
        return int(self.weights @ self.sizes)

    @property
    def p(self) -> int:
        return len(self.xy)


@dataclass(frozen=True)
class Solved:
    """The best fit for one ratio of variances (group by residual)."""

    beta: Floats
    precision: Floats
    """X' R^-1 X, where R is the covariance of y by the residual variance."""
    rss: float
    log_det_r: float

    def residual_variance(self, n: int, method: Method) -> float:
        return self.rss / (n - (len(self.beta) if method == "reml" else 0))

    def log_likelihood(self, n: int, method: Method) -> float:
        p = len(self.beta)
        df = n - p if method == "reml" else n
        if self.rss <= 0:
            return math.inf
        value = -0.5 * (df * (math.log(2 * math.pi * self.rss / df) + 1) + self.log_det_r)
        if method == "reml":
            value -= 0.5 * float(np.linalg.slogdet(self.precision)[1])
        return value


def solve(sums: GroupSums, ratio: float) -> Solved:
    shrink = sums.weights * ratio / (1 + ratio * sums.sizes)
    precision = sums.xx - (sums.group_x * shrink[:, None]).T @ sums.group_x
    right = sums.xy - sums.group_x.T @ (shrink * sums.group_y)
    beta = np.linalg.solve(precision, right).astype(np.float64)
    whole = sums.yy - float(shrink @ sums.group_y**2)
    log_det = float(sums.weights @ np.log1p(ratio * sums.sizes))
    return Solved(beta, precision, max(whole - float(beta @ right), 0.0), log_det)


def closed_ratio(sums: GroupSums, method: Method) -> float:
    """From the mean squares between and within groups, for groups with the same x."""
    m, size, weights = sums.weights.sum(), float(sums.sizes[0]), sums.weights
    means = sums.group_x * weights[:, None]
    within_xx = sums.xx - means.T @ sums.group_x / size
    within_xy = sums.xy - means.T @ sums.group_y / size
    explained = float(within_xy @ np.linalg.pinv(within_xx) @ within_xy)
    ss_within = sums.yy - float(weights @ sums.group_y**2) / size - explained
    off_mean = sums.group_y - weights @ sums.group_y / m
    ss_between = float(weights @ off_mean**2) / size
    # the intercept is the only column that does not vary within groups
    df_within = m * (size - 1) - ((sums.p - 1) if method == "reml" else 0)
    df_between = m - 1 if method == "reml" else m
    if ss_within <= 0:
        return LARGEST_SHARE / (1 - LARGEST_SHARE)
    return float(max(0.0, (ss_between / df_between) / (ss_within / df_within) - 1) / size)


def search_ratio(sums: GroupSums, method: Method) -> float:
    """The ratio at the highest likelihood: a grid over the share between groups, then bisection.

    The grid guards against a second, lower hill; the share runs from 0 to (almost) 1. The slope is
    bisected, not the height: heights differ too little near the top to place it well.
    """
    n = sums.n
    shares = np.linspace(0, 1, GRID) ** 2 * LARGEST_SHARE  # finer near 0, where ICCs lie
    ratios = shares / (1 - shares)
    heights = [solve(sums, float(ratio)).log_likelihood(n, method) for ratio in ratios]
    best = int(np.argmax(heights))
    low, high = float(shares[max(best - 1, 0)]), float(shares[min(best + 1, GRID - 1)])
    if best == 0 and _slope(sums, 0.0, method) <= 0:
        return 0.0
    while high - low > 1e-13 * max(high, 1e-3):
        middle = (low + high) / 2
        if _slope(sums, middle / (1 - middle), method) > 0:
            low = middle
        else:
            high = middle
    return low / (1 - low)


def _slope(sums: GroupSums, ratio: float, method: Method) -> float:
    """Derivative of the profile log-likelihood by the ratio."""
    solved = solve(sums, ratio)
    if solved.rss <= 0:
        return 1.0
    shrink = 1 + ratio * sums.sizes
    residual = sums.group_y - sums.group_x @ solved.beta
    falling = sums.weights / shrink**2
    df = sums.n - (sums.p if method == "reml" else 0)
    value = df * float(falling @ residual**2) / solved.rss
    value -= float(sums.weights @ (sums.sizes / shrink))
    if method == "reml":
        inverse = np.linalg.inv(solved.precision)
        value += float(falling @ np.einsum("gi,ij,gj->g", sums.group_x, inverse, sums.group_x))
    return value / 2
