"""L2-regularised logistic regression on sparse rows, in numpy alone.

    minimise over (w, b):  |w|^2 / 2 + C * sum_i log(1 + exp(-y_i (w . x_i + b)))

The loss is smooth and convex; it is minimised by L-BFGS with a backtracking line search. The
result depends on the data alone: no seed, no threads.

Source: Nocedal and Wright, Numerical Optimization (2006), algorithms 7.4 and 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MEMORY = 10
_SUFFICIENT_DECREASE = 1e-4
_MAX_STEPS = 200
_TOLERANCE = 1e-2
"""Largest gradient norm at the end, relative to the one at the start."""


class SparseRows(NamedTuple):
    """A sparse matrix by rows; every row has at least one entry."""

    columns: Ints
    """`(entries,)`: the column of each entry."""
    values: Floats
    """`(entries,)`."""
    starts: Ints
    """`(rows,)`: where each row's entries begin."""
    n_columns: int

    @property
    def row_of(self) -> Ints:
        """`(entries,)`: the row of each entry."""
        lengths = np.diff(np.append(self.starts, len(self.columns)))
        return np.repeat(np.arange(len(self.starts)), lengths)

    def take(self, rows: Ints) -> SparseRows:
        """These rows, in this order."""
        ends = np.append(self.starts, len(self.columns))
        lengths = ends[rows + 1] - ends[rows]
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        entries = np.repeat(ends[rows] - starts, lengths) + np.arange(lengths.sum())
        return SparseRows(self.columns[entries], self.values[entries], starts, self.n_columns)

    def dot(self, weights: Floats) -> Floats:
        """`(rows,)`: each row's product with a weight per column."""
        return np.add.reduceat(weights[self.columns] * self.values, self.starts)


class Linear(NamedTuple):
    """A fitted model: score = weights . x + bias."""

    weights: Floats
    """`(columns,)`."""
    bias: float


def fit_logistic(rows: SparseRows, targets: npt.NDArray[np.bool_], strength: float) -> Linear:
    """The model of one label.

    Args:
        targets: `(rows,)`; when all are alike the weights are 0 and the bias is far to that side.
        strength: C in the formula; larger fits the data more closely.
    """
    if targets.all() or not targets.any():
        return Linear(np.zeros(rows.n_columns), 9.0 if targets.all() else -9.0)
    signs = np.where(targets, 1.0, -1.0)
    row_of = rows.row_of

    def loss(point: Floats) -> tuple[float, Floats]:
        weights, bias = point[:-1], point[-1]
        margins = signs * (rows.dot(weights) + bias)
        value = 0.5 * _dot(weights, weights) + strength * np.logaddexp(0, -margins).sum()
        pull = -strength * signs / (1 + np.exp(np.clip(margins, -500, 500)))
        gradient = np.empty_like(point)
        gradient[:-1] = weights + np.bincount(
            rows.columns, weights=rows.values * pull[row_of], minlength=rows.n_columns
        )
        gradient[-1] = pull.sum()
        return float(value), gradient

    start = np.zeros(rows.n_columns + 1)
    start[-1] = np.log(targets.mean() / (1 - targets.mean()))
    found = _minimise(loss, start)
    return Linear(found[:-1], float(found[-1]))


def fit_platt(scores: Floats, targets: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset such that 1 / (1 + exp(-(slope * score + offset))) is a probability.

    Targets are smoothed as Platt does, so that few examples do not give certainty.

    Source: Platt, Probabilistic Outputs for Support Vector Machines (1999), section 2.
    """
    n_yes, n_no = int(targets.sum()), int((~targets).sum())
    goals = np.where(targets, (n_yes + 1) / (n_yes + 2), 1 / (n_no + 2))

    def loss(point: Floats) -> tuple[float, Floats]:
        logits = point[0] * scores + point[1]
        value = np.logaddexp(0, logits).sum() - goals @ logits
        error = 1 / (1 + np.exp(-np.clip(logits, -500, 500))) - goals
        return float(value), np.array([error @ scores, error.sum()])

    slope, offset = _minimise(loss, np.array([1.0, 0.0]))
    return float(slope), float(offset)


def _minimise(loss: Callable[[Floats], tuple[float, Floats]], point: Floats) -> Floats:
    """The minimum of a smooth convex function, by L-BFGS from `point`."""
    value, gradient = loss(point)
    enough = _TOLERANCE**2 * max(_dot(gradient, gradient), 1e-24)
    steps: list[tuple[Floats, Floats, float]] = []
    for _ in range(_MAX_STEPS):
        if _dot(gradient, gradient) <= enough:
            break
        direction = _direction(gradient, steps)
        slope = _dot(direction, gradient)
        length = 1.0 if steps else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        while True:
            trial = point + length * direction
            trial_value, trial_gradient = loss(trial)
            if trial_value <= value + _SUFFICIENT_DECREASE * length * slope:
                break
            length /= 2
            if length < 1e-12:
                return point
        moved, bent = trial - point, trial_gradient - gradient
        curvature = _dot(moved, bent)
        if curvature > 1e-12:
            steps = [*steps[-_MEMORY + 1 :], (moved, bent, curvature)]
        point, value, gradient = trial, trial_value, trial_gradient
    return point


def _dot(left: Floats, right: Floats) -> float:
    """Inner product on one thread: threads cost more than they bring for vectors of this size."""
    return float(np.einsum("i,i->", left, right))


def _direction(gradient: Floats, steps: list[tuple[Floats, Floats, float]]) -> Floats:
    """L-BFGS two-loop recursion."""
    found = -gradient
    shares = []
    for moved, bent, curvature in reversed(steps):
        share = _dot(moved, found) / curvature
        found -= share * bent
        shares.append(share)
    if steps:
        moved, bent, curvature = steps[-1]
        found *= curvature / _dot(bent, bent)
    for (moved, bent, curvature), share in zip(steps, reversed(shares), strict=True):
        found += (share - _dot(bent, found) / curvature) * moved
    return found
