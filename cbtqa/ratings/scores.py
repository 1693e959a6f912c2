"""From ratings to scores: numbers per presentation, means with intervals, paired tests of systems.

marks = make_marks(rubric, ratings)
score_systems(scale, marks, systems)[0].mean
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from cbtqa.files import shipped_yaml
from cbtqa.ratings.answers import Rating, Unrated
from cbtqa.ratings.results import Difference, Flag, Omnibus, PublishedScore, Score
from cbtqa.ratings.rubric import Rubric
from cbtqa.ratings.study import StudyFolder
from cbtqa.statistics.agreement import Level
from cbtqa.statistics.resampling import DEFAULT_SEED, bootstrap_sums, holm, percentile_interval
from cbtqa.statistics.tests_of_arms import friedman, wilcoxon

N_RESAMPLES = 2_000


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


def scales_of(rubric: Rubric) -> list[Scale]:
    scales = [
        Scale(c.id, "nominal" if c.kind == "mark" else "ordinal", tuple(c.points))
        for c in rubric.criteria
    ]
    return scales + [Scale(f"total:{total.id}", "interval", ()) for total in rubric.totals]


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


def score_systems(scale: Scale, marks: Sequence[Mark], systems: Sequence[str]) -> list[Score]:
    """Every system on one criterion; the same draws of questions for all."""
    questions = list(dict.fromkeys(mark.rating.question_id for mark in marks))
    row = {name: number for number, name in enumerate(questions)}
    sums = np.zeros((len(questions), 2 * len(systems)))
    own = {system: [mark for mark in marks if mark.rating.system == system] for system in systems}
    for place, system in enumerate(systems):
        for mark in own[system]:
            if mark.value is not None:
                sums[row[mark.rating.question_id], 2 * place : 2 * place + 2] += (mark.value, 1)
    drawn = bootstrap_sums(sums, N_RESAMPLES, DEFAULT_SEED) if questions else sums
    scores = []
    for place, system in enumerate(systems):
        values = [mark.value for mark in own[system] if mark.value is not None]
        low = high = None
        n_questions = int((sums[:, 2 * place + 1] > 0).sum())
        if n_questions > 1:
            kept = drawn[drawn[:, 2 * place + 1] > 0]  # not the draws without any rating
            low, high = percentile_interval(kept[:, 2 * place] / kept[:, 2 * place + 1])
        scores.append(
            Score(
                system=system,
                criterion=scale.id,
                n_ratings=len(values),
                n_questions=n_questions,
                n_open=sum(mark.reason == "open" for mark in own[system]),
                n_cannot_judge=sum(mark.reason == "cannot_judge" for mark in own[system]),
                mean=float(np.mean(values)) if values else None,
                sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
                low=low,
                high=high,
                counts={point: values.count(point) for point in scale.points},
            )
        )
    return scores


def compare_systems(
    scale: Scale, marks: Sequence[Mark], systems: Sequence[str]
) -> tuple[list[Difference], list[Omnibus]]:
    """Every pair of systems over questions, and one test over all when there are more than two."""
    means = {system: question_means(marks, system) for system in systems}
    found: list[Difference] = []
    for first, second in combinations(systems, 2):
        common = [question for question in means[first] if question in means[second]]
        if common:
            a, b = (np.array([means[one][name] for name in common]) for one in (first, second))
            gaps = b - a
            drawn = bootstrap_sums(gaps[:, None], N_RESAMPLES, DEFAULT_SEED)[:, 0] / len(gaps)
            low, high = percentile_interval(drawn)
            found.append(
                Difference(
                    criterion=scale.id,
                    first=first,
                    second=second,
                    difference=float(gaps.mean()),
                    low=low,
                    high=high,
                    n_questions=len(gaps),
                    test=wilcoxon(a, b),
                )
            )
    adjusted = iter(holm([one.test.p for one in found if one.test.p is not None]))
    found = [
        one if one.test.p is None else one.model_copy(update={"p_holm": next(adjusted)})
        for one in found
    ]
    shared = [q for q in means[systems[0]] if all(q in means[system] for system in systems)]
    if len(systems) < 3 or not shared:
        return found, []
    arms = [[means[system][question] for question in shared] for system in systems]
    return found, [Omnibus(criterion=scale.id, test=friedman(arms))]


def question_means(marks: Sequence[Mark], system: str) -> dict[str, float]:
    """Mean rating per question, rounded so that equal means are ties."""
    values: dict[str, list[float]] = {}
    for mark in marks:
        if mark.rating.system == system and mark.value is not None:
            values.setdefault(mark.rating.question_id, []).append(mark.value)
    return {name: round(sum(own) / len(own), 9) for name, own in values.items()}


@cache
def published_scores(rubric: str) -> tuple[PublishedScore, ...]:
    """Values that papers print for a rubric, by its id with version."""
    return tuple(
        PublishedScore(source=entry["source"], system=system, criterion=criterion, value=value)
        for entry in shipped_yaml("cbtqa.ratings", "published.yaml")
        if entry["rubric"] == rubric.partition(".")[0]
        for system, row in entry["systems"].items()
        for criterion, value in row.items()
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
