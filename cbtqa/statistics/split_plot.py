"""Arms compared on the same patients, each patient with one session or several in each arm.

    found = compare_arms(totals, arms_of_rows, patients, ("base", "tuned"))
    found.test.p, found.contrasts[0].p_adjusted, found.components.icc

Patients are random, arms are fixed. Sessions of one patient in one arm are averaged first; the
error of an arm's mean is how differently patients respond to the arms (patient by arm), which no
number of sessions per patient makes smaller. With equal cells this is the F of a split plot, exact
at any number of patients; with sessions missing it is the analysis of unweighted cell means, which
is nearly so. Whatever ties the sessions of one cell together (a course, repeats) does no harm.

A pair of arms has its own error, the patients' differences between the two, with one degree of
freedom more that comes from all arms: with three patients its own two would tell too little, and
the error common to all arms is wrong for every pair where arms differ in spread.

Source: Winer, Brown & Michels, Statistical Principles in Experimental Design, ch. 7; unweighted
means: Yates 1934; degrees of freedom where arms differ in spread: Huynh & Feldt 1976; variances
that borrow degrees of freedom: Smyth 2004.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np

from cbtqa.records import NonEmptyText, Record
from cbtqa.statistics.agreement import Floats
from cbtqa.statistics.intervals import CONFIDENCE, f_tail, t_quantile, t_tail
from cbtqa.statistics.mixed_model import holm_sidak
from cbtqa.statistics.resampling import DEFAULT_SEED, Interval

FEWEST_PATIENTS = 3
"""Below this many patients arms are described and not tested: one or two say nothing of others."""
BORROWED_DF = 1
"""Degrees of freedom that a pair's error takes from the error common to all arms. Coverage with
three patients, four to six arms: .93 where one arm spreads three times as far, .97 where all
spread alike; with two borrowed .90 and .96, with the common error alone .81 and .95."""
N_DRAWS = 5_000
"""Of three mean squares, for the ICC's interval."""
NOTHING = 1e-10
"""Share of the variance below which nothing but rounding is left."""


class FTest(Record):
    """One F test, or why there is none."""

    name: NonEmptyText
    f: float | None
    df_numerator: float | None
    df_denominator: float | None
    p: float | None
    reason: str | None = None
    """None when there is a p."""


class ArmContrast(Record):
    """Two arms: `second` less `first`, patients weighing the same."""

    first: str
    second: str
    difference: float
    se: float
    df: float
    t: float
    p: float
    p_adjusted: float
    """Holm-Sidak over all pairs."""
    low: float
    """Lower end of the 95 % interval, not widened for the number of pairs."""
    high: float
    d: float | None
    """Difference by the standard deviation of one session within its arm."""
    p_own_error: float | None
    """From the patients' differences between these two arms alone (paired t); None below three."""
    p_adjusted_common_error: float | None = None
    """Holm-Sidak over all pairs on the error common to all arms: for comparison, since it holds
    only where all arms spread alike."""


class Components(Record):
    """Where the variance within arms lies, and the ICC of patients.

    ICC: the share that patients make up of the variance of one session within its arm. Its interval
    is the exact F's with one session per patient and arm; with more it is a generalised confidence
    interval (Weerahandi 1993), on unweighted means where sessions are missing.
    """

    patient: float
    patient_by_arm: float | None
    """None with one session per patient and arm: it is part of the residual then."""
    residual: float
    icc: float | None
    icc_low: float | None
    icc_high: float | None
    reason: str | None = None
    """Why the ICC has no interval."""

    @property
    def session(self) -> float:
        """Variance of one session within its arm."""
        return self.patient + (self.patient_by_arm or 0.0) + self.residual


class EffectSizes(Record):
    """Effects of the arms less what chance alone brings in (as omega squared); 0 at least."""

    f: float
    """Cohen's f: spread of the arms' means by the standard deviation of one session within."""
    marginal: float
    """Share of the variance explained by the arms."""
    conditional: float
    """By the arms and the patients, patient-by-arm included where it is known."""


class ArmComparison(Record):
    """What is known of the arms when patients are random."""

    n_patients: int
    n_cells: int
    """Of patients by arms that have a session."""
    test: FTest
    """Of all arms; its degrees of freedom are cut where arms differ in spread (Huynh-Feldt)."""
    interaction: FTest
    """Whether patients respond differently to the arms; sessions taken as independent."""
    contrasts: tuple[ArmContrast, ...] = ()
    components: Components | None = None
    sizes: EffectSizes | None = None

    @property
    def reason(self) -> str | None:
        """Why arms are described and not tested."""
        return self.test.reason


def no_test(name: str, reason: str) -> FTest:
    return FTest(name=name, f=None, df_numerator=None, df_denominator=None, p=None, reason=reason)


def f_test(name: str, f: float, df_numerator: float, df_denominator: float) -> FTest:
    p = f_tail(f, df_numerator, df_denominator)
    return FTest(name=name, f=f, df_numerator=df_numerator, df_denominator=df_denominator, p=p)


@dataclass(frozen=True)
class _Cells:
    """Means and numbers of sessions, patients by arms; NaN where there is none."""

    means: Floats
    counts: Floats
    within: float
    """Sum of squares within cells."""

    @classmethod
    def of(
        cls, y: Floats, arms_of: Sequence[str], patients: Sequence[str], arms: Sequence[str]
    ) -> _Cells:
        names = {name: place for place, name in enumerate(dict.fromkeys(patients))}
        row = np.array([names[name] for name in patients], dtype=np.int64)
        column = np.array([list(arms).index(arm) for arm in arms_of], dtype=np.int64)
        shape = (len(names), len(arms))
        sums, counts = np.zeros(shape), np.zeros(shape)
        np.add.at(sums, (row, column), y)
        np.add.at(counts, (row, column), 1.0)
        with np.errstate(invalid="ignore"):
            means = sums / counts
        return cls(means, counts, float(((y - means[row, column]) ** 2).sum()))

    @property
    def filled(self) -> Floats:
        return (self.counts > 0).astype(np.float64)

    @property
    def n_within(self) -> int:
        """Degrees of freedom within cells."""
        return round(float(self.counts.sum() - self.filled.sum()))

    def whole(self) -> _Cells:
        """Those patients who have every arm."""
        kept = (self.counts > 0).all(axis=1)
        return _Cells(self.means[kept], self.counts[kept], self.within)


@dataclass(frozen=True)
class _Additive:
    """Least squares of cell means on patients and arms, each cell with a weight."""

    effects: Floats
    inverse: Floats
    """Generalised inverse of the arms' normal matrix, patients swept out."""
    rank: int
    ss_arms: float
    """Of the arms, patients held equal."""
    ss_error: float
    df_error: int

    @classmethod
    def fit(cls, cells: _Cells, weights: Floats) -> _Additive:
        means = np.where(weights > 0, np.nan_to_num(cells.means), 0.0)
        of_patient = weights.sum(axis=1)
        normal = np.diag(weights.sum(axis=0)) - (weights / of_patient[:, None]).T @ weights
        off = np.where(
            weights > 0, means - ((weights * means).sum(axis=1) / of_patient)[:, None], 0.0
        )
        right = (weights * off).sum(axis=0)
        values, vectors = np.linalg.eigh(normal)
        kept = values > 1e-9 * max(1.0, float(values[-1]))
        inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
        rank, ss_arms = int(kept.sum()), float(right @ inverse @ right)
        ss_error = max(float((weights * off**2).sum()) - ss_arms, 0.0)
        df = int((weights > 0).sum()) - len(weights) - rank
        return cls(inverse @ right, inverse, rank, ss_arms, ss_error, df)


def compare_arms(
    y: Sequence[float] | Floats,
    arms_of: Sequence[str],
    patients: Sequence[str],
    arms: Sequence[str],
    *,
    title: str = "arms",
) -> ArmComparison:
    """The arms on the patients that they share.

    Estimated are means over patients like these. Random: patients, and how each responds to each
    arm. Fixed: the arms. No test below `FEWEST_PATIENTS` patients, when nothing varies beside
    arms and patients, or when no patient links the arms.

    Args:
        y: one value per session.
        arms_of: arm of each session; `arms` in the order of the contrasts.
    """
    values = np.asarray(y, dtype=np.float64)
    if not len(values):
        missing = no_test(title, "no session has a value")
        return ArmComparison(n_patients=0, n_cells=0, test=missing, interaction=missing)
    cells = _Cells.of(values, arms_of, patients, arms)
    whole = cells.whole()
    plain = _Additive.fit(cells, cells.filled)
    linking = int((cells.filled.sum(axis=1) > 1).sum())
    spread = float(np.nanvar(cells.means) * cells.filled.sum())
    reason = _why_no_test(plain, linking, len(arms), spread)
    head = {
        "n_patients": len(cells.means),
        "n_cells": round(float(cells.filled.sum())),
    }
    components = _components(whole) if len(whole.means) >= 2 else None
    interaction = _interaction(cells, len(arms), linking)
    if reason is not None:
        test = no_test(title, reason)
        return ArmComparison.model_validate(
            {**head, "test": test, "interaction": interaction, "components": components}
        )
    scale = math.sqrt(components.session) if components is not None else 0.0
    found = {
        "test": _omnibus(whole, plain, title),
        "interaction": interaction,
        "contrasts": tuple(_contrasts(cells, plain, arms, scale)),
        "components": components,
        "sizes": _sizes(whole, components) if components is not None else None,
    }
    return ArmComparison.model_validate({**head, **found})


def _why_no_test(plain: _Additive, linking: int, n_arms: int, spread: float) -> str | None:
    if n_arms < 2:
        return "there is one arm"
    if linking < FEWEST_PATIENTS:
        word = "patient" if linking == 1 else "patients"
        return f"{linking} {word} in several arms, fewer than {FEWEST_PATIENTS}: described only"
    if plain.rank < n_arms - 1:
        return "some arms share no patient with the others"
    if plain.df_error < 1 or plain.ss_error <= NOTHING * spread:
        return "nothing varies beside arms and patients: the error is not known"
    return None


def _interaction(cells: _Cells, n_arms: int, linking: int) -> FTest:
    name = "patient by arm"
    if cells.n_within < 1:
        return no_test(name, "one session per patient and arm: not told apart from the residual")
    weighted = _Additive.fit(cells, cells.counts)
    if n_arms < 2 or linking < FEWEST_PATIENTS or weighted.df_error < 1:
        return no_test(name, f"needs {FEWEST_PATIENTS} patients in two arms")
    below = cells.within / cells.n_within
    if below <= 0:
        return no_test(name, "sessions of a patient in an arm are all alike")
    return f_test(
        name, weighted.ss_error / weighted.df_error / below, weighted.df_error, cells.n_within
    )


def _omnibus(whole: _Cells, plain: _Additive, title: str) -> FTest:
    """F of the arms on all cells; the cut of its degrees comes from patients with every arm."""
    f = plain.ss_arms / plain.rank / (plain.ss_error / plain.df_error)
    cut = _huynh_feldt(whole.means)
    return f_test(title, f, cut * plain.rank, cut * plain.df_error)


def _huynh_feldt(table: Floats) -> float:
    """Factor of the degrees of freedom, 1 where differences between arms all spread alike."""
    return _cut(table - table.mean(axis=0), len(table) - 1)


def _cut(rest: Floats, df: int) -> float:
    """The same of deviations from the means of groups that leave `df` degrees of freedom.

    Source: Huynh & Feldt 1976, for groups as Lecoutre 1991 corrected it.
    """
    n, k = rest.shape
    if n < FEWEST_PATIENTS or k < 3:
        return 1.0
    rest = rest - rest.mean(axis=1, keepdims=True)
    product = rest.T @ rest
    if np.trace(product) <= 0:
        return 1.0
    box = float(np.trace(product) ** 2 / ((k - 1) * (product**2).sum()))
    below = (k - 1) * (df - (k - 1) * box)
    corrected = ((df + 1) * (k - 1) * box - 2) / below if below > 0 else 1.0
    return min(1.0, max(corrected, box))


def arm_by_group(table: Floats, groups: Sequence[str], title: str) -> FTest:
    """Whether groups of patients differ in how arms compare: F of the split plot with groups.

    The error is patient by arm within groups; both degrees of freedom are cut by Huynh-Feldt.

    Args:
        table: shape (patients, arms), the mean of each patient's sessions; no gaps.
        groups: of each patient.
    """
    names = sorted(set(groups))
    n, k, n_groups = *table.shape, len(names)
    if n_groups < 2 or k < 2:
        return no_test(title, "one arm" if k < 2 else "one group")
    within = table - table.mean(axis=1, keepdims=True)
    of_group = np.array(groups)
    means = np.array([within[of_group == name].mean(axis=0) for name in names])
    sizes = np.array([(of_group == name).sum() for name in names], dtype=np.float64)
    rest = within - means[[names.index(name) for name in groups]]
    df_between, df_error = (n_groups - 1) * (k - 1), (n - n_groups) * (k - 1)
    error = float((rest**2).sum())
    if df_error < 1 or error <= NOTHING * max(1.0, float(table.var())) * n:
        return no_test(title, "nothing varies beside the groups and the arms")
    gap = means - sizes @ means / n
    between = float((sizes[:, None] * gap**2).sum())
    cut = _cut(rest, n - n_groups)
    return f_test(
        title, between / df_between / (error / df_error), cut * df_between, cut * df_error
    )


def _contrasts(
    cells: _Cells, plain: _Additive, arms: Sequence[str], scale: float
) -> list[ArmContrast]:
    pairs = [_pair(cells, plain, *places) for places in combinations(range(len(arms)), 2)]
    adjusted = holm_sidak([pair.p for pair in pairs])
    by_common = holm_sidak([pair.p_common for pair in pairs])
    return [
        ArmContrast(
            first=arms[pair.first],
            second=arms[pair.second],
            difference=pair.difference,
            se=pair.se,
            df=pair.df,
            t=pair.difference / pair.se,
            p=pair.p,
            p_adjusted=p_adjusted,
            low=pair.difference - t_quantile(pair.df) * pair.se,
            high=pair.difference + t_quantile(pair.df) * pair.se,
            d=pair.difference / scale if scale > 0 else None,
            p_own_error=pair.p_own,
            p_adjusted_common_error=p_common,
        )
        for pair, p_adjusted, p_common in zip(pairs, adjusted, by_common, strict=True)
    ]


class _Pair(NamedTuple):
    first: int
    second: int
    difference: float
    se: float
    df: float
    p_own: float | None
    p_common: float

    @property
    def p(self) -> float:
        return t_tail(self.difference / self.se, self.df)


def _pair(cells: _Cells, plain: _Additive, i: int, j: int) -> _Pair:
    """Two arms on the patients that have both; on all where those are fewer than three."""
    error = plain.ss_error / plain.df_error
    inverse = plain.inverse
    difference = float(plain.effects[j] - plain.effects[i])
    se = math.sqrt(error * float(inverse[i, i] + inverse[j, j] - 2 * inverse[i, j]))
    p_common = t_tail(difference / se, plain.df_error)
    gaps = cells.means[:, j] - cells.means[:, i]
    gaps = gaps[~np.isnan(gaps)]
    n = len(gaps)
    if n < FEWEST_PATIENTS:
        return _Pair(i, j, difference, se, plain.df_error, None, p_common)
    mean, own = float(gaps.mean()), float(gaps.var(ddof=1))
    p_own = t_tail(mean / math.sqrt(own / n), n - 1) if own > 0 else None
    mixed = ((n - 1) * own + BORROWED_DF * 2 * error) / (n - 1 + BORROWED_DF)
    df = min(n - 1 + BORROWED_DF, plain.df_error)
    return _Pair(i, j, mean, math.sqrt(mixed / n), df, p_own, p_common)


def _mean_squares(whole: _Cells) -> tuple[float, float]:
    """Of patients' means and of patient by arm, both of cell means."""
    table = whole.means
    of_patient = table.mean(axis=1)
    rest = table - table.mean(axis=0) - (of_patient - table.mean())[:, None]
    m, a = table.shape
    between = a * float(of_patient.var(ddof=1))
    return between, float((rest**2).sum()) / ((m - 1) * (a - 1)) if a > 1 else 0.0


def _components(whole: _Cells) -> Components | None:
    a = whole.means.shape[1]
    between, error = _mean_squares(whole)
    within = whole.within / whole.n_within if whole.n_within else None
    share = float((1 / whole.counts).mean())
    if a == 1:
        if within is None:
            return None
        error = within * share
    residual = error if within is None else within
    by_arm = None if within is None or a == 1 else max(error - share * within, 0.0)
    patient = max((between - error) / a, 0.0)
    total = patient + (by_arm or 0.0) + residual
    interval = _icc_interval(whole, between, error, within)
    return Components(
        patient=patient,
        patient_by_arm=by_arm,
        residual=residual,
        icc=patient / total if total > 0 else None,
        icc_low=interval.low,
        icc_high=interval.high,
        reason=interval.reason,
    )


def _icc_interval(whole: _Cells, between: float, error: float, within: float | None) -> Interval:
    """Of the share of patients: every mean square by a draw of its chi-square over its degrees.

    Without a mean square within cells, or with a single arm, the ratio of the two that are left
    is an F, and the interval is exact.
    """
    (m, a), share = whole.means.shape, float((1 / whole.counts).mean())
    if m < FEWEST_PATIENTS:
        return Interval(None, None, f"{m} patients, fewer than {FEWEST_PATIENTS}", 0)
    if error <= 0 or (within is not None and within <= 0):
        return Interval(None, None, "nothing varies beside arms and patients", 0)
    df_error = (m - 1) * (a - 1) if a > 1 else whole.n_within

    squares = between * _over_chi_square(m - 1, 0), error * _over_chi_square(df_error, 1)
    patient = np.maximum((squares[0] - squares[1]) / a, 0.0)
    if a == 1:
        rest = squares[1] / share
    elif within is None:
        rest = squares[1]
    else:
        residual = within * _over_chi_square(whole.n_within, 2)
        rest = np.maximum(squares[1] - share * residual, 0.0) + residual
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(patient / (patient + rest), [tail, 1 - tail])
    return Interval(float(low), float(high), None, 0)


@lru_cache(maxsize=256)
def _over_chi_square(df: int, place: int) -> Floats:
    """Degrees of freedom over draws of their chi-square; the same at every call."""
    draws = np.random.default_rng([DEFAULT_SEED, place]).chisquare(df, N_DRAWS)
    return np.asarray(df / draws, dtype=np.float64)


def _sizes(whole: _Cells, components: Components) -> EffectSizes | None:
    m, a = whole.means.shape
    if components.session <= 0:
        return None
    _, error = _mean_squares(whole)
    # what the means of arms spread beyond what patients' answers to the arms bring about
    spread = float(whole.means.mean(axis=0).var()) - (a - 1) / a * error / m
    arms = max(spread, 0.0)
    total = arms + components.session
    known = components.patient + (components.patient_by_arm or 0.0)
    return EffectSizes(
        f=math.sqrt(arms / components.session),
        marginal=arms / total,
        conditional=(arms + known) / total,
    )
