"""The judge against people and against itself: coefficients, bias, corrected means.

    both = JudgeAndPeople(means, whole, table, systems, questions)
    both.coefficient("icc_A_1"), both.coefficient("icc_A_1", is_within=True), both.bias((0, 2))

Judge against people is that and no more: agreement of people with each other does not enter. Over
all, systems that differ in quality are told apart by any judge that knows the system; within
systems, the mean over systems of what each one's answers alone give, shows whether it reads them.
Random are questions (or patients), and raters where there are three or more; the systems and the
judge are fixed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product

import numpy as np

from cbtqa.judging.answers import HumanRatings, JudgeRating
from cbtqa.judging.correction import (
    CorrectedMean,
    HumanSample,
    Scale,
    corrected_mean,
    means_by_answer,
    people_mean,
    sample_reason,
    selection_p,
    too_few_reason,
)
from cbtqa.ratings.rubric import Criterion, Rubric
from cbtqa.records import Record
from cbtqa.statistics.agreement import (
    NO_VARIATION,
    NOTHING_TO_COMPARE,
    Coefficient,
    Floats,
    krippendorff_alpha,
    undefined,
)
from cbtqa.statistics.crossed import CrossedEstimate
from cbtqa.statistics.intervals import t_quantile
from cbtqa.statistics.jackknife import Statistic, crossed_spread, interval_below_one

FEWEST_PAIRS = 3
"""Answers below which there is no coefficient, of a system or of all."""
KAPPA, SPEARMAN, KENDALL = "mean_kappa_quadratic", "spearman", "kendall_tau_b"
ICC_A, ICC_C = "icc_A_1", "icc_C_1"

Key = tuple[str, str]
"""Question id and system."""
Cells = dict[Key, dict[int, int]]
"""An answer's ratings by repeat, the scored ones only."""


class CriterionAgreement(Record):
    """The judge against people on one criterion."""

    criterion: str
    n_items: int
    """Answers that the judge and at least one person rated."""
    n_raters: int
    judge_human: tuple[Coefficient, ...]
    """Over all answers; the people count by their mean, in kappa one by one."""
    judge_human_within: tuple[Coefficient, ...] = ()
    """The same within systems; empty with one system."""
    human_human: tuple[Coefficient, ...]
    """The ceiling: coefficients among people, where two or more rated."""
    bias: float | None
    """Mean of judge less people; positive when the judge is the milder one."""
    bias_low: float | None = None
    bias_high: float | None = None
    bias_reason: str | None = None
    """Why the bias has no interval."""
    limits: tuple[float, float] | None
    """Between these, 95 % of the differences lie (Bland and Altman 1986)."""
    limit_intervals: tuple[Scale, Scale] | None = None
    """95 % intervals of the lower and of the upper limit."""


class Consistency(Record):
    """How far the judge agrees with itself on one criterion."""

    criterion: str
    alpha: Coefficient


class Correction(Record):
    """One system on one criterion, as people would rate it."""

    system: str
    criterion: str
    judge_mean: float
    human_mean: float
    """Of the answers that people rated, by the model of crossed raters and answers."""
    n_human: int
    corrected: CorrectedMean | None
    reason: str | None = None
    """Why the judge's mean is not corrected."""
    selection_p: float | None = None
    """Of the hypothesis that the judge rates what people rated as it rates the rest."""


@dataclass(frozen=True)
class JudgeAndPeople:
    """The judge's and the people's ratings of the same answers, one column an answer."""

    judge: Floats
    """Mean of the repeats, shape (answers,)."""
    whole: Floats
    """One whole rating, as a rater would give, NaN for totals; shape (answers,)."""
    people: Floats
    """`(raters, answers)` with NaN in the gaps; no column is empty."""
    groups: Sequence[str]
    """System or arm of each answer."""
    clusters: Sequence[Hashable]
    """Question or patient of each answer: these are independent."""

    def coefficient(self, name: str, *, is_within: bool = False) -> Coefficient:
        """One of the coefficients of this module, over all answers or within systems."""
        statistic = partial(_BY_NAME[name], self.judge, self.whole)
        if is_within:
            statistic = partial(self._within, _BY_NAME[name])
        return coefficient_of(name, statistic, self.people, self.clusters)

    def _within(self, statistic: _Measure, table: Floats, weights: Floats) -> Floats:
        """The mean over groups, by the answers in them; groups where it is undefined count not."""
        total, n_all = np.zeros(len(weights)), np.zeros(len(weights))
        for name in dict.fromkeys(self.groups):
            own = np.array([group == name for group in self.groups])
            found = statistic(self.judge[own], self.whole[own], table[:, own], weights[:, own])
            n = np.where(np.isnan(found), 0.0, weights[:, own].sum(axis=1))
            total, n_all = total + n * np.nan_to_num(found), n_all + n
        return np.asarray(np.where(n_all > 0, total / n_all, np.nan))

    def bias(self, scale: Scale) -> CrossedEstimate:
        """Mean of judge less people, answers by their clusters and raters random."""
        found = people_mean(self.people, scale, self.clusters, less=self.judge)
        low, high = (
            (None, None) if found.low is None or found.high is None else (-found.high, -found.low)
        )
        return found._replace(value=-found.value, low=low, high=high)

    def limits(self, bias: float) -> tuple[Scale, tuple[Scale, Scale] | None] | None:
        """Limits of agreement, and the interval of each; None below `FEWEST_PAIRS` answers.

        Source: Bland and Altman 1986; intervals by a jackknife of clusters and raters.
        """
        if len(self.judge) < FEWEST_PAIRS:
            return None
        gaps = self.judge - means_by_answer(self.people)
        half = 1.96 * float(gaps.std(ddof=1))
        intervals = []
        for side in (-1, 1):
            spread = crossed_spread(partial(self._limit, side), self.people, self.clusters)
            if spread.reason is not None or spread.se <= 1e-12:
                return (bias - half, bias + half), None
            reach, limit = t_quantile(spread.df) * spread.se, bias + side * half
            intervals.append((limit - reach, limit + reach))
        return (bias - half, bias + half), (intervals[0], intervals[1])

    def _limit(self, side: int, table: Floats, weights: Floats) -> Floats:
        theirs, counted = _means_of_people(table, weights)
        n, gaps = counted.sum(axis=1), self.judge - theirs
        middle = (counted @ gaps) / n
        squares = np.maximum(counted @ gaps**2 - n * middle**2, 0.0)
        return np.asarray(middle + side * 1.96 * np.sqrt(squares / (n - 1)))


# --- coefficients --------------------------------------------------------------------------------
# Each takes rows of weights (replicates, answers), 0 or 1, and gives one value a row, NaN where it
# is undefined: leaving out every question in turn costs a few products of matrices.

_Measure = Callable[[Floats, Floats, Floats, Floats], Floats]


def coefficient_of(
    name: str, statistic: Statistic, table: Floats, clusters: Sequence[Hashable]
) -> Coefficient:
    """A coefficient with the interval of its jackknife, or the reason why there is none.

    Args:
        table: people's ratings `(raters, answers)`.
    """
    sizes = table.shape[1], int((~np.isnan(table)).sum()) if table.size else 0
    if not sizes[1]:
        return undefined(name, NOTHING_TO_COMPARE)
    if sizes[0] < FEWEST_PAIRS:
        return undefined(name, f"fewer than {FEWEST_PAIRS} answers", *sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(table, np.ones((1, sizes[0])))[0])
        if np.isnan(value):
            return undefined(name, NO_VARIATION, *sizes)
        spread = crossed_spread(statistic, table, clusters)
    interval = interval_below_one(min(value, 1.0), spread)
    return Coefficient(
        name=name,
        value=value,
        low=interval.low,
        high=interval.high,
        interval_reason=interval.reason,
        random=() if interval.low is None else spread.random,
        n_items=sizes[0],
        n_ratings=sizes[1],
    )


def _pair_kappa(a: Floats, b: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Quadratic kappa of two raters, NaN where undefined, and the answers that both rated."""
    both = ~(np.isnan(a) | np.isnan(b))
    a, b, counted = a[both], b[both], weights[:, both]
    n = counted.sum(axis=1)
    met = counted @ (a - b) ** 2
    expected = counted @ a**2 + counted @ b**2 - 2 * (counted @ a) * (counted @ b) / n
    is_defined = (n >= FEWEST_PAIRS) & (expected > 1e-9)
    return np.where(is_defined, 1 - met / expected, np.nan), np.where(is_defined, n, 0.0)


def _mean_kappa(pairs: Iterable[tuple[Floats, Floats]], weights: Floats) -> Floats:
    """Mean over pairs of raters, by the answers they share."""
    total, n_all = np.zeros(len(weights)), np.zeros(len(weights))
    for a, b in pairs:
        kappa, n = _pair_kappa(a, b, weights)
        total, n_all = total + n * np.nan_to_num(kappa), n_all + n
    return np.where(n_all > 0, total / n_all, np.nan)


def _kappa(judge: Floats, whole: Floats, table: Floats, weights: Floats) -> Floats:
    """Of the judge with each rater, never of two raters. Source: Cohen 1968."""
    return _mean_kappa(((whole, row) for row in table), weights)


def kappa_of_raters(table: Floats, weights: Floats) -> Floats:
    """Mean quadratic kappa over pairs of raters."""
    return _mean_kappa(combinations(table, 2), weights)


def _means_of_people(table: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Each answer's mean, and the weights without answers that no one of these raters rated."""
    is_rated = ~np.isnan(table).all(axis=0)
    means = np.zeros(table.shape[1])
    if is_rated.any():
        means[is_rated] = means_by_answer(table[:, is_rated])
    return means, weights * is_rated


def _pearson(x: Floats, y: Floats, counted: Floats) -> Floats:
    """Of rows of values `(replicates, answers)`."""
    n = counted.sum(axis=1, keepdims=True)
    x = x - (counted * x).sum(axis=1, keepdims=True) / n
    y = y - (counted * y).sum(axis=1, keepdims=True) / n
    xx, yy, xy = ((counted * one).sum(axis=1) for one in (x * x, y * y, x * y))
    is_defined = (n[:, 0] >= FEWEST_PAIRS) & (xx > 1e-9) & (yy > 1e-9)
    return np.where(is_defined, xy / np.sqrt(xx * yy), np.nan)


def icc_of_raters(form: str, table: Floats, weights: Floats) -> Floats:
    """ICC (A,1) or (C,1) of a full `(raters, answers)` table. Source: McGraw & Wong 1996."""
    k, n = len(table), weights.sum(axis=1)
    centred = table - table.mean()
    by_rater = weights @ centred.T / n[:, None]
    grand, by_answer = by_rater.mean(axis=1), centred.mean(axis=0)
    rows = k * (weights @ by_answer**2 - n * grand**2)
    columns = n * ((by_rater - grand[:, None]) ** 2).sum(axis=1)
    rest = weights @ (centred**2).sum(axis=0) - k * n * grand**2 - rows - columns
    rows, columns = rows / (n - 1), columns / (k - 1)
    error = np.maximum(rest, 0.0) / ((n - 1) * (k - 1))
    below = rows + (k - 1) * error + (k / n * (columns - error) if form == "A" else 0)
    is_defined = (n >= FEWEST_PAIRS) & (rows + error > 1e-9) & (below > 1e-9)
    return np.asarray(np.where(is_defined, (rows - error) / below, np.nan))


def _icc(form: str, judge: Floats, whole: Floats, table: Floats, weights: Floats) -> Floats:
    """Of the judge and the people's mean."""
    theirs, counted = _means_of_people(table, weights)
    return icc_of_raters(form, np.stack([judge, theirs]), counted)


def _spearman(judge: Floats, whole: Floats, table: Floats, weights: Floats) -> Floats:
    theirs, counted = _means_of_people(table, weights)
    # the rank of each answer among those that count: those below, and half of those level
    a, b = (counted @ (0.5 + 0.5 * np.sign(one[None, :] - one[:, None])) for one in (judge, theirs))
    return _pearson(a, b, counted)


def _kendall(judge: Floats, whole: Floats, table: Floats, weights: Floats) -> Floats:
    theirs, counted = _means_of_people(table, weights)
    a, b = (np.sign(one[None, :] - one[:, None]) for one in (judge, theirs))
    met, of_judge, of_people = (
        ((counted @ one) * counted).sum(axis=1) for one in (a * b, np.abs(a), np.abs(b))
    )
    is_defined = (counted.sum(axis=1) >= FEWEST_PAIRS) & (of_judge > 0) & (of_people > 0)
    return np.where(is_defined, met / np.sqrt(of_judge * of_people), np.nan)


_BY_NAME: dict[str, _Measure] = {
    KAPPA: _kappa,
    ICC_A: partial(_icc, "A"),
    ICC_C: partial(_icc, "C"),
    SPEARMAN: _spearman,
    KENDALL: _kendall,
}


# --- answers of `cbtqa judge` --------------------------------------------------------------------


def cells_of(ratings: Iterable[JudgeRating]) -> dict[str, Cells]:
    """Ratings by criterion and answer; an answer without any keeps an empty cell."""
    found: dict[str, Cells] = defaultdict(dict)
    for one in ratings:
        cell = found[one.criterion].setdefault((one.question_id, one.system), {})
        if one.value is not None:
            cell[one.repeat] = one.value
    return found


def means_of(cells: Cells) -> dict[Key, float]:
    """The judge's mean rating of each answer that has one."""
    return {key: sum(cell.values()) / len(cell) for key, cell in cells.items() if cell}


def middle_of(repeats: Iterable[int]) -> int:
    """The middle one of an answer's repeats: a whole number, as a rater would give."""
    ordered = sorted(repeats)
    return ordered[(len(ordered) - 1) // 2]


def self_alpha(cells: Cells, n_repeats: int) -> Coefficient:
    """Krippendorff's alpha of the repeats, as if each were a rater; questions are random."""
    if n_repeats < 2 or not cells:
        return undefined("alpha_ordinal", "needs two repeats")
    table = [[cell.get(repeat) for cell in cells.values()] for repeat in range(n_repeats)]
    return krippendorff_alpha(table, "ordinal", clusters=[question for question, _ in cells])


def table_of(people: Mapping[Key, Mapping[str, int]], keys: Sequence[Key]) -> Floats:
    """People's ratings of some answers `(raters, answers)`, NaN in the gaps."""
    raters = sorted({rater for key in keys for rater in people[key]})
    rows = [[people[key].get(rater, np.nan) for key in keys] for rater in raters]
    return np.array(rows, dtype=np.float64).reshape(len(raters), len(keys))


def agreement_on(
    criterion: Criterion, cells: Cells, people: Mapping[Key, Mapping[str, int]]
) -> CriterionAgreement:
    """Judge against people, and people among themselves, on one criterion."""
    means = means_of(cells)
    keys = [key for key in people if key in means]
    table, questions = table_of(people, keys), [question for question, _ in keys]
    both = JudgeAndPeople(
        judge=np.array([means[key] for key in keys]),
        whole=np.array([middle_of(cells[key].values()) for key in keys], dtype=np.float64),
        people=table,
        groups=[system for _, system in keys],
        clusters=questions,
    )
    names = (KAPPA, ICC_A, SPEARMAN, KENDALL)
    among_people = []
    if len(table) > 1:
        kappa = coefficient_of(KAPPA, kappa_of_raters, table, questions)
        among_people = [kappa, krippendorff_alpha(table, "ordinal", clusters=questions)]
    bias = both.bias((criterion.low, criterion.high)) if keys else None
    limits = both.limits(bias.value) if bias else None
    return CriterionAgreement(
        criterion=criterion.id,
        n_items=len(keys),
        n_raters=len(table),
        judge_human=tuple(both.coefficient(name) for name in names),
        judge_human_within=tuple(
            both.coefficient(name, is_within=True) for name in names if len(set(both.groups)) > 1
        ),
        human_human=tuple(among_people),
        bias=bias.value if bias else None,
        bias_low=bias.low if bias else None,
        bias_high=bias.high if bias else None,
        bias_reason=bias.reason if bias else None,
        limits=limits[0] if limits else None,
        limit_intervals=limits[1] if limits else None,
    )


def corrected_by(
    rubric: Rubric,
    systems: Iterable[str],
    cells: Mapping[str, Cells],
    human: HumanRatings,
    sample: HumanSample | None,
) -> list[Correction]:
    """Corrected means of every system that people rated, or why there are none."""
    found = []
    for system, criterion in product(systems, rubric.scales):
        means = {k: m for k, m in means_of(cells[criterion.id]).items() if k[1] == system}
        people = human.values[criterion.id]
        rated = [key for key in means if key in people]
        rest = [key for key in means if key not in people]
        if not rated:
            continue
        scale = (float(criterion.low), float(criterion.high))
        table = table_of(people, rated)
        mine, others = (np.array([means[key] for key in keys]) for keys in (rated, rest))
        reason = sample_reason(sample, len(rest))
        corrected = None if reason else corrected_mean(table, mine, others, scale)
        if corrected is None and reason is None:
            reason = too_few_reason(len(rated), "answers")
        found.append(
            Correction(
                system=system,
                criterion=criterion.id,
                judge_mean=float(np.mean(list(means.values()))),
                human_mean=people_mean(table, scale).value,
                n_human=len(rated),
                corrected=corrected,
                reason=reason,
                selection_p=selection_p(mine, others, rated, rest) if corrected else None,
            )
        )
    return found
