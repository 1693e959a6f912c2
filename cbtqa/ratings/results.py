"""What a study found, as plain records. `analysis.analyse` fills them.

The numbers depend on the ratings alone, not on the front end they came through. Calibration items
and second showings do not enter scores, differences or agreement.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cbtqa.records import Record
from cbtqa.statistics.agreement import Coefficient
from cbtqa.statistics.tests_of_arms import TestResult


class Score(Record):
    system: str
    criterion: str
    """A criterion's id, or `total:<id>`."""
    n_ratings: int
    n_questions: int
    n_raters: int
    n_open: int
    n_cannot_judge: int
    mean: float | None
    """Of the crossed model: as if all raters had rated all; the plain mean when they have."""
    raw_mean: float | None
    """Over the ratings as they are."""
    sd: float | None
    """Over ratings, with n - 1; None below two."""
    low: float | None = None
    """95 % interval of the mean; questions and raters are random (with one rater questions)."""
    high: float | None = None
    df: float | None = None
    """Satterthwaite's degrees of freedom."""
    reason: str | None = None
    """Why there is no interval."""
    counts: dict[int, int] = Field(default_factory=dict)
    """Ratings per point of the scale; empty for totals."""


class Difference(Record):
    """Two systems on one criterion, compared within raters and questions."""

    criterion: str
    first: str
    second: str
    difference: float
    """Mean of `second` less mean of `first`."""
    low: float | None
    """95 % interval; questions and raters are random."""
    high: float | None
    se: float | None
    df: float | None
    """Satterthwaite's degrees of freedom."""
    n_questions: int
    """Questions of which a rater rated both systems."""
    n_raters: int
    """Raters who rated both systems on a question; with one, raters are fixed."""
    test: TestResult
    """The t test of the same model, or the reason why there is none."""
    these_raters_only: TestResult
    """Wilcoxon's signed-rank test on means per question: nothing about other raters."""
    p_holm: float | None = None
    """Adjusted over all pairs of systems on this criterion."""


class Omnibus(Record):
    """One test over all systems on one criterion, when there are more than two."""

    criterion: str
    test: TestResult
    """Quasi-F with questions and raters random."""
    these_raters_only: TestResult
    """Friedman's test on means per question: nothing about other raters."""
    df_numerator: float | None = None
    df_denominator: float | None = None


class PairAgreement(Record):
    first: str
    second: str
    kappa: Coefficient


class RaterRepeats(Record):
    """First against second rating of one rater's repeated items."""

    rater: str
    coefficients: tuple[Coefficient, ...]


class RepeatAgreement(Record):
    """First against second rating of the same item by the same rater.

    Alpha holds each rater's repeats against the same rater's ratings alone; raters pooled would
    take differences between raters for steadiness.
    """

    criterion: str
    coefficients: tuple[Coefficient, ...]
    by_rater: tuple[RaterRepeats, ...] = ()


class CriterionAgreement(Record):
    criterion: str
    coefficients: tuple[Coefficient, ...]
    pairs: tuple[PairAgreement, ...] = ()


class RaterEffect(Record):
    rater: str
    criterion: str
    n: int
    mean: float | None
    severity: float | None
    """Mean difference from the other raters on the same items; negative is stricter."""
    severity_low: float | None = None
    """95 % interval against these other raters; questions are random. None below two questions."""
    severity_high: float | None = None
    repeats: int = 0
    """Items this rater rated twice."""
    seconds_median: float | None = None
    """Median active time per item; None where the front end does not measure it."""


class OrderEffect(Record):
    """Whether ratings drift while a rater works through the list."""

    criterion: str
    rho: Coefficient
    """Mean over raters of Spearman's correlation, within the rater, of place in the list and
    deviation from the other raters' mean of the item; raters are random in the interval."""


Check = Literal["same_point", "same_run", "unrelated", "repeats", "practice", "too_fast"]


class RaterCheck(Record):
    """One sign that a rater may not have read, looked for in one rater (`attention`)."""

    rater: str
    check: Check
    criterion: str | None = None
    """Of `same_point`; the others are over all criteria."""
    n: int
    """Items it rests on."""
    found: float
    """`same_point`: share of the most frequent point. `same_run`: longest run of items. `repeats`
    and `unrelated`: distance of both ratings, or from the others', by that of random pairs (1 is
    chance). `practice`: mean distance from
    the others in shares of the scale. `too_fast`: median seconds."""
    expected: float
    """The same of the other raters, of random orders, or the seconds that reading takes."""
    p: float | None = None
    """One-sided; None for `too_fast`, which has a fixed limit."""
    p_holm: float | None = None
    """Adjusted over all checks of all raters."""
    is_flagged: bool = False


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
    item_id: str
    system: str
    rater: str
    is_crisis: bool
    note: str


class PublishedScore(Record):
    source: str
    system: str
    criterion: str
    value: float


class StudyReport(Record):
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
    checks: tuple[RaterCheck, ...] = ()
    disagreements: tuple[Disagreement, ...]
    flags: tuple[Flag, ...]
    published: tuple[PublishedScore, ...]
