"""From ratings to scores: numbers per presentation, means with intervals, tests of systems.

    marks = make_marks(rubric, ratings)
    fitted = fit_systems(scale, marks)
    score_systems(scale, marks, systems, fitted)[0].mean

Questions and raters are random in every interval and test (`statistics.crossed`). Wilcoxon's and
Friedman's tests on means per question, which papers print, hold the raters fixed: they are kept
under `these_raters_only`, since they find differences that other raters would not (type I .38
where raters differ in how they take to a system by SD .2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from cbtqa.papers import papers, source_of
from cbtqa.ratings.answers import Rating, Unrated
from cbtqa.ratings.results import Difference, Flag, Omnibus, PublishedScore, Score
from cbtqa.ratings.rubric import Rubric
from cbtqa.ratings.study import StudyFolder
from cbtqa.statistics.agreement import Level
from cbtqa.statistics.crossed import CrossedMeans, crossed_means
from cbtqa.statistics.resampling import holm
from cbtqa.statistics.tests_of_arms import TestResult, friedman, wilcoxon


@dataclass(frozen=True)
class Mark:
    """One number that enters the statistics: a rating, or a total over one presentation."""

    rating: Rating
    """For a total, the first one of its presentation."""
    criterion: str
    value: float | None
    reason: Unrated | None


@dataclass(frozen=True)
class Scale:
    """What statistics need to know of a criterion or total."""

    id: str
    level: Level
    points: tuple[int, ...]
    """Every value on offer; empty for totals."""
    ends: tuple[float, float]
    """The least and greatest value."""


def scales_of(rubric: Rubric) -> list[Scale]:
    scales = [
        Scale(c.id, "nominal" if c.kind == "mark" else "ordinal", tuple(c.points), (c.low, c.high))
        for c in rubric.criteria
    ]
    totals = ((f"total:{total.id}", rubric.range_of(total)) for total in rubric.totals)
    return scales + [Scale(name, "interval", (), ends) for name, ends in totals]


def make_marks(rubric: Rubric, ratings: Iterable[Rating]) -> list[Mark]:
    """Ratings of the main phase as numbers, followed by each presentation's totals."""
    marks: list[Mark] = []
    groups: dict[tuple[str, str, int], dict[str, Mark]] = {}
    for one in ratings:
        if one.phase == "main":
            value = None if one.value is None else float(one.value)
            mark = Mark(one, one.criterion, value, one.unrated_reason)
            marks.append(mark)
            groups.setdefault((one.rater, one.item_id, one.repeat), {})[one.criterion] = mark
    for total in rubric.totals:
        names = [criterion.id for criterion, _ in rubric.parts_of(total)]
        for group in groups.values():
            value = rubric.total_of(total, {name: group[name].value for name in names})
            # the first gap is the reason why there is no total
            gaps = [group[name].reason for name in names if group[name].value is None]
            rating = next(iter(group.values())).rating
            reason = gaps[0] if gaps and value is None else None
            marks.append(Mark(rating, f"total:{total.id}", value, reason))
    return marks


def fit_systems(scale: Scale, marks: Sequence[Mark]) -> CrossedMeans | None:
    """The crossed model of one criterion: questions and raters random; None without a rating."""
    rated = [(mark.value, mark.rating) for mark in marks if mark.value is not None]
    if not rated:
        return None
    return crossed_means(
        [value for value, _ in rated],
        [rating.system for _, rating in rated],
        [rating.question_id for _, rating in rated],
        [rating.rater for _, rating in rated],
        scale=scale.ends,
    )


def score_systems(
    scale: Scale, marks: Sequence[Mark], systems: Sequence[str], fitted: CrossedMeans | None
) -> list[Score]:
    """Every system on one criterion, its mean and interval from `fit_systems`."""
    scores = []
    for system in systems:
        own = [mark for mark in marks if mark.rating.system == system]
        values = [mark.value for mark in own if mark.value is not None]
        found = fitted.mean(system) if fitted is not None and values else None
        scores.append(
            Score(
                system=system,
                criterion=scale.id,
                n_ratings=len(values),
                n_questions=found.n_items if found else 0,
                n_raters=found.n_raters if found else 0,
                n_open=sum(mark.reason == "open" for mark in own),
                n_cannot_judge=sum(mark.reason == "cannot_judge" for mark in own),
                mean=found.value if found else None,
                raw_mean=float(np.mean(values)) if values else None,
                sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
                low=found.low if found else None,
                high=found.high if found else None,
                df=found.df if found else None,
                reason=found.reason if found else None,
                counts={point: values.count(point) for point in scale.points},
            )
        )
    return scores


def compare_systems(
    scale: Scale, marks: Sequence[Mark], systems: Sequence[str], fitted: CrossedMeans | None
) -> tuple[list[Difference], list[Omnibus]]:
    """Every pair of systems, and one test over all when there are more than two."""
    if fitted is None:
        return [], []
    rated = [system for system in systems if system in fitted.names]
    means = {system: question_means(marks, system) for system in rated}
    found: list[Difference] = []
    for first, second in combinations(rated, 2):
        one = fitted.difference(first, second)
        a, b = _shared([means[first], means[second]])
        t = None if one.p is None or not one.se else one.value / one.se
        test = TestResult(
            name=f"crossed_t|{_random(one.are_raters_random)}",
            statistic=t,
            p=one.p,
            n=one.n_items,
            reason=one.reason,
        )
        found.append(
            Difference(
                criterion=scale.id,
                first=first,
                second=second,
                difference=one.value,
                low=one.low,
                high=one.high,
                se=one.se,
                df=one.df,
                n_questions=one.n_items,
                n_raters=one.n_raters,
                test=test,
                these_raters_only=wilcoxon(a, b),
            )
        )
    adjusted = iter(holm([one.test.p for one in found if one.test.p is not None]))
    found = [
        one if one.test.p is None else one.model_copy(update={"p_holm": next(adjusted)})
        for one in found
    ]
    if len(rated) < 3:
        return found, []
    overall = fitted.omnibus()
    test = TestResult(
        name=f"crossed_F|{_random(overall.n_raters > 1)}",
        statistic=overall.statistic,
        p=overall.p,
        n=overall.n_items,
        reason=overall.reason,
    )
    degrees = {"df_numerator": overall.df_numerator, "df_denominator": overall.df_denominator}
    fixed = friedman(_shared(list(means.values())))
    return found, [Omnibus(criterion=scale.id, test=test, these_raters_only=fixed, **degrees)]


def question_means(marks: Sequence[Mark], system: str) -> dict[str, float]:
    """Mean rating per question, rounded so that equal means are ties."""
    values: dict[str, list[float]] = {}
    for mark in marks:
        if mark.rating.system == system and mark.value is not None:
            values.setdefault(mark.rating.question_id, []).append(mark.value)
    return {name: round(sum(own) / len(own), 9) for name, own in values.items()}


def _shared(means: Sequence[dict[str, float]]) -> list[list[float]]:
    """One list per system over the questions that all have, in the same order."""
    shared = [name for name in means[0] if all(name in one for one in means)]
    return [[one[name] for name in shared] for one in means]


def _random(are_raters_random: bool) -> str:
    return f"random:questions{'+raters' if are_raters_random else ''}"


@cache
def published_scores(rubric: str) -> tuple[PublishedScore, ...]:
    """Values that papers print for a rubric, by its id with version."""
    return tuple(
        PublishedScore(
            source=f"{source_of(paper, name)} ({table.note})",
            system=system,
            criterion=criterion,
            value=value,
        )
        for paper, found in papers().items()
        for name, table in found.tables.items()
        if table.rubric == rubric
        for system in table.rows
        for criterion, value in table.known(system).items()
    )


def flags_of(folder: StudyFolder, ratings: Iterable[Rating]) -> list[Flag]:
    """Crisis flags and notes, one per presentation, crisis first."""
    found: dict[tuple[str, str, int], Flag] = {}
    for rating in ratings:
        if rating.is_crisis or rating.note:
            fields = rating.model_dump(include=set(Flag.model_fields))
            found[rating.item_id, rating.rater, rating.repeat] = Flag(**fields)
    order = {rater: place for place, rater in enumerate(folder.study.raters)}
    return sorted(found.values(), key=lambda f: (not f.is_crisis, f.item_id, order[f.rater]))
