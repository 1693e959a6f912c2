"""Tests as page and terminal write them."""

from __future__ import annotations

from collections.abc import Sequence

from cbtqa.report.words import GAP, number, p_relation
from cbtqa.statistics.mixed_model import Contrast, LikelihoodRatio, Wald
from cbtqa.statistics.split_plot import ArmContrast, FTest


def wald_text(test: Wald | LikelihoodRatio) -> str:
    """Such as `χ²(2) = 9.21, p = 0.0100`."""
    return f"χ²({test.df}) = {number(test.chi2)}, p {p_relation(test.p)}"


def f_text(test: FTest) -> str:
    """Such as `F(2, 8) = 9.21, p = 0.0100`, or the reason why there is no test."""
    if test.f is None or test.p is None:
        return test.reason or GAP
    df = (f"{value:.1f}".removesuffix(".0") for value in (test.df_numerator, test.df_denominator))
    return f"F({', '.join(df)}) = {number(test.f)}, p {p_relation(test.p)}"


def clear_pairs(contrasts: Sequence[ArmContrast] | Sequence[Contrast]) -> str:
    """Such as `6 of 15 pairs at adjusted p < 0.05`; how many on the common error, if others."""
    n = sum(one.p_adjusted < 0.05 for one in contrasts)
    text = f"{n} of {len(contrasts)} pairs at adjusted p < 0.05"
    by_common = [one.p_adjusted_common_error for one in contrasts if isinstance(one, ArmContrast)]
    n_common = sum(p is not None and p < 0.05 for p in by_common)
    if None in by_common or not by_common or n_common == n:
        return text
    return f"{text} ({n_common} on an error common to all arms, right only if all spread alike)"
