"""Means of a judge, corrected means, judge against people, and alarms, as `cbtqa judge` and
`cbtqa simulate analyse` compute them.

People and judge see an answer's quality, each through noise, on ratings of 0 to 2; people differ in
severity. What is true of the population is computed from one large sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from cbtqa.judging.agreement import (
    KAPPA,
    Cells,
    CriterionAgreement,
    agreement_on,
    corrected_by,
    self_alpha,
)
from cbtqa.judging.answers import AnswerCounts, HumanRatings, JudgeRating
from cbtqa.judging.correction import HumanSample
from cbtqa.judging.report import JudgeReport, make_report
from cbtqa.metrics.base import Signature
from cbtqa.ratings.rubric import Criterion, Rubric, load_rubric
from cbtqa.records import ItemRating, Session
from cbtqa.simulation.analysis.agreement import agreement_rows, corrected_rows
from cbtqa.simulation.analysis.scores import Judged
from cbtqa.simulation.instruments import Instrument, load_instrument
from cbtqa.statistics.agreement import Coefficient
from tests.coverage.cases import COVERAGE, Case, Generator, Shown, Tier, shown
from tests.support.judged_sessions import session

SHIPPED = load_rubric("cbt-llm")
CRITERION: Criterion = SHIPPED.scales[0]
NAME = CRITERION.id
RUBRIC: Rubric = SHIPPED.model_copy(update={"sections": (), "criteria": (CRITERION,)})


@dataclass(frozen=True)
class Study:
    """Who rated what, and how well."""

    n: int = 30
    """Questions that people rated."""
    n_other: int = 40
    """Further questions for the judge alone."""
    n_raters: int = 1
    severity: float = 0.0
    """Standard deviation over raters, in units of quality (standard deviation 1)."""
    cuts: tuple[float, float] = (-0.5, 0.6)
    """Quality above which a rating is 1, and 2."""
    keen: float = 1.0
    """Of the judge: how much of the quality it sees; 0 is noise."""
    bias: float = 0.4
    """Of the judge, in units of quality."""
    systems: tuple[float, ...] = (0.0,)
    """Quality of each system."""
    knows_system: bool = False
    """The judge sees the system's quality and nothing of the answer's."""
    completion: float = 1.0
    """Share of the answers that each further rater reached, the first one all."""
    n_repeats: int = 1
    noise: float = 0.5
    """Standard deviation of the noise of people and judge."""


Made = tuple[Cells, HumanRatings]


def _cut(quality: np.ndarray, study: Study) -> np.ndarray:
    return np.asarray((quality > study.cuts[0]).astype(int) + (quality > study.cuts[1]))


def _make(rng: Generator, study: Study) -> Made:
    """Ratings of a judge and of people."""
    n_all, noise = study.n + study.n_other, study.noise
    severity = rng.normal(0, study.severity, study.n_raters)
    of_question = rng.normal(0, np.sqrt(0.5), n_all)
    cells: Cells = {}
    human = HumanRatings({NAME: {}})
    done = [study.n if r == 0 else round(study.completion * study.n) for r in range(len(severity))]
    for number, level in enumerate(study.systems):
        quality = of_question + level + rng.normal(0, np.sqrt(0.5), n_all)
        seen = np.full(n_all, level) if study.knows_system else study.keen * quality
        shape = (study.n_repeats, n_all)
        judge = _cut(seen + study.bias + rng.normal(0, noise, shape), study)
        people = _cut(quality - severity[:, None] + rng.normal(0, noise, (len(done), n_all)), study)
        for place in range(n_all):
            key = (f"q{place}", f"s{number}")
            cells[key] = {repeat: int(judge[repeat, place]) for repeat in range(study.n_repeats)}
            if place < study.n:
                human.values[NAME][key] = {
                    f"R{r}": int(people[r, place]) for r, end in enumerate(done) if place < end
                }
    return cells, human


@cache
def _truth(study: Study) -> float:
    """The mean that people would give to the first system."""
    rng = np.random.default_rng(7)
    spread = np.sqrt(1 + study.severity**2 + study.noise**2)
    return float(_cut(study.systems[0] + rng.normal(0, spread, 4_000_000), study).mean())


def _corrected(rng: Generator, study: Study, sample: HumanSample | None = "random") -> Shown | None:
    cells, human = _make(rng, study)
    (found,) = corrected_by(RUBRIC, ["s0"], {NAME: cells}, human, sample)
    one = found.corrected
    if one is None or one.low is None or one.high is None:
        return None
    assert 0 <= one.low <= one.high <= 2
    return Shown(one.value, one.low, one.high, _truth(study))


def _report(rng: Generator, study: Study, *, with_people: bool) -> JudgeReport:
    cells, human = _make(rng, study)
    ratings = [
        JudgeRating(
            question_id=question,
            system=system,
            criterion=NAME,
            repeat=repeat,
            value=value,
            judge="m",
        )
        for (question, system), cell in cells.items()
        for repeat, value in cell.items()
    ]
    n = study.n + study.n_other
    answers = [
        AnswerCounts(
            system=f"s{number}",
            n_questions=n,
            n_answered=n,
            n_missing=0,
            n_without_text=0,
            n_not_in_questions=0,
        )
        for number in range(len(study.systems))
    ]
    given = human if with_people else None
    return make_report(ratings, RUBRIC, answers, Signature(()), study.n_repeats, given, "random")


def _judge_mean(rng: Generator, study: Study) -> Shown | None:
    """The judge's own mean, which for this judge is the people's."""
    (score,) = _report(rng, study, with_people=False).scores
    return shown(score.value, score.low, score.high, _truth(study))


EQUAL = Study(n=0, systems=(0.0, 0.0), bias=0.0)
"""Two systems of one quality on the same questions."""


def _difference(rng: Generator, study: Study) -> Shown | None:
    """The difference of equal systems."""
    (found,) = _report(rng, study, with_people=False).differences
    return shown(found.difference, found.low, found.high, 0.0)


def _is_different(rng: Generator, study: Study) -> bool:
    """Whether equal systems are called different."""
    (found,) = _report(rng, study, with_people=False).differences
    return found.p is not None and found.p <= 0.05


def _alarm(rng: Generator, study: Study, words: str) -> bool:
    """Whether a sound judge is told off."""
    return any(words in alarm for alarm in _report(rng, study, with_people=True).alarms)


# --- judge and people -----------------------------------------------------------------------------

Figure = Callable[[CriterionAgreement], tuple[float | None, float | None, float | None]]


def _ends(found: Coefficient) -> tuple[float | None, float | None, float | None]:
    return found.value, found.low, found.high


def _named(name: str, found: CriterionAgreement) -> tuple[float | None, float | None, float | None]:
    return _ends(next(one for one in found.judge_human if one.name == name))


def _within(found: CriterionAgreement) -> tuple[float | None, float | None, float | None]:
    return _ends(next(one for one in found.judge_human_within if one.name == KAPPA))


def _bias(found: CriterionAgreement) -> tuple[float | None, float | None, float | None]:
    return found.bias, found.bias_low, found.bias_high


def _upper_limit(found: CriterionAgreement) -> tuple[float | None, float | None, float | None]:
    ends = found.limit_intervals[1] if found.limit_intervals else (None, None)
    return found.limits[1] if found.limits else None, *ends


def _agreement(rng: Generator, study: Study) -> CriterionAgreement:
    cells, human = _make(rng, replace(study, n_other=0))
    return agreement_on(CRITERION, cells, human.values[NAME])


@cache
def _true_figure(study: Study, figure: Figure) -> float:
    """The figure in a large sample of answers, and of raters by their number."""
    rng = np.random.default_rng(7)
    draws = 1 if study.severity == 0 else 25
    large = replace(study, n=1_000 // draws, completion=1.0)
    values = [figure(_agreement(rng, large))[0] for _ in range(draws)]
    return float(np.mean([value for value in values if value is not None]))


def _interval(
    rng: Generator, study: Study, figure: Figure, truth: float | None = None
) -> Shown | None:
    known = _true_figure(study, figure) if truth is None else truth
    return shown(*figure(_agreement(rng, study)), known)


@cache
def _true_alpha(study: Study) -> float:
    found = self_alpha(_make(np.random.default_rng(7), replace(study, n=5_000))[0], study.n_repeats)
    assert found.value is not None
    return found.value


def _own_alpha(rng: Generator, study: Study) -> Shown | None:
    found = self_alpha(_make(rng, study)[0], study.n_repeats)
    return shown(found.value, found.low, found.high, _true_alpha(study))


# --- sessions -------------------------------------------------------------------------------------

TES = load_instrument("tes")
ONE_POINT = "judge gives 2 to"
FORM = Instrument(TES.rubric.model_copy(update={"criteria": TES.rubric.criteria[:2]}))


def _sessions(
    rng: Generator, n_patients: int, n_human: int, n_raters: int
) -> tuple[list[Session], list[ItemRating], list[ItemRating]]:
    """Three sessions a patient in each of two arms; people rate those of the first patients."""
    all_sessions, judged, people = [], [], []
    severity = rng.normal(0, 0.4, n_raters) if n_raters > 1 else np.zeros(1)
    for patient in range(n_patients):
        of_patient, of_judge = rng.normal(0, 0.6), rng.normal(0, 0.4)
        for arm in ("base", "tuned"):
            for number in (1, 2, 3):
                one = session(arm, f"p{patient}", number=number)
                all_sessions.append(one)
                level = 4 + of_patient + rng.normal(0, 0.5)
                for item in FORM.scales:
                    rating = partial(ItemRating, session_id=one.id, instrument=FORM.id, item=item)
                    mine = level + 0.7 + of_judge + rng.normal(0, 0.5)
                    judged.append(rating(value=_point(mine), judge="m"))
                    if patient >= n_human:
                        continue
                    for name, off in enumerate(severity):
                        theirs = level + off + rng.normal(0, 0.5)
                        people.append(rating(value=_point(theirs), judge=f"R{name}"))
    return all_sessions, judged, people


def _point(value: float) -> int:
    return int(np.clip(round(value), 1, 7))


def _corrected_arm(rng: Generator, n_human: int, n_raters: int) -> Shown | None:
    sessions, judged, people = _sessions(rng, 3 * n_human, n_human, n_raters)
    ratings = Judged(FORM, {"m": tuple(judged)})
    row = corrected_rows(ratings, people, sessions, ["base"], "random")[0].corrected
    if row is None:
        return None
    return shown(row.value, row.low, row.high, 4.0)  # the scale is even around 4


def _bias_of_sessions(rng: Generator, n_human: int, n_raters: int) -> Shown | None:
    sessions, judged, people = _sessions(rng, n_human, n_human, n_raters)
    ratings = Judged(FORM, {"m": tuple(judged)})
    row = next(
        one for one in agreement_rows(ratings, people, sessions) if one.kind == "judge-people"
    )
    return shown(row.bias, row.bias_low, row.bias_high, 0.7)


EVEN, CEILING = (-0.5, 0.6), (-2.0, -1.6)
"""Near the ceiling some 95 % of the ratings are 2."""
SHAPES = (("even", EVEN), ("near the ceiling", CEILING))
SOUND = Study(n=40, n_other=20, n_raters=1, bias=0.0, cuts=(-2.4, -0.9))
"""A judge like people, all of whom hardly ever give a 0."""
ROOM = "judge"
Told = tuple[tuple[float, float], float, str]
"""What is allowed, the greatest width, and why it is not nominal."""
NOMINAL: Told = (COVERAGE, math.inf, "")
FEW_VALUES: Told = ((COVERAGE[0], 1.0), 1.7, "few values can occur: errs on the wide side")
AT_END: Told = ((COVERAGE[0], 1.0), 2.2, "nearly all at one end: errs on the wide side")
FEW_RATERS: Told = ((COVERAGE[0], 1.0), 2.6, "two or three raters: errs on the wide side")
SAFE: Told = ((0.0, 0.05), math.inf, "few values can occur: errs on the safe side")
SOUND_JUDGE: Told = ((0.0, 0.07), math.inf, "a sound judge is seldom told off")
NOTHING: Told = ((1.0, 1.0), math.inf, "nothing is printed")


def _case(
    name: str,
    trial: Callable[[Generator], Shown | bool | None],
    told: Told = NOMINAL,
    tier: Tier = "bench",
    n_trials: int = 300,
    room: str = ROOM,
) -> Case:
    allowed, widest, note = told
    printed = 0.0 if told is NOTHING else 0.5
    return Case(name, room, trial, n_trials, allowed, printed, note, widest, tier)


MEANS = [
    *(
        _case(
            f"judge's mean of {n} answers, {name}",
            partial(_judge_mean, study=Study(n=0, n_other=n, bias=0.0, cuts=cuts)),
            FEW_VALUES if (name, n) != ("even", 10) else NOMINAL,
            "suite",
            600,
        )
        for name, cuts in SHAPES
        for n in (3, 10)
    ),
    *(
        _case(
            f"difference of two systems on {n} questions, {name}",
            partial(_difference, study=replace(EQUAL, n_other=n, cuts=cuts)),
            AT_END if cuts == CEILING else FEW_VALUES if n < 40 else NOMINAL,
            "suite" if n == 10 else "bench",
        )
        for name, cuts in SHAPES
        for n in (3, 10, 40)
    ),
    *(
        _case(
            f"p of two equal systems on {n} questions, {name}",
            partial(_is_different, study=replace(EQUAL, n_other=n, cuts=cuts)),
            SAFE,
        )
        for name, cuts in SHAPES
        for n in (6, 30)
    ),
]
THIRD = Study(n=30, n_raters=4, severity=0.4, completion=0.34)
CORRECTED = [
    _case(
        "corrected mean, 2 answers rated",
        partial(_corrected, study=Study(n=2)),
        NOTHING,
        "suite",
        50,
    ),
    _case(
        "corrected mean, answers chosen",
        partial(_corrected, study=Study(), sample="chosen"),
        NOTHING,
        "suite",
        50,
    ),
    *(
        _case(f"corrected mean, {name}", partial(_corrected, study=study), told, tier)
        for name, study, told, tier in (
            ("5 answers rated", Study(n=5), FEW_VALUES, "suite"),
            ("10 answers rated", Study(n=10), NOMINAL, "suite"),
            ("60 answers rated", Study(n=60), NOMINAL, "bench"),
            ("30 answers rated, noise judge", Study(n=30, keen=0.0), NOMINAL, "bench"),
            ("30 answers rated near the ceiling", Study(n=30, cuts=CEILING), AT_END, "suite"),
            (
                "2 raters of severity SD .4",
                Study(n=30, n_raters=2, severity=0.4),
                FEW_RATERS,
                "bench",
            ),
            ("5 raters of severity SD .4", Study(n=30, n_raters=5, severity=0.4), NOMINAL, "suite"),
            ("4 raters, three of whom stopped after a third", THIRD, NOMINAL, "suite"),
        )
    ),
]
AGREEMENT = [
    _case(name, partial(_interval, study=study, figure=figure, truth=truth), told, tier)
    for name, study, figure, truth, told, tier in (
        (
            "kappa with people, noise judge, 5 raters",
            Study(n=30, n_raters=5, keen=0.0, bias=0.0),
            partial(_named, KAPPA),
            0.0,
            NOMINAL,
            "suite",
        ),
        (
            "kappa within systems, judge that knows the system only",
            Study(n=20, n_raters=2, knows_system=True, bias=0.0, systems=(-1.0, 0.0, 1.0)),
            _within,
            0.0,
            NOMINAL,
            "suite",
        ),
        (
            "kappa with people, 12 questions, 2 systems",
            Study(n=12, n_raters=2, systems=(0.0, 0.5)),
            partial(_named, KAPPA),
            None,
            NOMINAL,
            "bench",
        ),
        (
            "Spearman's rho with people, 30 questions",
            Study(n=30, n_raters=2),
            partial(_named, "spearman"),
            None,
            NOMINAL,
            "bench",
        ),
        (
            "ICC(A,1) with people, 30 questions",
            Study(n=30, n_raters=2),
            partial(_named, "icc_A_1"),
            None,
            NOMINAL,
            "bench",
        ),
        (
            "bias, 3 raters of severity SD .4, 2 systems",
            Study(n=20, n_raters=3, severity=0.4, systems=(0.0, 0.5)),
            _bias,
            None,
            FEW_RATERS,
            "bench",
        ),
        ("limit of agreement, 30 questions", Study(n=30), _upper_limit, None, NOMINAL, "bench"),
    )
]
CASES = [
    *MEANS,
    *CORRECTED,
    *AGREEMENT,
    _case(
        "alpha of the judge with itself, 15 questions, 2 systems",
        partial(_own_alpha, study=Study(n=15, n_other=0, n_repeats=3, systems=(0.0, 0.0))),
    ),
    *(
        _case(f"alarm, {name}", partial(_alarm, study=study, words=words), SOUND_JUDGE, tier, n)
        for name, study, words, tier, n in (
            ("a point never given, 1 rater", SOUND, "never gives", "suite", 100),
            (
                "a point never given, 5 raters",
                replace(SOUND, n_raters=5),
                "never gives",
                "bench",
                200,
            ),
            (
                "one point, a share of .9",
                replace(SOUND, cuts=(-2.4, -1.43)),
                ONE_POINT,
                "suite",
                150,
            ),
            (
                "bias of 0, 10 answers rated",
                replace(SOUND, n=10, cuts=EVEN),
                "than people",
                "bench",
                400,
            ),
            ("answers drawn by lot", replace(SOUND, n_other=40), "by lot", "bench", 400),
        )
    ),
    *(
        _case(
            f"corrected total of an arm, {n} patients, {raters} raters",
            partial(_corrected_arm, n_human=n, n_raters=raters),
            told,
            room="simulate analyse",
        )
        for n, raters, told in ((6, 1, NOMINAL), (15, 1, NOMINAL), (10, 3, FEW_RATERS))
    ),
    _case(
        "bias of a judge of sessions, 10 patients, 3 raters",
        partial(_bias_of_sessions, n_human=10, n_raters=3),
        FEW_RATERS,
        n_trials=200,
        room="simulate analyse",
    ),
]
