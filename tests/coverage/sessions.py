"""Session studies: tests of arms, contrasts, means, ICC, models of terms, correlations, alarms.

Invented totals of 11-110: a patient's own level, how each patient responds to each arm, and one
session's residual, all normal, in units of the residual's SD of 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from cbtqa.simulation.analysis.alarms import (
    ending_alarms,
    halo_alarms,
    halo_rows,
    length_alarms,
    length_correlations,
    length_test,
    lengths,
    scale_alarms,
)
from cbtqa.simulation.analysis.groups import explore
from cbtqa.simulation.analysis.outcomes import (
    alpha_within_arms,
    analyse_outcome,
    cronbach_alpha,
    item_use,
    regress,
    top_shares,
)
from cbtqa.simulation.analysis.results import EndingRow, InstrumentResult
from cbtqa.simulation.analysis.scores import SessionScore
from cbtqa.simulation.analysis.settings import AnalysisSettings, ModelSettings
from cbtqa.simulation.instruments import TotalScore, load_instrument
from cbtqa.statistics.clustered import clustered_correlation
from cbtqa.statistics.split_plot import ArmComparison, ArmContrast, arm_by_group, compare_arms
from tests.coverage.cases import COVERAGE, TYPE_I, Case, Generator, Shown, Tier, shown

LADDER = load_instrument("ctrs-ladder")
SD, MIDDLE = 8.0, 60.0
Rows = list[SessionScore]


@dataclass(frozen=True)
class Design:
    """A study without any difference between its arms."""

    n_patients: int
    n_arms: int = 4
    n_sessions: int = 3
    """Of a patient in an arm."""
    patient: float = 0.5
    """SD of patients, by the residual's."""
    by_arm: float = 1.0
    """SD of patient by arm, by the residual's."""
    missing: float = 0.0
    """Share of the sessions without a total, by chance."""
    noisy: float = 1.0
    """Spread of the last arm, by that of the others."""

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(f"t{i // 2}_v{i % 2}" for i in range(self.n_arms))

    @property
    def icc(self) -> float:
        return self.patient**2 / (self.patient**2 + self.by_arm**2 + 1)

    def table(self, rng: Generator) -> tuple[np.ndarray, list[str], list[str]]:  # type: ignore[type-arg]
        """Totals with their arms and patients."""
        m, a, k = self.n_patients, self.n_arms, self.n_sessions
        level = rng.normal(0, self.patient, (m, 1, 1))
        answer = rng.normal(0, self.by_arm, (m, a, 1))
        spread = np.where(np.arange(a) == a - 1, self.noisy, 1.0)[:, None]
        off = level + spread * (answer + rng.normal(size=(m, a, k)))
        kept = rng.random((m, a, k)) >= self.missing
        patients = np.broadcast_to(np.arange(m)[:, None, None], off.shape)[kept]
        arms = np.broadcast_to(np.arange(a)[:, None], off.shape)[kept]
        names = self.arms
        return (
            MIDDLE + SD * off[kept],
            [names[j] for j in arms],
            [f"p{i}" for i in patients],
        )

    def rows(self, rng: Generator) -> Rows:
        found = zip(*self.table(rng), strict=True)
        return [session(arm, who, n % self.n_sessions, y) for n, (y, arm, who) in enumerate(found)]


def session(
    arm: str, patient: str, number: int, value: float | None, words: float = 100.0
) -> SessionScore:
    reason = "missing" if value is None else None
    total = TotalScore(
        instrument=LADDER.id, total="total", value=value, low=11, high=110, reason=reason
    )
    factors = dict(zip(("tree", "kind"), arm.split("_"), strict=False))
    return SessionScore(
        session_id=f"{arm} {patient} {number}",
        arm=arm,
        patient=patient,
        number=number,
        values={},
        totals=(total,),
        factors=factors,
        numbers={"session": float(number), "words": words, "turns": 10.0},
    )


def _outcome(rows: Rows, design: Design):  # type: ignore[no-untyped-def]
    return analyse_outcome(rows, LADDER, LADDER.headline, design.arms, ModelSettings())


def _compare(rng: Generator, design: Design) -> ArmComparison:
    return compare_arms(*design.table(rng), design.arms)


def _arm_test(rng: Generator, design: Design) -> bool | None:
    test = _compare(rng, design).test
    return None if test.p is None else test.p < 0.05


def _contrast(rng: Generator, design: Design) -> Shown | None:
    """Of the first and the last arm."""
    found = _compare(rng, design).contrasts
    return _of_contrast(found[design.n_arms - 2]) if found else None


def _of_contrast(found: ArmContrast) -> Shown:
    return Shown(found.difference, found.low, found.high, 0.0)


def _any_pair(rng: Generator, design: Design) -> bool | None:
    found = _compare(rng, design).contrasts
    return min(one.p_adjusted for one in found) < 0.05 if found else None


def _arm_mean(rng: Generator, design: Design) -> Shown | None:
    last = _outcome(design.rows(rng), design).arms[-1]
    return shown(last.mean, last.low, last.high, MIDDLE)


def _icc(rng: Generator, design: Design) -> Shown | None:
    found = _compare(rng, design).components
    return None if found is None else shown(found.icc, found.icc_low, found.icc_high, design.icc)


def _competent(rng: Generator, design: Design) -> Shown | None:
    total = LADDER.headline.model_copy(update={"cutoff": MIDDLE})
    found = analyse_outcome(design.rows(rng), LADDER, total, design.arms, ModelSettings()).arms[0]
    share = None if found.n_competent is None else found.n_competent / found.n
    return shown(share, found.competent_low, found.competent_high, 0.5)


def _held_equal(rng: Generator, design: Design) -> Shown | None:
    """A contrast with words held equal that have nothing to do with the totals."""
    rows = [
        replace(row, numbers={**row.numbers, "words": rng.normal(900, 200)})
        for row in design.rows(rng)
    ]
    found = _outcome(rows, design).adjusted
    if found is None or not found.contrasts:
        return None
    one = found.contrasts[0]
    return shown(one.difference, one.low, one.high, 0.0)


def _term(rng: Generator, design: Design, name: str) -> bool | None:
    settings = ModelSettings(terms="tree,kind,z(session)")
    found = regress(design.rows(rng), LADDER, settings).effects
    one = {effect.name: effect for effect in found}[name]
    return None if one.p is None else one.p < 0.05


def _factor(rng: Generator, design: Design) -> bool | None:
    found = regress(design.rows(rng), LADDER, ModelSettings(terms="tree")).tests[0]
    return None if found.p is None else found.p < 0.05


def _by_groups(rng: Generator, design: Design, n_groups: int) -> bool | None:
    """Arms by groups of patients that do not differ."""
    shape = (design.n_patients, design.n_arms, design.n_sessions)
    table = design.table(rng)[0].reshape(shape).mean(axis=2)
    groups = [f"k{i % n_groups}" for i in range(design.n_patients)]
    found = arm_by_group(table, groups, "arms by groups")
    return None if found.p is None else found.p < 0.05


def _by_ratio(rng: Generator, design: Design, n_groups: int) -> bool | None:
    """The same by the likelihood ratio, as published."""
    rows = [
        replace(row, traits={"kind": f"k{int(row.patient[1:]) % n_groups}"})
        for row in design.rows(rng)
    ]
    found = explore(rows, "total", design.arms, AnalysisSettings())
    (divided,) = found.groups if found else ()
    return None if divided.published is None else divided.published.p < 0.05


def _sign(rng: Generator, design: Design) -> bool | None:
    found = explore(design.rows(rng), "total", design.arms, AnalysisSettings())
    p = found.wins[0].p if found else None
    return None if p is None else p < 0.05


# --- correlations and alarms ---------------------------------------------------------------------


def _two_instruments(rng: Generator, design: Design, r: float) -> tuple[Rows, Rows]:
    """Totals of the same sessions that correlate by r within arms, in patients and in sessions.

    The arms' means lie far apart, alike on both.
    """
    firsts, seconds = design.rows(rng), design.rows(rng)
    found: tuple[Rows, Rows] = ([], [])
    for a, b in zip(firsts, seconds, strict=True):
        first, second = a.totals[0].value or 0.0, b.totals[0].value or 0.0
        mixed = MIDDLE + r * (first - MIDDLE) + (1 - r**2) ** 0.5 * (second - MIDDLE)
        gap = 12.0 * design.arms.index(a.arm)
        for rows, value in zip(found, (first, mixed), strict=True):
            total = a.totals[0].model_copy(update={"value": value + gap})
            rows.append(replace(a, totals=(total,)))
    return found


def _correlation(rng: Generator, design: Design, r: float) -> Shown | None:
    first, arms, patients = design.table(rng)
    second, _, _ = design.table(rng)
    mixed = r * first + (1 - r**2) ** 0.5 * second
    found = clustered_correlation(first, mixed, patients, arms)
    return None if found is None else shown(found.r, found.low, found.high, r)


OPPOSITE = (-0.8, 0.5)


def _opposite(rng: Generator, n_patients: int, n_sessions: int) -> Shown | None:
    """Patients' levels and their sessions, alike in variance, correlate with opposite signs."""
    parts = []
    for r, shape in zip(OPPOSITE, ((n_patients, 1), (n_patients, n_sessions)), strict=True):
        first, other = rng.normal(size=(2, *shape))
        parts.append((first, r * first + (1 - r**2) ** 0.5 * other))
    (a, b), (c, d) = parts
    patients = np.repeat(np.arange(n_patients), n_sessions).tolist()
    found = clustered_correlation((a + c).ravel(), (b + d).ravel(), patients)
    return None if found is None else shown(found.r, found.low, found.high, sum(OPPOSITE) / 2)


def _halo_alarm(rng: Generator, design: Design, r: float) -> bool:
    first, second = _two_instruments(rng, design, r)
    return bool(list(halo_alarms(halo_rows({"a": ("total", first), "b": ("total", second)}))))


def _length_alarm(rng: Generator, design: Design) -> bool:
    """Lengths that patients decide, and the arms and the totals do not."""
    own = rng.normal(0, 250, design.n_patients)
    rows = [
        replace(
            row,
            numbers={
                "turns": 10.0,
                "words": 900 + own[int(row.patient[1:])] + rng.normal(0, 250),
            },
        )
        for row in design.rows(rng)
    ]
    correlations = length_correlations(rows, "ctrs-ladder", "total", design.arms)
    test = length_test(rows, design.arms)
    return bool(list(length_alarms(correlations, lengths(rows, design.arms), test)))


def _ending_alarm(rng: Generator, n: int, share: float) -> bool:
    early = rng.binomial(n, share, 6)
    rows = [EndingRow(arm=f"a{i}", n=n, counts={}, n_early=int(k)) for i, k in enumerate(early)]
    return bool(list(ending_alarms(rows)))


def _scale_alarm(rng: Generator, n_patients: int) -> bool:
    """A sound judge of skewed sessions: every point is used, items of a session move together."""
    rows = []
    for i in range(n_patients):
        for arm in ("a", "b"):
            level = rng.normal(0, 0.6)
            # one rating in 50 is the highest point, one in 40 the lowest
            latent = level + rng.normal(0, 0.8, 11)
            points = np.digitize(latent, [-1.96, -1.4, -0.8, -0.4, 0, 0.4, 0.8, 1.4, 2.05]) + 1
            values = {item.id: float(v) for item, v in zip(LADDER.items, points, strict=True)}
            one = session(arm, f"p{i}", 1, None)
            rows.append(replace(one, values=values, totals=tuple(LADDER.totals(values))))
    alpha, low = alpha_within_arms(LADDER, rows) or (None, None)
    result = InstrumentResult(
        instrument="ctrs-ladder",
        title="",
        title_zh="",
        scale="",
        source="",
        judges=(),
        n_sessions=len(rows),
        alpha=cronbach_alpha(LADDER, rows),
        alpha_within=alpha,
        alpha_within_low=low,
        outcomes=(),
        regression=None,
        profile=(),
        use=tuple(item_use(LADDER, rows, None)),
        top=tuple(top_shares(LADDER, rows, None, ("a", "b"))),
    )
    return bool(list(scale_alarms(result)))


NOISY = "one arm of three times the spread"
TESTS: dict[str, tuple[Design, Tier]] = {
    "3 patients, no patient by arm": (Design(3, by_arm=0), "suite"),
    "3 patients, patient by arm 1": (Design(3), "suite"),
    "5 patients, patient by arm .5, one session": (
        Design(5, by_arm=0.5, n_sessions=1),
        "bench",
    ),
    "5 patients, patient by arm 1, a quarter missing": (Design(5, missing=0.25), "suite"),
    "20 patients, patient by arm 1": (Design(20), "suite"),
    "20 patients, patient by arm 1, six arms, one session": (Design(20, 6, n_sessions=1), "bench"),
    f"3 patients, {NOISY}": (Design(3, noisy=3), "bench"),
    f"10 patients, {NOISY}": (Design(10, noisy=3), "suite"),
}
CONTRASTS: dict[str, tuple[Design, Tier]] = {
    "3 patients": (Design(3), "suite"),
    "5 patients, a quarter missing": (Design(5, missing=0.25), "suite"),
    f"5 patients, {NOISY}": (Design(5, noisy=3), "bench"),
    f"10 patients, {NOISY}": (Design(10, noisy=3), "suite"),
}
ICCS: dict[str, tuple[Design, Tier]] = {
    "5 patients, one session": (Design(5, by_arm=0, n_sessions=1), "suite"),
    "5 patients, three sessions": (Design(5), "suite"),
    "20 patients, a quarter missing": (Design(20, 3, missing=0.25), "bench"),
}
FEW: dict[str, tuple[Design, Tier]] = {"5 patients": (Design(5), "suite")}
GAPS: dict[str, tuple[Design, Tier]] = {
    "5 patients, a quarter missing": (Design(5, missing=0.25), "bench")
}
SOUND = (0.0, TYPE_I[1])
SOUND_NOTE = "an alarm on sound data"


def _cases(
    what: str,
    trial: Callable[..., Shown | bool | None],
    designs: dict[str, tuple[Design, Tier]],
    n: int,
    allowed: tuple[float, float],
    note: str = "",
    widest: float = math.inf,
) -> list[Case]:
    return [
        Case(
            f"{what}: {name}",
            "simulate",
            partial(trial, design=design),
            n,
            allowed,
            note=note,
            widest=widest,
            tier=tier,
        )
        for name, (design, tier) in designs.items()
    ]


CASES = [
    *_cases("test of arms", _arm_test, TESTS, 1_000, TYPE_I),
    *_cases("contrast", _contrast, CONTRASTS, 1_000, COVERAGE),
    *_cases(
        "contrast",
        _contrast,
        {f"3 patients, {NOISY}": (Design(3, noisy=3), "suite")},
        1_000,
        (0.915, 0.95),
        "of a pair with that arm: a little too narrow",
        1.6,
    ),
    *_cases(
        "any of 6 pairs",
        _any_pair,
        {"5 patients": (Design(5), "suite")},
        600,
        (0.01, TYPE_I[1]),
        "Holm-Sidak takes pairs as independent: errs on the safe side",
    ),
    *_cases("arm mean", _arm_mean, GAPS, 400, COVERAGE),
    *_cases("ICC of patients", _icc, ICCS, 500, COVERAGE),
    *_cases("share at cut-off", _competent, {"5 patients": (Design(5, 2), "bench")}, 400, COVERAGE),
    *_cases(
        "contrast, length equal", _held_equal, {"5 patients": (Design(5), "bench")}, 200, COVERAGE
    ),
    *_cases("term of two levels", partial(_term, name="kind=v1"), FEW | GAPS, 600, TYPE_I),
    *_cases("term within patients", partial(_term, name="z(session)"), GAPS, 600, TYPE_I),
    *_cases(
        "factor of three levels",
        _factor,
        {"10 patients": (Design(10, 6, 1), "bench")},
        600,
        TYPE_I,
    ),
    *_cases(
        "arms by 2 groups",
        partial(_by_groups, n_groups=2),
        {
            "10 patients": (Design(10), "suite"),
            f"10 patients, {NOISY}": (Design(10, noisy=3), "bench"),
        },
        400,
        TYPE_I,
    ),
    *_cases(
        "arms by 4 groups",
        partial(_by_groups, n_groups=4),
        {"20 patients, six arms, one session": (Design(20, 6, n_sessions=1), "bench")},
        400,
        TYPE_I,
    ),
    *_cases(
        "arms by groups, likelihood ratio",
        partial(_by_ratio, n_groups=4),
        {"20 patients, six arms, one session": (Design(20, 6, n_sessions=1), "bench")},
        400,
        (0.05, 0.2),
        "as published: too sure with few patients",
    ),
    *_cases(
        "arms by groups, likelihood ratio",
        partial(_by_ratio, n_groups=2),
        {f"10 patients, {NOISY}": (Design(10, noisy=3), "bench")},
        400,
        (0.05, 0.3),
        "as published: too sure with few patients and where arms spread unlike",
    ),
    *_cases(
        "sign test of two arms",
        _sign,
        {"12 patients": (Design(12), "suite")},
        400,
        (0.01, TYPE_I[1]),
        "counts have few values: errs on the safe side",
    ),
    *_cases(
        "correlation .6 within arms",
        partial(_correlation, r=0.6),
        {
            "5 patients": (Design(5), "suite"),
            "20 patients, one session": (Design(20, 2, n_sessions=1), "suite"),
        },
        2_000,
        COVERAGE,
    ),
    Case(
        "correlation -.8 between and .5 within 10 patients of 18 sessions",
        "simulate",
        partial(_opposite, n_patients=10, n_sessions=18),
        1_000,
        (0.88, 0.94),
        note="of opposite signs between and within patients: too narrow",
        widest=1.6,
    ),
    *_cases(
        "halo alarm at .7",
        partial(_halo_alarm, r=0.7),
        {"5 patients": (Design(5), "suite")},
        400,
        SOUND,
        SOUND_NOTE,
    ),
    *_cases(
        "length alarms", _length_alarm, {"5 patients": (Design(5), "bench")}, 400, SOUND, SOUND_NOTE
    ),
    *(
        Case(
            f"alarm about endings: 6 arms of {n} sessions, share .1",
            "simulate",
            partial(_ending_alarm, n=n, share=0.1),
            1_000,
            SOUND,
            note=SOUND_NOTE,
            tier="bench",
        )
        for n in (10, 30)
    ),
    *(
        Case(
            f"alarms about the scale: {n} patients, 2 arms, skewed ratings",
            "simulate",
            partial(_scale_alarm, n_patients=n),
            400,
            SOUND,
            note=SOUND_NOTE,
            tier="bench",
        )
        for n in (5, 20)
    ),
]
