"""The judge against people and against itself: coefficients, bias, corrected means."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from cbtqa.judging.answers import HumanRatings, JudgeRating
from cbtqa.ratings.rubric import Criterion, Rubric
from cbtqa.records import Record
from cbtqa.statistics.agreement import (
    Coefficient,
    Floats,
    cohen_kappa,
    krippendorff_alpha,
    undefined,
)
from cbtqa.statistics.intraclass import intraclass_correlation
from cbtqa.statistics.resampling import BOOTSTRAP_TRIALS
from cbtqa.statistics.tests_of_arms import kendall_tau, spearman_rho

# --- correction ----------------------------------------------------------------------------------
# The mean that people would give, from many ratings of a judge and some of people.
#
# A judge alone is biased, and its many ratings only make a wrong mean look certain. Where people
# rated a random part of the answers, the difference between them and the judge on that part
# corrects the judge's mean over all, and its spread widens the interval. With the weight below,
# the estimate is never less precise than the people's own mean, however poor the judge.
#
# Source: Angelopoulos et al., Prediction-powered inference, Science 2023; the weight is that of
# PPI++, arXiv 2311.01453, example 6.1. With weight 1 it is the survey statistician's difference
# estimator (Cassel, Sarndal and Wretman, 1976).

NORMAL_95 = 1.959963984540054


class CorrectedMean(Record):
    """A mean corrected by what people rated."""

    value: float
    low: float
    high: float
    weight: float
    """Of the judge's ratings, 0 to 1: 0 leaves the people's own mean."""
    n_human: int
    n_judge_only: int


def corrected_mean(human: Floats, judged: Floats, judge_only: Floats) -> CorrectedMean | None:
    """The mean over all answers, with its 95 % interval; None below two human ratings.

    Args:
        human: people's mean rating of each answer they rated, shape (n,).
        judged: the judge's rating of the same answers, shape (n,).
        judge_only: the judge's ratings of all other answers, shape (N,).
    """
    n, n_other = len(human), len(judge_only)
    if n < 2:
        return None
    weight = _weight(human, judged, judge_only)
    rest = human - weight * judged
    value = float(rest.mean())
    variance = float(rest.var(ddof=1)) / n
    if weight:
        value += weight * float(judge_only.mean())
        variance += weight**2 * float(judge_only.var(ddof=1)) / n_other
    half = NORMAL_95 * math.sqrt(variance)
    return CorrectedMean(
        value=value,
        low=value - half,
        high=value + half,
        weight=weight,
        n_human=n,
        n_judge_only=n_other,
    )


def _weight(human: Floats, judged: Floats, judge_only: Floats) -> float:
    """The weight that makes the variance least; 0 when the judge says nothing."""
    if len(judge_only) < 2:
        return 0.0
    spread = float(np.concatenate([judged, judge_only]).var(ddof=1))
    if spread == 0:
        return 0.0
    shared = float(np.cov(human, judged, ddof=1)[0, 1])
    return min(1.0, max(0.0, shared / ((1 + len(human) / len(judge_only)) * spread)))


# --- agreement -----------------------------------------------------------------------------------
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
    human_human: tuple[Coefficient, ...]
    """The ceiling: the same coefficients among people, where two or more rated."""
    bias: float | None
    """Mean of judge less people; positive when the judge is the milder one."""
    limits: tuple[float, float] | None
    """Between these, 95 % of the differences lie (Bland and Altman 1986)."""


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
    corrected: CorrectedMean


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


def self_alpha(cells: Cells, n_repeats: int) -> Coefficient:
    """Krippendorff's alpha of the repeats, as if each were a rater."""
    if n_repeats < 2 or not cells:
        return undefined("alpha_ordinal", "needs two repeats")
    table = [[cell.get(repeat) for cell in cells.values()] for repeat in range(n_repeats)]
    return krippendorff_alpha(table, "ordinal", n_resamples=BOOTSTRAP_TRIALS)


def agreement_with(
    rubric: Rubric, cells: Mapping[str, Cells], human: HumanRatings
) -> list[CriterionAgreement]:
    """Judge against people, and people among themselves, criterion by criterion."""
    return [
        _criterion_agreement(criterion, cells[criterion.id], human.values[criterion.id])
        for criterion in rubric.scales
    ]


def _criterion_agreement(
    criterion: Criterion, cells: Cells, people: Mapping[Key, Mapping[str, int]]
) -> CriterionAgreement:
    means = means_of(cells)
    keys = [key for key in people if key in means]
    raters = sorted({rater for key in keys for rater in people[key]})
    labels = list(criterion.points)
    # the judge as one rater among others: the middle one of its repeats, a whole number
    judge = [sorted(cells[key].values())[(len(cells[key]) - 1) // 2] for key in keys]
    rows = [[people[key].get(rater) for key in keys] for rater in raters]
    mine = np.array([means[key] for key in keys])
    theirs = np.array([sum(people[key].values()) / len(people[key]) for key in keys])
    gaps = mine - theirs
    bias = float(gaps.mean()) if len(gaps) else None
    half = 1.96 * float(gaps.std(ddof=1)) if len(gaps) > 1 else None
    judge_human = (
        mean_kappa([cohen_kappa(judge, row, labels, "quadratic") for row in rows]),
        krippendorff_alpha([judge, *rows], "ordinal", n_resamples=BOOTSTRAP_TRIALS),
        intraclass_correlation(np.stack([mine, theirs]), "A"),
        spearman_rho(mine, theirs),
        kendall_tau(mine, theirs),
    )
    return CriterionAgreement(
        criterion=criterion.id,
        n_items=len(keys),
        n_raters=len(raters),
        judge_human=judge_human,
        human_human=_among_people(rows, labels) if len(rows) > 1 else (),
        bias=bias,
        limits=None if bias is None or half is None else (bias - half, bias + half),
    )


def _among_people(
    rows: Sequence[Sequence[int | None]], labels: Sequence[float]
) -> tuple[Coefficient, ...]:
    pairs = combinations(rows, 2)
    return (
        mean_kappa([cohen_kappa(one, other, labels, "quadratic") for one, other in pairs]),
        krippendorff_alpha(rows, "ordinal", n_resamples=BOOTSTRAP_TRIALS),
    )


def mean_kappa(kappas: Sequence[Coefficient]) -> Coefficient:
    """Mean over pairs of raters, weighted by the items they share."""
    defined = [one for one in kappas if one.value is not None]
    n_items, n_ratings = (sum(one.n_items for one in defined), sum(o.n_ratings for o in defined))
    if not n_items:
        reason = kappas[0].reason if kappas else None
        return undefined("mean_kappa_quadratic", reason or "no pair of raters")
    value = sum((one.value or 0.0) * one.n_items for one in defined) / n_items
    return Coefficient(
        name="mean_kappa_quadratic", value=value, n_items=n_items, n_ratings=n_ratings
    )


def corrected_by(
    rubric: Rubric,
    systems: Iterable[str],
    cells: Mapping[str, Cells],
    human: HumanRatings,
) -> list[Correction]:
    """Corrected means, where at least two answers of a system were rated by people."""
    found = []
    for system in systems:
        for criterion in rubric.scales:
            means = {k: m for k, m in means_of(cells[criterion.id]).items() if k[1] == system}
            people = human.values[criterion.id]
            rated = [key for key in means if key in people]
            theirs = np.array([sum(people[k].values()) / len(people[k]) for k in rated])
            mine: Floats = np.array([means[key] for key in rated])
            others = np.array([mean for key, mean in means.items() if key not in people])
            corrected = corrected_mean(theirs, mine, others)
            if corrected is not None:
                found.append(
                    Correction(
                        system=system,
                        criterion=criterion.id,
                        judge_mean=float(np.mean(list(means.values()))),
                        human_mean=float(theirs.mean()),
                        corrected=corrected,
                    )
                )
    return found
