"""The judge's report: means with intervals, use of the scale, what people say of it, alarms.

Without human ratings the report states that a judge's mean is uncorrected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from cbtqa.judging.agreement import (
    Cells,
    Consistency,
    Correction,
    CriterionAgreement,
    agreement_on,
    cells_of,
    corrected_by,
    means_of,
    self_alpha,
)
from cbtqa.judging.answers import HumanRatings, JudgeRating
from cbtqa.metrics.base import Signature
from cbtqa.ratings.rubric import Criterion, Rubric
from cbtqa.records import MetricScore, Record
from cbtqa.report.table import Cell, Column, Estimate, Table
from cbtqa.report.words import count, number, share, signed
from cbtqa.statistics.resampling import (
    BOOTSTRAP_TRIALS,
    DEFAULT_SEED,
    FEW_ITEMS,
    Interval,
    bootstrap_sums,
    defined_interval,
)

ONE_POINT, MUCH_UNSCORED, MUCH_BIAS = 0.9, 0.05, 0.25
"""Alarms: share of one point of the scale; share without a rating; bias by share of the range."""


NO_PEOPLE = (
    "no human ratings: these means are a model's opinion, uncorrected; judges overrate answers and "
    "miss faults of safety"
)


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
    rubric: Rubric,
    totals: Mapping[str, int],
    signature: Signature,
    n_repeats: int,
    human: HumanRatings | None,
) -> JudgeReport:
    """The report of one judge; `totals` gives each system's questions, unanswered ones included."""
    cells = cells_of(ratings)
    scores, use = [], []
    for system, n_total in totals.items():
        for criterion in rubric.scales:
            own = [one for one in ratings if (one.system, one.criterion) == (system, criterion.id)]
            scores.append(_score(system, criterion, cells[criterion.id], n_total, signature))
            points = Counter(one.value for one in own if one.value is not None)
            use.append(
                RangeUse(
                    system=system,
                    criterion=criterion.id,
                    points={p: points[p] for p in criterion.points},
                    unscored=dict(Counter(o.unscored_reason for o in own if o.unscored_reason)),
                )
            )
    agreement: list[CriterionAgreement] = []
    corrections: list[Correction] = []
    if human:
        values = human.values
        agreement = [agreement_on(one, cells[one.id], values[one.id]) for one in rubric.scales]
        corrections = corrected_by(rubric, totals, cells, human)
    return JudgeReport(
        judge=ratings[0].judge if ratings else "",
        rubric=rubric.versioned_id,
        n_repeats=n_repeats,
        scores=tuple(scores),
        use=tuple(use),
        consistency=tuple(
            Consistency(criterion=one.id, alpha=self_alpha(cells[one.id], n_repeats))
            for one in rubric.scales
        ),
        agreement=tuple(agreement),
        corrections=tuple(corrections),
        alarms=tuple(_alarms(rubric, use, agreement, corrections)),
        n_human_passed_over=human.n_passed_over if human else 0,
    )


def _score(
    system: str, criterion: Criterion, cells: Cells, n_total: int, signature: Signature
) -> MetricScore:
    """The judge's own mean, uncorrected; its interval is over questions."""
    values = np.array([mean for key, mean in means_of(cells).items() if key[1] == system])
    interval = Interval(None, None, None, 0)
    if len(values):
        rows = np.stack([values, np.ones_like(values)], axis=1)
        sums = bootstrap_sums(rows, BOOTSTRAP_TRIALS, DEFAULT_SEED)
        interval = defined_interval(sums[:, 0] / sums[:, 1], len(values))
    return MetricScore(
        metric=f"judge_{criterion.id}",
        system=system,
        value=float(values.mean()) if len(values) else None,
        low=interval.low,
        high=interval.high,
        interval_reason=interval.reason,
        unit=f"{criterion.low}-{criterion.high}",
        n_scored=len(values),
        n_total=n_total,
        signature=str(signature.extended(criterion=criterion.id)),
        unscored_reason=None if len(values) else "no answer has a rating of the judge",
    )


def _alarms(
    rubric: Rubric,
    use: Sequence[RangeUse],
    agreement: Sequence[CriterionAgreement],
    corrections: Sequence[Correction],
) -> list[str]:
    alarms = [alarm for one in use for alarm in _range_alarms(one)]
    if not agreement:
        alarms.append(NO_PEOPLE)
    widths = {criterion.id: criterion.high - criterion.low for criterion in rubric.scales}
    for found in agreement:
        if found.bias is not None and abs(found.bias) > MUCH_BIAS * widths[found.criterion]:
            word = "milder" if found.bias > 0 else "stricter"
            alarms.append(
                f"{found.criterion}: the judge is {word} than people by {number(abs(found.bias))}"
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
            alarms.append(
                f"{name}: the judge gives {point} to {share(n / n_scored, 0)} of the answers"
            )
        elif unused:
            alarms.append(f"{name}: the judge never gives {', '.join(unused)}")
    if n_unscored and n_unscored / (n_scored + n_unscored) > MUCH_UNSCORED:
        reasons = ", ".join(f"{reason} {n}" for reason, n in use.unscored.items())
        of_all = share(n_unscored / (n_scored + n_unscored), 0)
        alarms.append(f"{name}: {of_all} of the ratings are unscored ({reasons})")
    return alarms


def score_table(report: JudgeReport) -> Table:
    """The judge's means beside those of people, and as people would rate."""
    corrected = {(one.system, one.criterion): one for one in report.corrections}
    rows: list[tuple[Cell, ...]] = []
    for score in report.scores:
        criterion = score.metric.removeprefix("judge_")
        found = corrected.get((score.system, criterion))
        held = found.corrected if found else None
        rows.append(
            (
                f"{score.system}, {criterion} ({score.unit})",
                Estimate(score.value, score.low, score.high, score.unscored_reason),
                Estimate(found.human_mean, note=f"(n {held.n_human})") if found and held else None,
                Estimate(held.value, held.low, held.high) if held else None,
                f"{count(score.n_scored)}/{count(score.n_total)}",
            )
        )
    heads = (Column(name, number) for name in ("judge", "people", "corrected"))
    title = f"Rated by {report.judge} on {report.rubric}, {report.n_repeats} times"
    return Table(["system, criterion", *heads, "scored"], rows, title)


def agreement_table(report: JudgeReport) -> Table:
    """The judge with people, people with each other, the judge with itself."""
    rows: list[tuple[Cell, ...]] = []
    for found in report.agreement:
        both = (("judge-people", found.judge_human), ("people", found.human_human))
        for who, coefficients in both:
            rows += [
                (f"{found.criterion}, {who}: {one.name}", Estimate.of(one), one.n_items)
                for one in coefficients
            ]
        if found.bias is not None:
            bias = Estimate(found.bias, show=signed)
            rows.append((f"{found.criterion}, judge less people", bias, ""))
    for criterion, alpha in ((one.criterion, one.alpha) for one in report.consistency):
        name = f"{criterion}, judge with itself: {alpha.name}"
        rows.append((name, Estimate.of(alpha), alpha.n_items))
    return Table(["what", "value [95% interval]", "n"], rows, "Agreement")
