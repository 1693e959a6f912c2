"""What an analysis found, as plain records. `analysis.analyse` fills them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cbtqa.judging.correction import CorrectedMean
from cbtqa.records import Record
from cbtqa.statistics.agreement import Coefficient
from cbtqa.statistics.clustered import RobustEffect
from cbtqa.statistics.importance import Prediction
from cbtqa.statistics.mixed_model import (
    Contrast,
    ExplainedVariance,
    LikelihoodRatio,
    MixedFit,
    Wald,
)
from cbtqa.statistics.split_plot import ArmComparison, ArmContrast, FTest

AlarmKind = Literal[
    "safety", "people", "no_model", "ceiling", "floor", "unused", "one_value", "items_alike",
    "halo", "unscored", "bias", "endings", "length", "design"
]  # fmt: skip
"""The heaviest first."""


class Alarm(Record):
    """Something a reader must know before believing a figure."""

    kind: AlarmKind
    instrument: str = ""
    """Empty when it concerns all."""
    text: str


class ArmResult(Record):
    arm: str
    n: int
    n_missing: int
    """Sessions without this total."""
    mean: float | None
    sd: float | None
    """With n - 1; None below two."""
    mean_least: float | None = None
    """The mean of all sessions, missing items at the end of their scale that makes it smallest; no
    missing one can take the mean out of `mean_least` to `mean_most`."""
    mean_most: float | None = None
    low: float | None = None
    """95 % interval of the mean, patients random; it ends where the instrument ends."""
    high: float | None = None
    reason: str | None = None
    """Why the mean has no interval."""
    n_competent: int | None = None
    """Sessions at or above the published cut-off; None when there is none."""
    competent_low: float | None = None
    """95 % interval of their share, patients random."""
    competent_high: float | None = None


class Adjusted(Record):
    """The arms with the same length: the mixed model with a covariate, its errors from patients."""

    covariate: str
    effect: RobustEffect
    omnibus: FTest
    contrasts: tuple[ArmContrast, ...]
    """Empty where patients are too few."""


class PublishedModel(Record):
    """The arms as the two papers compared them; their own figures come out of this one.

    A random intercept per patient and no patient-by-arm term, with z and chi-square: p-values are
    too small where patients respond differently to the arms, and with few patients.
    """

    fit: MixedFit | None
    no_fit_reason: str | None = None
    omnibus: Wald | None = None
    contrasts: tuple[Contrast, ...] = ()
    explained: ExplainedVariance | None = None
    """Upward biased: chance alone explains some."""
    cohen_f: float | None = None
    """Of the test, sqrt(chi2 / (n - k)); upward biased: .20 where there is no effect, with six arms
    of 20 sessions."""
    icc: float | None = None
    icc_low: float | None = None
    """Of a bootstrap of patients, where one was asked for; too narrow below about 30 patients."""
    icc_high: float | None = None


class OutcomeResult(Record):
    instrument: str
    total: str
    name: str
    """The total's name in English."""
    name_zh: str
    low: float
    """Ends of the total's ladder."""
    high: float
    n: int
    cutoff: float | None
    arms: tuple[ArmResult, ...]
    comparison: ArmComparison
    """Patients random, with how each responds to each arm as the error: the figures to report."""
    adjusted: Adjusted | None = None
    whole_only: FTest | None = None
    """The test of the arms without sessions that stopped early; None when none did."""
    published: PublishedModel


class Regression(Record):
    """A model with named terms, such as that of arXiv 2412.00251."""

    instrument: str
    total: str
    formula: str
    effects: tuple[RobustEffect, ...]
    """The fit's estimates with errors that hold whatever ties a patient's sessions together."""
    tests: tuple[FTest, ...] = ()
    """One for every factor of more than two levels."""
    fit: MixedFit
    """As published: errors and z of the mixed model, without a patient-by-arm term."""
    omnibus: tuple[Wald, ...] = ()
    """As published: Wald's test of every factor of more than two levels."""


class WinRate(Record):
    """Two arms with the same patients: how often the second is ahead of the first."""

    first: str
    second: str
    n: int
    """Patients who have both."""
    wins: int
    """Of the second."""
    losses: int
    rate: float | None
    """Wins by patients, ties among these."""
    low: float | None
    """Wilson's 95 % interval."""
    high: float | None
    p: float | None
    """Exact sign test, ties left out."""
    p_adjusted: float | None = None
    """Holm over the pairs."""
    reason: str | None = None
    """Why there is no interval and no test."""


class PairWithin(Record):
    """Two arms within one group of patients."""

    first: str
    second: str
    n: int
    difference: float | None
    """Mean of second less first."""
    p: float | None
    """Wilcoxon's signed-rank test."""
    p_adjusted: float | None = None
    """Benjamini-Hochberg over the pairs of the group."""
    effect: float | None
    """Matched-pairs rank-biserial correlation."""
    reason: str | None = None


class GroupOfPatients(Record):
    level: str
    n_patients: int
    means: dict[str, float | None]
    """By arm."""
    pairs: tuple[PairWithin, ...]


class GroupedResult(Record):
    """The patients divided by one attribute."""

    attribute: str
    same_as: tuple[str, ...] = ()
    """Attributes that divide the patients in the same way."""
    groups: tuple[GroupOfPatients, ...]
    n_without: int
    """Patients whose attribute is not known."""
    interaction: FTest
    """Whether arms compare differently in the groups: F of the split plot."""
    published: LikelihoodRatio | None
    """The same by likelihood ratio, a random intercept per patient: too sure with few patients."""


class Exploration(Record):
    """The exploratory part of the analysis of one total; patients are the unit."""

    total: str
    wins: tuple[WinRate, ...]
    groups: tuple[GroupedResult, ...]
    prediction: Prediction | None
    no_prediction_reason: str | None = None
    """None also where the patients have no attributes."""


class TopShare(Record):
    """Share of the highest point among the ratings of one arm."""

    arm: str
    n: int
    """Ratings."""
    share: float
    low: float | None
    """Lower end of the 95 % interval, patients random; None with one patient."""


class ItemUse(Record):
    """How the judges used one item's scale, every single rating counted."""

    item: str
    name: str
    counts: dict[int, int]
    """Every point of the scale, those never given too."""
    unscored: dict[str, int] = Field(default_factory=dict)


class ItemProfile(Record):
    """Means of one item or area by arm."""

    item: str
    name: str
    name_zh: str
    is_area: bool
    low: float
    high: float
    means: dict[str, float | None]


class MissingTotal(Record):
    """A session without a total: what the total can be at all, and why it is missing."""

    session_id: str
    arm: str
    total: str
    least: float | None
    """With every missing item at the end of its scale that makes the total smallest."""
    most: float | None
    reason: str
    """The missing items, each with its reason."""


class InstrumentResult(Record):
    instrument: str
    title: str
    title_zh: str
    scale: str
    source: str
    judges: tuple[str, ...]
    n_sessions: int
    alpha: float | None
    """Cronbach's alpha over the items of the headline total; near 1, items hardly differ."""
    alpha_within: float | None = None
    """The same within arms: that arms differ makes no two items alike."""
    alpha_within_low: float | None = None
    """Lower end of its 95 % interval (Feldt 1965), sessions taken as independent."""
    outcomes: tuple[OutcomeResult, ...]
    regression: Regression | None
    profile: tuple[ItemProfile, ...]
    use: tuple[ItemUse, ...]
    top: tuple[TopShare, ...] = ()
    """Empty where items have different points."""
    missing: tuple[MissingTotal, ...] = ()
    """Totals, areas not counted."""
    exploration: Exploration | None = None
    """Of the headline total; None with one arm."""


class EndingRow(Record):
    """How the sessions of one arm ended."""

    arm: str
    n: int
    counts: dict[str, int]
    n_early: int


class MarkRow(Record):
    """One mark of the turns of one arm."""

    arm: str
    mark: str
    n_turns: int
    """With the mark."""
    n_sessions: int
    """That hold such a turn."""
    of_turns: int
    """All turns of the arm, of both sides."""


class LengthRow(Record):
    """How long the sessions of one arm are; words and turns are the therapist's."""

    arm: str
    n: int
    turns: float | None
    words: float
    words_per_turn: float | None
    n_short: int | None
    """Sessions of fewer than five therapist turns."""


class Correlation(Record):
    """Pearson's r with its 95 % interval, patients random."""

    n: int
    r: float
    low: float | None
    high: float | None
    reason: str | None = None
    """Why there is no interval."""


class LengthCorrelation(Correlation):
    """Words of the therapist against a total."""

    instrument: str
    total: str
    scope: str
    """`pooled`, `within arms`, or an arm's name."""


class HaloRow(Correlation):
    """Headline totals of two instruments over the same sessions."""

    first: str
    second: str
    scope: str
    """`within arms` or `pooled`."""


AgreementKind = Literal["repeats", "judges", "judge-people", "people"]


class AgreementRow(Record):
    """Agreement on one item or total."""

    instrument: str
    item: str
    """Item id, or `total:<id>`."""
    kind: AgreementKind
    who: str
    coefficients: tuple[Coefficient, ...]
    within_arms: tuple[Coefficient, ...] = ()
    """The same within arms; for judge-people rows of two or more arms only."""
    bias: float | None = None
    """Mean of judge less people; for judge-people rows only."""
    bias_low: float | None = None
    bias_high: float | None = None
    bias_reason: str | None = None
    """Why the bias has no interval."""
    limits: tuple[float, float] | None = None
    """Between these lie 95 % of the differences (Bland & Altman 1986)."""
    limit_intervals: tuple[tuple[float, float], tuple[float, float]] | None = None
    """95 % intervals of the lower and of the upper limit."""


class CorrectedRow(Record):
    """One arm's total as people would rate it."""

    instrument: str
    total: str
    judge: str
    arm: str
    judge_mean: float
    human_mean: float
    """Of the sessions that people rated, by the model of crossed raters and patients."""
    n_human: int
    corrected: CorrectedMean | None
    reason: str | None = None
    """Why the judge's mean is not corrected."""
    selection_p: float | None = None
    """Of the hypothesis that the judge rates what people rated as it rates the rest."""


class AnalysisReport(Record):
    title: str
    source: str
    reading: tuple[str, ...] = ()
    """Of a table: which column was taken for what."""
    arms: tuple[str, ...]
    n_sessions: int
    n_patients: int
    is_rules: bool
    """True when the built-in rules are among the judges: no model, not to be believed."""
    instruments: tuple[InstrumentResult, ...]
    endings: tuple[EndingRow, ...]
    marks: tuple[MarkRow, ...] = ()
    """Of what turns say; none where no turn is marked."""
    lengths: tuple[LengthRow, ...]
    length_test: FTest | None = None
    """Whether arms differ in words of the therapist."""
    correlations: tuple[LengthCorrelation, ...]
    halo: tuple[HaloRow, ...]
    agreement: tuple[AgreementRow, ...]
    corrected: tuple[CorrectedRow, ...]
    alarms: tuple[Alarm, ...]
    methods: str
    """A paragraph for a paper."""
