"""From ratings to numbers: means with intervals, agreement with people, corrected means, alarms.

A judge's mean never stands alone: without human ratings the report says that it is uncorrected.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
from pydantic import Field

from cbtqa.metrics.base import Signature
from cbtqa.metrics.judge.correction import CorrectedMean, corrected_mean
from cbtqa.metrics.judge.inputs import HumanRatings
from cbtqa.metrics.judge.task import JudgeCriterion, JudgeRating, JudgeRubric
from cbtqa.records import MetricScore, Record
from cbtqa.statistics.agreement import (
    Coefficient,
    Floats,
    cohen_kappa,
    krippendorff_alpha,
    undefined,
)
from cbtqa.statistics.intraclass import intraclass_correlation
from cbtqa.statistics.ranks import kendall_tau, spearman_rho
from cbtqa.statistics.resampling import (
    BOOTSTRAP_TRIALS,
    DEFAULT_SEED,
    FEW_ITEMS,
    bootstrap_sums,
    percentile_interval,
)

Key = tuple[str, str]
"""Question id and system."""
ONE_POINT, MUCH_UNSCORED, MUCH_BIAS = 0.9, 0.05, 0.25
"""Alarms: share of one point of the scale; share without a rating; bias by share of the range."""


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


class RangeUse(Record):
    """How often each point was given, unscored ones by reason."""

    system: str
    criterion: str
    points: dict[int, int]
    unscored: dict[str, int]


class JudgeReport(Record):
    """Everything the judge's ratings come to."""

    judge: str
    rubric: str
    n_repeats: int
    scores: tuple[MetricScore, ...]
    use: tuple[RangeUse, ...]
    consistency: tuple[Consistency, ...]
    agreement: tuple[CriterionAgreement, ...] = ()
    corrections: tuple[Correction, ...] = ()
    alarms: tuple[str, ...] = ()
    n_human_passed_over: int = Field(default=0, ge=0)


def make_report(
    ratings: Sequence[JudgeRating],
    rubric: JudgeRubric,
    totals: Mapping[str, int],
    signature: Signature,
    n_repeats: int,
    human: HumanRatings | None,
) -> JudgeReport:
    """The report of one judge.

    Args:
        totals: system to number of questions, those without an answer included.
        signature: everything able to change a rating.
    """
    cells = _cells(ratings)
    scores, use = [], []
    for system, n_total in totals.items():
        for criterion in rubric.criteria:
            own = [one for one in ratings if (one.system, one.criterion) == (system, criterion.id)]
            scores.append(_score(system, criterion, cells[criterion.id], n_total, signature))
            use.append(_use(system, criterion, own))
    agreement = _agreement(rubric, cells, human) if human else []
    corrections = _corrections(rubric, totals, cells, human) if human else []
    return JudgeReport(
        judge=ratings[0].judge if ratings else "",
        rubric=rubric.id,
        n_repeats=n_repeats,
        scores=tuple(scores),
        use=tuple(use),
        consistency=tuple(
            Consistency(criterion=one.id, alpha=_self_alpha(cells[one.id], n_repeats))
            for one in rubric.criteria
        ),
        agreement=tuple(agreement),
        corrections=tuple(corrections),
        alarms=tuple(_alarms(rubric, use, agreement, corrections)),
        n_human_passed_over=human.n_passed_over if human else 0,
    )


Cells = dict[Key, dict[int, int]]
"""An answer's ratings by repeat, the scored ones only."""


def _cells(ratings: Iterable[JudgeRating]) -> dict[str, Cells]:
    found: dict[str, Cells] = defaultdict(dict)
    for one in ratings:
        cell = found[one.criterion].setdefault((one.question_id, one.system), {})
        if one.value is not None:
            cell[one.repeat] = one.value
    return found


def _means(cells: Cells) -> dict[Key, float]:
    """The judge's mean rating of each answer that has one."""
    return {key: sum(cell.values()) / len(cell) for key, cell in cells.items() if cell}


def _score(
    system: str, criterion: JudgeCriterion, cells: Cells, n_total: int, signature: Signature
) -> MetricScore:
    """The judge's own mean, uncorrected; its interval is over questions."""
    values = np.array([mean for key, mean in _means(cells).items() if key[1] == system])
    low = high = None
    if len(values) > 1:
        rows = np.stack([values, np.ones_like(values)], axis=1)
        sums = bootstrap_sums(rows, BOOTSTRAP_TRIALS, DEFAULT_SEED)
        low, high = percentile_interval(sums[:, 0] / sums[:, 1])
    return MetricScore(
        metric=f"judge_{criterion.id}",
        system=system,
        value=float(values.mean()) if len(values) else None,
        low=low,
        high=high,
        unit=f"{criterion.low}-{criterion.high}",
        n_scored=len(values),
        n_total=n_total,
        signature=str(signature.extended(criterion=criterion.id)),
        unscored_reason=None if len(values) else "no answer has a rating of the judge",
    )


def _use(system: str, criterion: JudgeCriterion, ratings: Sequence[JudgeRating]) -> RangeUse:
    points = Counter(one.value for one in ratings if one.value is not None)
    return RangeUse(
        system=system,
        criterion=criterion.id,
        points={p: points[p] for p in range(criterion.low, criterion.high + 1)},
        unscored=dict(Counter(one.unscored_reason for one in ratings if one.unscored_reason)),
    )


def _self_alpha(cells: Cells, n_repeats: int) -> Coefficient:
    if n_repeats < 2 or not cells:
        return undefined("alpha_ordinal", "needs two repeats")
    table = [[cell.get(repeat) for cell in cells.values()] for repeat in range(n_repeats)]
    return krippendorff_alpha(table, "ordinal", n_resamples=BOOTSTRAP_TRIALS)


# --- people --------------------------------------------------------------------------------------


def _agreement(
    rubric: JudgeRubric, cells: Mapping[str, Cells], human: HumanRatings
) -> list[CriterionAgreement]:
    return [
        _criterion_agreement(criterion, cells[criterion.id], human.values[criterion.id])
        for criterion in rubric.criteria
    ]


def _criterion_agreement(
    criterion: JudgeCriterion, cells: Cells, people: Mapping[Key, Mapping[str, int]]
) -> CriterionAgreement:
    means = _means(cells)
    keys = [key for key in people if key in means]
    raters = sorted({rater for key in keys for rater in people[key]})
    labels = list(range(criterion.low, criterion.high + 1))
    # the judge as one rater among others: the middle one of its repeats, a whole number
    judge = [sorted(cells[key].values())[(len(cells[key]) - 1) // 2] for key in keys]
    rows = [[people[key].get(rater) for key in keys] for rater in raters]
    mine = np.array([means[key] for key in keys])
    theirs = np.array([sum(people[key].values()) / len(people[key]) for key in keys])
    gaps = mine - theirs
    bias = float(gaps.mean()) if len(gaps) else None
    half = 1.96 * float(gaps.std(ddof=1)) if len(gaps) > 1 else None
    judge_human = (
        _mean_kappa([cohen_kappa(judge, row, labels, "quadratic") for row in rows]),
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
        _mean_kappa([cohen_kappa(one, other, labels, "quadratic") for one, other in pairs]),
        krippendorff_alpha(rows, "ordinal", n_resamples=BOOTSTRAP_TRIALS),
    )


def _mean_kappa(kappas: Sequence[Coefficient]) -> Coefficient:
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


def _corrections(
    rubric: JudgeRubric,
    systems: Iterable[str],
    cells: Mapping[str, Cells],
    human: HumanRatings,
) -> list[Correction]:
    found = []
    for system in systems:
        for criterion in rubric.criteria:
            means = {k: m for k, m in _means(cells[criterion.id]).items() if k[1] == system}
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


# --- alarms --------------------------------------------------------------------------------------


def _alarms(
    rubric: JudgeRubric,
    use: Sequence[RangeUse],
    agreement: Sequence[CriterionAgreement],
    corrections: Sequence[Correction],
) -> list[str]:
    alarms = [alarm for one in use for alarm in _range_alarms(one)]
    if not agreement:
        alarms.append(
            "no human ratings: these means are a model's opinion, uncorrected; judges overrate "
            "answers and miss faults of safety"
        )
    widths = {criterion.id: criterion.high - criterion.low for criterion in rubric.criteria}
    for found in agreement:
        if found.bias is not None and abs(found.bias) > MUCH_BIAS * widths[found.criterion]:
            word = "milder" if found.bias > 0 else "stricter"
            alarms.append(
                f"{found.criterion}: the judge is {word} than people by {abs(found.bias):.2f}"
            )
    few = sorted({one.system for one in corrections if one.corrected.n_human < FEW_ITEMS})
    if few:
        alarms.append(
            f"{', '.join(few)}: fewer than {FEW_ITEMS} answers have human ratings; the corrected "
            "intervals say little"
        )
    return alarms


def _range_alarms(use: RangeUse) -> list[str]:
    name = f"{use.system}, {use.criterion}"
    n_scored, n_unscored = sum(use.points.values()), sum(use.unscored.values())
    alarms = []
    if n_scored >= FEW_ITEMS:
        point, n = max(use.points.items(), key=lambda entry: entry[1])
        unused = [str(value) for value, count in use.points.items() if not count]
        if n / n_scored > ONE_POINT:
            alarms.append(f"{name}: the judge gives {point} to {n / n_scored:.0%} of the answers")
        elif unused:
            alarms.append(f"{name}: the judge never gives {', '.join(unused)}")
    if n_unscored and n_unscored / (n_scored + n_unscored) > MUCH_UNSCORED:
        reasons = ", ".join(f"{reason} {n}" for reason, n in use.unscored.items())
        share = n_unscored / (n_scored + n_unscored)
        alarms.append(f"{name}: {share:.0%} of the ratings are unscored ({reasons})")
    return alarms
