"""The judge against people and against itself: coefficients, bias, corrected means."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product

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
from cbtqa.statistics.mixed_model import NORMAL_95
from cbtqa.statistics.resampling import BOOTSTRAP_TRIALS
from cbtqa.statistics.tests_of_arms import kendall_tau, spearman_rho


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
    """The mean that people would give to all answers, with its 95 % interval; None below two.

    Many ratings of a biased judge only make a wrong mean look certain. The difference between
    people and judge, where people rated a random part, corrects the judge's mean over all, and its
    spread widens the interval; with the weight used it is never less precise than people alone.

    Args:
        human: people's mean rating of each answer they rated, shape (n,).
        judged: the judge's rating of the same answers, shape (n,).
        judge_only: the judge's ratings of all other answers, shape (N,).

    Source: Angelopoulos et al., Prediction-powered inference, Science 2023; weight of PPI++,
        arXiv 2311.01453, example 6.1. At weight 1 it is the difference estimator of Cassel,
        Sarndal and Wretman, 1976.
    """
    n, n_other = len(human), len(judge_only)
    if n < 2:
        return None
    weight = 0.0  # where the judge's ratings do not vary
    spread = float(np.concatenate([judged, judge_only]).var(ddof=1))
    if n_other > 1 and spread > 0:  # the weight that makes the variance least
        shared = float(np.cov(human, judged, ddof=1)[0, 1])
        weight = min(1.0, max(0.0, shared / ((1 + n / n_other) * spread)))
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


def agreement_on(
    criterion: Criterion, cells: Cells, people: Mapping[Key, Mapping[str, int]]
) -> CriterionAgreement:
    """Judge against people, and people among themselves, on one criterion."""
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
    among_people = []
    if len(rows) > 1:
        pairs = combinations(rows, 2)
        kappas = [cohen_kappa(one, other, labels, "quadratic") for one, other in pairs]
        alpha = krippendorff_alpha(rows, "ordinal", n_resamples=BOOTSTRAP_TRIALS)
        among_people = [mean_kappa(kappas), alpha]
    return CriterionAgreement(
        criterion=criterion.id,
        n_items=len(keys),
        n_raters=len(raters),
        judge_human=judge_human,
        human_human=tuple(among_people),
        bias=bias,
        limits=None if bias is None or half is None else (bias - half, bias + half),
    )


def mean_kappa(kappas: Sequence[Coefficient]) -> Coefficient:
    """Mean over pairs of raters, weighted by the items they share."""
    defined = [one for one in kappas if one.value is not None]
    n_items, n_ratings = (sum(one.n_items for one in defined), sum(o.n_ratings for o in defined))
    name = "mean_kappa_quadratic"
    if not n_items:
        return undefined(name, (kappas and kappas[0].reason) or "no pair of raters")
    value = sum((one.value or 0.0) * one.n_items for one in defined) / n_items
    return Coefficient(name=name, value=value, n_items=n_items, n_ratings=n_ratings)


def corrected_by(
    rubric: Rubric, systems: Iterable[str], cells: Mapping[str, Cells], human: HumanRatings
) -> list[Correction]:
    """Corrected means, where at least two answers of a system were rated by people."""
    found = []
    for system, criterion in product(systems, rubric.scales):
        means = {k: m for k, m in means_of(cells[criterion.id]).items() if k[1] == system}
        people = human.values[criterion.id]
        rated = [key for key in means if key in people]
        theirs = np.array([sum(people[k].values()) / len(people[k]) for k in rated])
        mine: Floats = np.array([means[key] for key in rated])
        others = np.array([mean for key, mean in means.items() if key not in people])
        if corrected := corrected_mean(theirs, mine, others):
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
