"""What a study found, as plain records: scores, differences, agreement, and how raters behaved.

    report = analyse(folder, ratings)
    report.scores[0].mean, report.scores[0].low, report.scores[0].high

The numbers depend on the ratings alone, not on the front end they came through. Calibration items
and second showings do not enter scores, differences or agreement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations
from typing import Literal

import numpy as np
import yaml
from pydantic import Field

from cbtqa.ratings.answers import Rating
from cbtqa.ratings.rubric import Rubric, Total
from cbtqa.ratings.study import StudyFolder
from cbtqa.records import Record
from cbtqa.statistics.agreement import Coefficient, Floats, Level
from cbtqa.statistics.resampling import (
    DEFAULT_SEED,
    bootstrap_sums,
    holm,
    percentile_interval,
)
from cbtqa.statistics.tests_of_arms import TestResult, friedman, wilcoxon

N_RESAMPLES = 2_000


class Score(Record):
    """One system on one criterion."""

    system: str
    criterion: str
    """A criterion's id, or `total:<id>`."""
    n_ratings: int
    n_questions: int
    n_open: int
    n_cannot_judge: int
    mean: float | None
    sd: float | None
    """Over ratings, with n - 1; None below two."""
    low: float | None = None
    """95 % percentile interval of the mean; questions are drawn, with all their ratings."""
    high: float | None = None
    counts: dict[int, int] = Field(default_factory=dict)
    """Ratings per point of the scale; empty for totals."""


class Difference(Record):
    """Two systems on one criterion, over the questions both have ratings for."""

    criterion: str
    first: str
    second: str
    difference: float
    """Mean of `second` less mean of `first`, over questions."""
    low: float
    high: float
    n_questions: int
    test: TestResult
    p_holm: float | None
    """Adjusted over all pairs of systems on this criterion."""


class Omnibus(Record):
    """One test over all systems on one criterion, when there are more than two."""

    criterion: str
    test: TestResult


class PairAgreement(Record):
    """Two raters on one criterion."""

    first: str
    second: str
    kappa: Coefficient


class CriterionAgreement(Record):
    """All raters on one criterion."""

    criterion: str
    coefficients: tuple[Coefficient, ...]
    pairs: tuple[PairAgreement, ...] = ()


class RaterEffect(Record):
    """How one rater used one criterion."""

    rater: str
    criterion: str
    n: int
    mean: float | None
    severity: float | None
    """Mean difference from the other raters on the same items; negative is stricter."""
    repeats: int = 0
    """Items this rater rated twice."""
    seconds_median: float | None = None
    """Median active time per item; None where the front end could not tell."""


class RepeatAgreement(Record):
    """First against second rating of the same item by the same rater, all raters pooled."""

    criterion: str
    coefficients: tuple[Coefficient, ...]


class OrderEffect(Record):
    """Whether ratings drift while a rater works through the list."""

    criterion: str
    rho: Coefficient
    """Spearman's correlation of place in the list and deviation from the item's mean."""


class Disagreement(Record):
    """An item on whose mark raters differ, for adjudication."""

    item_id: str
    question_id: str
    criterion: str
    yes: tuple[str, ...]
    no: tuple[str, ...]
    evidence: dict[str, str] = Field(default_factory=dict)
    """Rater to the words quoted."""


class Flag(Record):
    """A crisis flag or a note that a rater left on an item."""

    item_id: str
    system: str
    rater: str
    is_crisis: bool
    note: str


class PublishedScore(Record):
    """A value printed in a paper, to stand beside ours."""

    source: str
    system: str
    criterion: str
    value: float


class StudyReport(Record):
    """Everything the report shows."""

    study_id: str
    title: str
    rubric: str
    is_blind: bool
    """True while systems are letters."""
    systems: tuple[str, ...]
    criteria: tuple[str, ...]
    n_questions: int
    n_items: int
    n_raters: int
    per_item: int
    n_shown: int
    """Presentations in the plan, calibration and repeats left out."""
    n_done: int
    n_ratings: int
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    omnibus: tuple[Omnibus, ...]
    agreement: tuple[CriterionAgreement, ...]
    raters: tuple[RaterEffect, ...]
    repeats: tuple[RepeatAgreement, ...]
    order: tuple[OrderEffect, ...]
    disagreements: tuple[Disagreement, ...]
    flags: tuple[Flag, ...]
    published: tuple[PublishedScore, ...]

    def score_rows(self) -> list[list[str]]:
        """Scores as table rows."""
        return [
            [
                score.criterion,
                score.system,
                "-" if score.mean is None else f"{score.mean:.3f}",
                "-" if score.low is None else f"{score.low:.3f} to {score.high:.3f}",
                "-" if score.sd is None else f"{score.sd:.3f}",
                str(score.n_ratings),
            ]
            for score in self.scores
        ]


@dataclass(frozen=True)
class Mark:
    """One number that enters the statistics: a rating, or a total over one presentation."""

    system: str
    question: str
    item: str
    rater: str
    criterion: str
    value: float | None
    reason: Literal["open", "cannot_judge"] | None
    order: int
    repeat: int
    seconds: float | None


@dataclass(frozen=True)
class Scale:
    """What statistics need to know of a criterion or total."""

    id: str
    level: Level
    points: tuple[int, ...]
    """Every value on offer; empty for totals."""


def scales_of(rubric: Rubric) -> list[Scale]:
    """Criteria and totals in order."""
    scales = [
        Scale(c.id, "nominal" if c.kind == "mark" else "ordinal", tuple(c.points))
        for c in rubric.criteria
    ]
    return scales + [Scale(f"total:{total.id}", "interval", ()) for total in rubric.totals]


def make_marks(rubric: Rubric, ratings: Iterable[Rating]) -> list[Mark]:
    """Ratings of the main phase as numbers, followed by each presentation's totals."""
    marks: list[Mark] = []
    groups: dict[tuple[str, str, int], dict[str, Mark]] = {}
    for rating in ratings:
        if rating.phase == "main":
            mark = Mark(
                rating.system,
                rating.question_id,
                rating.item_id,
                rating.rater,
                rating.criterion,
                None if rating.value is None else float(rating.value),
                rating.unrated_reason,
                rating.order,
                rating.repeat,
                rating.seconds,
            )
            marks.append(mark)
            key = (rating.rater, rating.item_id, rating.repeat)
            groups.setdefault(key, {})[rating.criterion] = mark
    for total in rubric.totals:
        marks += [_total_of(rubric, total, group) for group in groups.values()]
    return marks


def _total_of(rubric: Rubric, total: Total, group: Mapping[str, Mark]) -> Mark:
    """A total of one presentation; missing as soon as one of its ratings is."""
    weights = {section.id: section.weight for section in rubric.sections}
    parts: list[tuple[float, float]] = []
    gap: Mark | None = None
    for criterion in rubric.criteria:
        if criterion.section not in total.sections:
            continue
        mark = group[criterion.id]
        if mark.value is None:
            gap = gap or mark
            continue
        value = criterion.low + criterion.high - mark.value if criterion.reversed else mark.value
        parts.append((value, weights[criterion.section]))
    first = next(iter(group.values()))
    weighted = sum(value * weight for value, weight in parts)
    below = sum(weight for _, weight in parts) if total.how == "mean" else 1.0
    return Mark(
        first.system,
        first.question,
        first.item,
        first.rater,
        f"total:{total.id}",
        None if gap else weighted / below,
        gap.reason if gap else None,
        first.order,
        first.repeat,
        first.seconds,
    )


# --- scores and differences ----------------------------------------------------------------------


def score_systems(scale: Scale, marks: Sequence[Mark], systems: Sequence[str]) -> list[Score]:
    """Every system on one criterion; the same draws of questions for all."""
    questions = list(dict.fromkeys(mark.question for mark in marks))
    row = {name: number for number, name in enumerate(questions)}
    sums = np.zeros((len(questions), 2 * len(systems)))
    own = {system: [mark for mark in marks if mark.system == system] for system in systems}
    for place, system in enumerate(systems):
        for mark in own[system]:
            if mark.value is not None:
                sums[row[mark.question], 2 * place : 2 * place + 2] += (mark.value, 1)
    drawn = bootstrap_sums(sums, N_RESAMPLES, DEFAULT_SEED) if questions else sums
    scores = []
    for place, system in enumerate(systems):
        values = [mark.value for mark in own[system] if mark.value is not None]
        low, high = _interval_of_mean(drawn[:, 2 * place : 2 * place + 2])
        n_questions = int((sums[:, 2 * place + 1] > 0).sum())
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
                low=low if n_questions > 1 else None,
                high=high if n_questions > 1 else None,
                counts={point: values.count(point) for point in scale.points},
            )
        )
    return scores


def _interval_of_mean(drawn: Floats) -> tuple[float | None, float | None]:
    """Interval of sum over count; draws without any rating are left out."""
    kept = drawn[drawn[:, 1] > 0]
    return percentile_interval(kept[:, 0] / kept[:, 1]) if len(kept) else (None, None)


def compare_systems(
    scale: Scale, marks: Sequence[Mark], systems: Sequence[str]
) -> tuple[list[Difference], list[Omnibus]]:
    """Every pair of systems over questions, and one test over all when there are more than two."""
    means = {system: question_means(marks, system) for system in systems}
    found: list[tuple[str, str, Floats, TestResult]] = []
    for first, second in combinations(systems, 2):
        common = [question for question in means[first] if question in means[second]]
        if common:
            a = np.array([means[first][question] for question in common])
            b = np.array([means[second][question] for question in common])
            found.append((first, second, b - a, wilcoxon(a, b)))
    tested = [test.p for *_, test in found if test.p is not None]
    adjusted = iter(holm(tested))
    differences = [
        _difference(scale.id, first, second, gaps, test, None if test.p is None else next(adjusted))
        for first, second, gaps, test in found
    ]
    shared = [q for q in means[systems[0]] if all(q in means[system] for system in systems)]
    if len(systems) < 3 or not shared:
        return differences, []
    arms = [[means[system][question] for question in shared] for system in systems]
    return differences, [Omnibus(criterion=scale.id, test=friedman(arms))]


def _difference(
    criterion: str,
    first: str,
    second: str,
    gaps: Floats,
    test: TestResult,
    p_holm: float | None,
) -> Difference:
    drawn = bootstrap_sums(gaps[:, None], N_RESAMPLES, DEFAULT_SEED)[:, 0] / len(gaps)
    low, high = percentile_interval(drawn)
    return Difference(
        criterion=criterion,
        first=first,
        second=second,
        difference=float(gaps.mean()),
        low=low,
        high=high,
        n_questions=len(gaps),
        test=test,
        p_holm=p_holm,
    )


def question_means(marks: Sequence[Mark], system: str) -> dict[str, float]:
    """Mean rating per question, rounded so that equal means are ties."""
    values: dict[str, list[float]] = {}
    for mark in marks:
        if mark.system == system and mark.value is not None:
            values.setdefault(mark.question, []).append(mark.value)
    return {name: round(sum(own) / len(own), 9) for name, own in values.items()}


@cache
def published_scores(rubric: str) -> tuple[PublishedScore, ...]:
    """Values that papers print for a rubric, by its id with version."""
    text = (files("cbtqa.ratings") / "published.yaml").read_text(encoding="utf-8")
    return tuple(
        PublishedScore(source=entry["source"], system=system, criterion=criterion, value=value)
        for entry in yaml.safe_load(text)
        if entry["rubric"] == rubric.partition(".")[0]
        for system, row in entry["systems"].items()
        for criterion, value in row.items()
    )


def flags_of(folder: StudyFolder, ratings: Iterable[Rating]) -> list[Flag]:
    """Crisis flags and notes, one per presentation, crisis first."""
    found: dict[tuple[str, str, int], Flag] = {}
    for rating in ratings:
        if rating.is_crisis or rating.note:
            found[rating.item_id, rating.rater, rating.repeat] = Flag(
                item_id=rating.item_id,
                system=rating.system,
                rater=rating.rater,
                is_crisis=rating.is_crisis,
                note=rating.note,
            )
    order = {rater: place for place, rater in enumerate(folder.study.raters)}
    return sorted(found.values(), key=lambda f: (not f.is_crisis, f.item_id, order[f.rater]))
