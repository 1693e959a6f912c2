"""Effects and correlations whose rows belong to patients: only patients are independent.

    robust = ClusterRobust(x, y, patients, fit)
    robust.effect(line, "tuned").p         # t with Satterthwaite's degrees of freedom
    robust.test(lines, "model").p          # several effects at once, approximate Hotelling's T2
    clustered_correlation(words, totals, patients).low

The estimates are those of the mixed model. Their errors come from how patients differ, whatever
ties the rows of one patient together: patient by arm, the course of the sessions, repeats.

Source: bias-reduced linearisation (CR2), Bell & McCaffrey 2002; degrees of freedom and tests of
several effects, Pustejovsky & Tipton 2018, whose clubSandwich calls the latter HTZ.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbtqa.records import NonEmptyText, Record
from cbtqa.statistics.agreement import Floats
from cbtqa.statistics.intervals import t_quantile, t_tail
from cbtqa.statistics.mixed_model import MixedFit
from cbtqa.statistics.split_plot import FEWEST_PATIENTS, FTest, f_test, no_test

FEWEST_FOR_CORRELATION = 5
"""Below this many patients a correlation has no interval."""
LEAST_DF = 1.0
"""A t below so many degrees of freedom says nothing; they are few where one patient decides."""


class RobustEffect(Record):
    """One effect, its error from patients."""

    name: NonEmptyText
    estimate: float
    se: float | None
    df: float | None
    """Satterthwaite's; patients less one where all have the same rows."""
    t: float | None
    p: float | None
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    reason: str | None = None
    """Why there is no p and no interval."""


class ClusterRobust:
    """The fixed effects of a fit with errors that hold whatever ties a patient's rows together."""

    def __init__(self, x: Floats, y: Floats, groups: Sequence[str], fit: MixedFit) -> None:
        """Takes the rows that `fit` was made of."""
        self._beta = fit.estimates
        names = np.array(groups)
        self._places = [names == name for name in np.unique(names)]
        ratio = fit.var_group / fit.var_residual
        residual = y - x @ self._beta
        precision = np.zeros((x.shape[1], x.shape[1]))
        weighted = []
        for place in self._places:
            own = x[place]
            shrunk = ratio / (1 + ratio * len(own))
            weighted.append(own - shrunk * own.sum(axis=0))
            precision += own.T @ weighted[-1]
        self._inverse: Floats = np.linalg.inv(precision).astype(np.float64)
        # rows of X' W A of each patient, and what its scores add to the sandwich
        self._sides = [
            _adjusted(x[place], weighted[number], self._inverse, ratio)
            for number, place in enumerate(self._places)
        ]
        self._x, self._ratio = x, ratio
        scores = np.array(
            [residual[place] @ side for place, side in zip(self._places, self._sides, strict=True)]
        )
        self._meat = scores.T @ scores

    def effect(self, line: Floats, name: str) -> RobustEffect:
        """A weighted sum of the effects, such as one of them or the gap between two arms."""
        estimate = float(line @ self._beta)
        found: dict[str, Any] = dict.fromkeys(("se", "df", "t", "p", "low", "high"))
        if reason := self._why_not():
            return RobustEffect(name=name, estimate=estimate, reason=reason, **found)
        weights = self._inverse @ line
        se = math.sqrt(max(float(weights @ self._meat @ weights), 0.0))
        spread = self._spread([weights])[0][0]
        square = float((spread**2).sum())
        df = float(np.trace(spread)) ** 2 / square if square > 0 else 0.0
        if se <= 0 or df < LEAST_DF - 1e-6:
            reason = "too few patients decide on it" if se > 0 else "its error is not known"
            return RobustEffect(name=name, estimate=estimate, reason=reason, **found)
        half = t_quantile(df) * se
        found = {"se": se, "df": df, "t": estimate / se, "p": t_tail(estimate / se, df)}
        found |= {"low": estimate - half, "high": estimate + half}
        return RobustEffect(name=name, estimate=estimate, **found)

    def test(self, lines: Sequence[Floats], name: str) -> FTest:
        """That all these sums of effects are 0."""
        if reason := self._why_not():
            return no_test(name, reason)
        table, q = np.array(lines), len(lines)
        weights = [self._inverse @ line for line in table]
        spread = self._spread(weights)
        truth = np.array([[np.trace(spread[s][t]) for t in range(q)] for s in range(q)])
        root = _inverse_root(truth)
        # in coordinates where the sums are independent with variance 1 under the working model
        turned = self._spread(list(root @ np.array(weights)))
        variance = sum(
            float((turned[s][t] * turned[s][t].T).sum() + (turned[s][s] * turned[t][t]).sum())
            for s in range(q)
            for t in range(q)
        )
        freedom = q * (q + 1) / variance if variance > 0 else 0.0
        rest = freedom - q + 1
        if rest < LEAST_DF - 1e-6:
            few = f"{len(self._places)} patients are too few for {q} effects at once"
            return no_test(name, few)
        covariance = np.array(weights) @ self._meat @ np.array(weights).T
        gap = table @ self._beta
        quadratic = float(gap @ np.linalg.pinv(covariance) @ gap)
        return f_test(name, rest / (freedom * q) * quadratic, q, rest)

    def _why_not(self) -> str | None:
        n = len(self._places)
        return None if n >= FEWEST_PATIENTS else f"{n} patients, fewer than {FEWEST_PATIENTS}"

    def _spread(self, weights: Sequence[Floats]) -> list[list[Floats]]:
        """Covariance between patients' parts of each two sums, under the working model."""
        parts = [[side @ one for side in self._sides] for one in weights]
        turned = [
            np.array([self._x[p].T @ g for p, g in zip(self._places, own, strict=True)])
            for own in parts
        ]
        found = []
        for s, first in enumerate(parts):
            row = []
            for t, second in enumerate(parts):
                plain = [
                    float(a @ b + self._ratio * a.sum() * b.sum())
                    for a, b in zip(first, second, strict=True)
                ]
                row.append(np.diag(plain) - turned[s] @ self._inverse @ turned[t].T)
            found.append(row)
        return found


def _adjusted(own: Floats, weighted: Floats, inverse: Floats, ratio: float) -> Floats:
    """A' W X of one patient, where A makes the sandwich unbiased under the working model."""
    n = len(own)
    # the square root of I + ratio J, which both sides of B are multiplied with
    grown = (math.sqrt(1 + ratio * n) - 1) / n
    half = np.eye(n) + grown
    covariance = np.eye(n) + ratio - own @ inverse @ own.T
    root = half @ _inverse_root(half @ covariance @ half) @ half
    return np.asarray(root @ weighted, dtype=np.float64)


def _inverse_root(matrix: Floats) -> Floats:
    """The symmetric root of the generalised inverse."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    kept = values > 1e-9 * max(float(values.max()), 1e-300)
    return np.asarray((vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T, np.float64)


class Correlated(NamedTuple):
    """Pearson's r with its 95 % interval, or why it has none."""

    r: float
    low: float | None
    high: float | None
    reason: str | None


def clustered_correlation(
    a: Floats, b: Floats, patients: Sequence[Hashable], arms: Sequence[Hashable] | None = None
) -> Correlated | None:
    """Pearson's r over rows of which only those of different patients are independent.

    Patients are random, arms fixed. Where every row is another patient's the interval is Fisher's
    z; elsewhere patients are left out one after the other, each arm's mean anew (jackknife of z,
    t with patients less one). None without variation or with too few rows.

    Args:
        arms: when given, both are taken as deviations from their arm's mean.

    Source: Fisher 1915; jackknife of z: Arvesen 1969, Efron 1982.
    """
    row, column = _numbered(patients), _numbered(arms if arms is not None else [0] * len(a))
    n = int(row.max(initial=-1)) + 1
    lost = int(column.max(initial=0)) + 1
    if len(a) < 4 or len(a) <= lost + 2:
        return None
    centre = np.stack([a.mean(), b.mean()])
    a, b = a - centre[0], b - centre[1]  # sums of squares far from 0 lose digits
    sums = np.zeros((n, lost, 6))
    np.add.at(sums, (row, column), np.column_stack([np.ones(len(a)), a, b, a * a, b * b, a * b]))
    whole = sums.sum(axis=0)
    spread_a, spread_b, _ = _products(whole[None])[0]
    if min(spread_a, spread_b) <= 1e-20 * len(a) or spread_a * spread_b <= 0:
        return None
    r = float(_correlations(whole[None])[0])
    if n < FEWEST_FOR_CORRELATION:
        return Correlated(r, None, None, f"{n} patients, fewer than {FEWEST_FOR_CORRELATION}")
    if abs(r) >= 1 - 1e-12:
        return Correlated(r, r, r, None)
    if n == len(a):
        half = t_quantile(math.inf) / math.sqrt(n - lost - 2)
    else:
        without = np.arctanh(np.clip(_correlations(whole - sums), -1 + 1e-12, 1 - 1e-12))
        # around the whole's own z, not the mean of the parts: wider where patients are few
        se = math.sqrt((n - 1) / n * float(((without - math.atanh(r)) ** 2).sum()))
        half = t_quantile(n - 1) * se
    return Correlated(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), None)


def _numbered(names: Sequence[Hashable]) -> NDArray[np.int64]:
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names], dtype=np.int64)


def _products(sums: Floats) -> Floats:
    """Squares of a and of b and their products, off the means of arms.

    Args:
        sums: of 1, a, b, aa, bb, ab; shape (samples, arms, 6).
    """
    n, a, b, aa, bb, ab = np.moveaxis(sums, -1, 0)
    n = np.maximum(n, 1.0)
    each = np.stack([aa - a * a / n, bb - b * b / n, ab - a * b / n], axis=-1)
    return np.asarray(each.sum(axis=1), dtype=np.float64)


def _correlations(sums: Floats) -> Floats:
    squares_a, squares_b, products = _products(sums).T
    below = np.sqrt(np.maximum(squares_a * squares_b, 1e-300))
    return np.asarray(np.clip(products / below, -1, 1), dtype=np.float64)
