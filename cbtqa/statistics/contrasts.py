"""What follows from a fitted mixed model: omnibus test, pairs of arms, effect sizes, R2.

combine(fit, rows[0], arms[0]).low              # rows: one line of x per arm
pairwise(fit, rows, arms)[0].p_adjusted         # Holm-Sidak over all pairs
wald(fit, ("tuned", "large"))                   # are these effects all 0?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from cbtqa.records import NonEmptyText, Record
from cbtqa.statistics.agreement import Floats
from cbtqa.statistics.mixed_model import Effect, MixedFit, make_effect
from cbtqa.statistics.resampling import step_down
from cbtqa.statistics.tests_of_arms import chi2_tail


class Wald(Record):
    """One test that several effects are all zero."""

    name: NonEmptyText
    chi2: float
    df: int
    p: float


class Contrast(Record):
    """Two arms: `second` less `first`."""

    first: str
    second: str
    difference: float
    se: float
    z: float
    p: float
    p_adjusted: float
    """Holm-Sidak over all pairs of the same model."""
    low: float
    """Lower end of the 95 % interval, not widened for the number of pairs."""
    high: float
    d: float
    """Difference by the standard deviation of one session: residual and patient together."""


class ExplainedVariance(Record):
    """Nakagawa & Schielzeth's R2: by the fixed effects, and by them and the groups."""

    marginal: float
    conditional: float


def wald(fit: MixedFit, names: Sequence[str], title: str = "arms") -> Wald:
    """Wald's chi-square test that the named effects are all 0."""
    places = [i for i, effect in enumerate(fit.effects) if effect.name in names]
    beta = fit.estimates[places]
    covariance = np.array(fit.covariance)[np.ix_(places, places)]
    chi2 = float(beta @ np.linalg.solve(covariance, beta))
    return Wald(name=title, chi2=chi2, df=len(places), p=chi2_tail(chi2, len(places)))


def combine(fit: MixedFit, row: Floats, name: str) -> Effect:
    """A weighted sum of the fixed effects, such as the mean of one arm."""
    variance = float(row @ np.array(fit.covariance) @ row)
    return make_effect(name, float(row @ fit.estimates), math.sqrt(max(variance, 0.0)))


def pairwise(fit: MixedFit, rows: Sequence[Floats], arms: Sequence[str]) -> list[Contrast]:
    """Every pair of arms, by z; `rows` holds one line of x per arm."""
    spread = math.sqrt(fit.var_group + fit.var_residual)
    pairs = list(combinations(range(len(arms)), 2))
    found = [combine(fit, rows[j] - rows[i], f"{arms[j]}-{arms[i]}") for i, j in pairs]
    adjusted = holm_sidak([effect.p for effect in found])
    return [
        Contrast(
            first=arms[i],
            second=arms[j],
            difference=effect.estimate,
            se=effect.se,
            z=effect.z,
            p=effect.p,
            p_adjusted=p_adjusted,
            low=effect.low,
            high=effect.high,
            d=effect.estimate / spread if spread > 0 else 0.0,
        )
        for (i, j), effect, p_adjusted in zip(pairs, found, adjusted, strict=True)
    ]


def holm_sidak(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing them all, in the order given. Source: Sidak 1967; Holm 1979."""
    # 1 - (1 - p)^n, without losing p-values below 1e-16 to rounding
    return step_down(p_values, lambda p, n: -math.expm1(n * math.log1p(-p)) if p < 1 else 1.0)


def explained_variance(fit: MixedFit, x: Floats) -> ExplainedVariance:
    """R2 of the fixed effects, and of these with the groups. Source: Nakagawa & Schielzeth 2013."""
    fixed = float(np.var(x @ fit.estimates, ddof=1))
    whole = fixed + fit.var_group + fit.var_residual
    return ExplainedVariance(marginal=fixed / whole, conditional=(fixed + fit.var_group) / whole)


def cohen_f(values: Sequence[Floats]) -> float | None:
    """Cohen's f of independent arms: spread of their means by the spread within; None undefined.

    Source: Cohen 1988, section 8.2, the spread within from n - k degrees of freedom.
    """
    kept = [np.asarray(one, np.float64) for one in values if len(one)]
    n, k = sum(map(len, kept)), len(kept)
    if k < 2 or n <= k:
        return None
    grand = np.concatenate(kept).mean()
    between = sum(len(one) * (one.mean() - grand) ** 2 for one in kept) / n
    within = sum(((one - one.mean()) ** 2).sum() for one in kept) / (n - k)
    return math.sqrt(between / within) if within > 0 else None
