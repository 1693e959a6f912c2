"""Ranks with ties, rank correlation of two raters, and concordance of several.

kendall_w([[1, 2, 3], [1, 2, 3]]).value == 1.0
"""

from __future__ import annotations

import numpy as np

from cbtqa.statistics.agreement import (
    NO_VARIATION,
    Cells,
    Coefficient,
    Floats,
    Values,
    as_table,
    undefined,
)


def ranks(values: Values) -> Floats:
    """Ranks from 1, ties sharing their mean rank; the input has no gaps."""
    data = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(data, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    result: Floats = (last - (counts - 1) / 2)[inverse]
    return result


def tie_term(values: Values) -> float:
    """The sum of t^3 - t over groups of t equal values, as tie corrections want it."""
    counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)[1]
    return float((counts.astype(np.float64) ** 3 - counts).sum())


def kendall_w(cells: Cells) -> Coefficient:
    """Kendall's W of concordance with the correction for ties. Source: Kendall & Gibbons 1990."""
    table = as_table(cells)
    table = table[:, ~np.isnan(table).any(axis=0)]
    m, n = table.shape
    if m < 2 or n < 2:
        return undefined("kendall_w", "needs two raters and two items rated by all", n, m * n)
    ranked = np.array([ranks(row) for row in table])
    spread = float(((ranked.sum(axis=0) - m * (n + 1) / 2) ** 2).sum())
    below = m**2 * (n**3 - n) - m * sum(tie_term(row) for row in table)
    if below <= 0:
        return undefined("kendall_w", NO_VARIATION, n, m * n)
    return Coefficient(name="kendall_w", value=12 * spread / below, n_items=n, n_ratings=m * n)


def spearman_rho(first: Values, second: Values) -> Coefficient:
    """Spearman's rank correlation: Pearson's on mean ranks. Gaps are passed over pairwise."""
    a, b = _complete_pairs(first, second)
    if len(a) < 2:
        return undefined("spearman", "needs two pairs", len(a), 2 * len(a))
    x, y = ranks(a) - (len(a) + 1) / 2, ranks(b) - (len(a) + 1) / 2
    below = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return _correlation("spearman", float((x * y).sum()), below, len(a))


def kendall_tau(first: Values, second: Values) -> Coefficient:
    """Kendall's tau-b, which allows for ties. Gaps are passed over pairwise."""
    a, b = _complete_pairs(first, second)
    n = len(a)
    if n < 2:
        return undefined("kendall_tau_b", "needs two pairs", n, 2 * n)
    score = tied_a = tied_b = 0.0
    for i in range(n - 1):
        sign_a, sign_b = np.sign(a[i + 1 :] - a[i]), np.sign(b[i + 1 :] - b[i])
        score += float(sign_a @ sign_b)
        tied_a += float((sign_a == 0).sum())
        tied_b += float((sign_b == 0).sum())
    n_pairs = n * (n - 1) / 2
    return _correlation(
        "kendall_tau_b", score, float(np.sqrt((n_pairs - tied_a) * (n_pairs - tied_b))), n
    )


def _complete_pairs(first: Values, second: Values) -> tuple[Floats, Floats]:
    table = as_table([list(first), list(second)])
    kept = table[:, ~np.isnan(table).any(axis=0)]
    return kept[0], kept[1]


def _correlation(name: str, above: float, below: float, n: int) -> Coefficient:
    if below <= 0:
        return undefined(name, "no variation on one side", n, 2 * n)
    return Coefficient(name=name, value=above / below, n_items=n, n_ratings=2 * n)
