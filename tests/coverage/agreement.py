"""Agreement: ratings on a short scale of answers to random questions by random raters.

A rating is the answer's quality plus the rater's severity plus noise, cut into points. The truth is
the coefficient of very many raters and questions of the same kind; with two raters, who are fixed,
that of two raters without severity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from cbtqa.statistics.agreement import (
    Coefficient,
    agreement_share,
    alpha_within,
    cohen_kappa,
    gwet_ac,
    krippendorff_alpha,
    mean_kappa,
)
from cbtqa.statistics.intraclass import intraclass_correlation
from cbtqa.statistics.tests_of_arms import friedman, spearman_rho, wilcoxon
from tests.coverage.cases import COVERAGE, TYPE_I, Case, Generator, Shown, Tier, shown

EVEN = (-0.4, 0.4)
CEILING = (-2.0, -1.2)
RARE = (1.5,)
"""A mark that 8 % of the items get."""
SELDOM = (2.16,)
"""One that 2.5 % get."""
FEW_RATERS = "three raters tell little of others: errs on the wide side"
ON_POINTS = "few points: errs on the wide side"
SEVERE = ((0.91, 0.95), 2.5, "three raters who differ as much as questions do: a little too narrow")


@dataclass(frozen=True)
class Study:
    n_raters: int
    n_questions: int
    n_systems: int = 1
    severity: float = 0.4
    """Standard deviation over raters; that of the quality of questions is .8."""
    cuts: tuple[float, ...] | None = EVEN
    gaps: float = 0.0

    def draw(self, rng: Generator, severities: object = None) -> np.ndarray:
        n, k, s = self.n_questions, self.n_raters, self.n_systems
        quality = rng.normal(0, 0.8, (n, 1)) + np.linspace(-0.3, 0.3, s) * (s > 1)
        quality = (quality + rng.normal(0, 0.3, (n, s))).ravel()
        severe = rng.normal(0, self.severity, k) if severities is None else np.array(severities)
        table = quality + severe[:, None] + rng.normal(0, 0.7, (k, n * s))
        if self.cuts is not None:
            table = np.digitize(table, self.cuts).astype(float)
        table[rng.random(table.shape) < self.gaps] = np.nan
        return table

    @property
    def clusters(self) -> list[int] | None:
        if self.n_systems == 1:
            return None
        return np.repeat(np.arange(self.n_questions), self.n_systems).tolist()

    def __str__(self) -> str:
        words = [f"{self.n_raters} raters", f"{self.n_questions} questions"]
        words += [f"{self.n_systems} systems"] * (self.n_systems > 1)
        words += [f"severity SD {self.severity}"] * (self.severity > 0)
        words += [
            {
                CEILING: "near the ceiling",
                RARE: "rare mark",
                SELDOM: "seldom mark",
                None: "many values",
            }.get(self.cuts, "")
        ]
        words += [f"{self.gaps:.0%} open"] * (self.gaps > 0)
        return ", ".join(word for word in words if word)


Measure = Callable[[np.ndarray, list[int] | None], Coefficient]


def _labels(table: np.ndarray) -> list[int]:
    return list(range(max(2, int(np.nanmax(table)) + 1)))


def _alpha(table: np.ndarray, clusters: list[int] | None) -> Coefficient:
    is_mark = np.nanmax(table) <= 1
    return krippendorff_alpha(table, "nominal" if is_mark else "ordinal", clusters=clusters)


def _kappa(table: np.ndarray, clusters: list[int] | None) -> Coefficient:
    return cohen_kappa(table[0], table[1], _labels(table), "quadratic", clusters=clusters)


def _mean_kappa(table: np.ndarray, clusters: list[int] | None) -> Coefficient:
    return mean_kappa(table, _labels(table), clusters=clusters)


def _ac(table: np.ndarray, clusters: list[int] | None) -> Coefficient:
    weights = "none" if np.nanmax(table) <= 1 else "quadratic"
    return gwet_ac(table, _labels(table), weights, clusters=clusters)


def _share(table: np.ndarray, clusters: list[int] | None) -> Coefficient:
    return agreement_share(table, clusters=clusters)


def _rho(table: np.ndarray, clusters: list[int] | None) -> Coefficient:
    return spearman_rho(table[0], table[1], clusters=clusters)


def _icc(table: np.ndarray, clusters: list[int] | None) -> Coefficient:
    return intraclass_correlation(table, "A", clusters=clusters)


def _icc_mean(table: np.ndarray, clusters: list[int] | None) -> Coefficient:
    return intraclass_correlation(table, "A", of_mean=True, clusters=clusters)


@cache
def _truth(
    measure: Measure, systems: int, severity: float, cuts: tuple[float, ...] | None, n_raters: int
) -> float:
    """From the quantiles of severity, and questions enough."""
    rng = np.random.default_rng(0)
    pairwise = measure in (_kappa, _rho)
    k = 2 if pairwise or severity == 0 else n_raters if measure is _icc_mean else 16
    n = 20_000
    if measure in (_icc, _icc_mean) and cuts is None:
        item, rater = 0.8**2 + 0.3**2 + (0.06 if systems > 1 else 0), severity**2
        single = item / (item + rater + 0.7**2)
        k = n_raters if measure is _icc_mean else 1
        return k * single / (1 + (k - 1) * single)
    places = (np.arange(k) + 0.5) / k
    raters = rng.normal(0, 1, (k, 100_000))
    severities = severity * np.quantile(raters[0], places)
    # so few quantiles spread less than the normal distribution
    spread = float(np.std(severities, ddof=1)) if k > 1 and severity else 0.0
    severities = severities * (severity / spread if spread else 0.0)
    table = Study(k, n // systems, systems, severity, cuts).draw(rng, severities)
    # the value alone: few clusters give no interval, and cost nothing
    found = measure(table, [0] * table.shape[1])
    assert found.value is not None
    return found.value


def _interval(rng: Generator, measure: Measure, study: Study) -> Shown | None:
    found = measure(study.draw(rng), study.clusters)
    truth = _truth(measure, study.n_systems, study.severity, study.cuts, study.n_raters)
    return shown(found.value, found.low, found.high, truth)


def _within(rng: Generator, n_raters: int, n_items: int) -> Shown | None:
    """Raters who give one of three points by chance alone, of their own liking: no agreement."""
    likings = rng.dirichlet([2.0, 2.0, 2.0], n_raters)
    first, second = (
        np.array([rng.choice(3, n_items, p=liking) for liking in likings], float) for _ in range(2)
    )
    found = alpha_within([first, second])
    return shown(found.value, found.low, found.high, 0.0)


def _rejects(rng: Generator, n_arms: int, n_items: int) -> bool | None:
    """Arms that do not differ, rated 0 to 2 on the same items."""
    quality = rng.normal(0, 0.8, n_items)
    arms = [np.digitize(quality + rng.normal(0, 0.7, n_items), EVEN) for _ in range(n_arms)]
    result = friedman(arms) if n_arms > 2 else wilcoxon(*arms)
    return None if result.p is None else result.p < 0.05


def _case(
    name: str,
    measure: Measure,
    study: Study,
    tier: Tier = "bench",
    allowed: tuple[float, float] = COVERAGE,
    widest: float = math.inf,
    note: str = "",
) -> Case:
    trial = partial(_interval, measure=measure, study=study)
    named = f"{name}, {study}"
    return Case(named, "agreement", trial, 500, allowed, note=note, widest=widest, tier=tier)


CASES = [
    _case("alpha", _alpha, Study(2, 30, 3, 0.0), "suite"),
    _case("alpha", _alpha, Study(3, 30, 3), "suite", (0.95, 0.99), 2.5, FEW_RATERS),
    _case("alpha", _alpha, Study(3, 100, 1, 0.8), "bench", *SEVERE),
    _case("alpha", _alpha, Study(5, 10, 3), "suite"),
    _case("alpha", _alpha, Study(5, 30, 3), "suite"),
    _case("alpha", _alpha, Study(10, 10, 2)),
    _case("alpha", _alpha, Study(10, 30, 3), "suite"),
    _case("alpha", _alpha, Study(5, 100, 2)),
    _case("alpha", _alpha, Study(5, 30, 1), "bench", (0.95, 0.99), 1.4, ON_POINTS),
    _case("alpha", _alpha, Study(5, 30, 3, gaps=0.2)),
    _case("alpha", _alpha, Study(5, 30, 3, cuts=CEILING), "suite"),
    _case("alpha", _alpha, Study(5, 30, 3, cuts=RARE), "suite", (0.95, 0.99), 1.3, ON_POINTS),
    _case("alpha", _alpha, Study(2, 30, 1, 0.0, RARE), "suite"),
    _case("alpha", _alpha, Study(2, 200, 1, 0.0, SELDOM)),
    _case("kappa", _kappa, Study(2, 10, 1, 0.0), "suite"),
    _case("kappa", _kappa, Study(2, 30, 3, 0.0), "suite"),
    _case("kappa", _kappa, Study(2, 30, 1, 0.0, CEILING)),
    _case("mean kappa", _mean_kappa, Study(3, 30, 2)),
    _case(
        "mean kappa",
        _mean_kappa,
        Study(5, 30, 2, cuts=CEILING),
        "bench",
        (0.95, 0.99),
        1.3,
        ON_POINTS,
    ),
    _case("AC", _ac, Study(2, 30, 1, 0.0, RARE), "suite"),
    _case("AC", _ac, Study(5, 30, 2, cuts=CEILING), "suite"),
    _case("AC", _ac, Study(5, 30, 2)),
    _case("share of pairs alike", _share, Study(2, 10, 1, 0.0), "suite"),
    _case("share of pairs alike", _share, Study(2, 30, 3, 0.0, CEILING), "suite"),
    _case("share of pairs alike", _share, Study(5, 30, 3)),
    _case("share of pairs alike", _share, Study(10, 10, 3)),
    _case("Spearman", _rho, Study(2, 10, 1, 0.0)),
    _case("Spearman", _rho, Study(2, 30, 3, 0.0)),
    _case("ICC(A,1)", _icc, Study(2, 30, 1, cuts=None), "suite"),
    _case("ICC(A,1)", _icc, Study(5, 10, 1, cuts=None), "suite"),
    _case("ICC(A,1)", _icc, Study(5, 30, 3, cuts=None)),
    _case("ICC(A,1)", _icc, Study(5, 30, 1, cuts=CEILING), "bench", (0.96, 1.0), 1.4, ON_POINTS),
    _case("ICC(A,1)", _icc, Study(3, 30, 1)),
    _case("ICC(A,k)", _icc_mean, Study(3, 30, 1, cuts=None)),
    _case("ICC(A,k)", _icc_mean, Study(5, 30, 3, cuts=None)),
    *(
        Case(
            f"alpha within {k} raters of {n} items by chance",
            "agreement",
            partial(_within, n_raters=k, n_items=n),
            600,
            allowed,
            note=ON_POINTS if k > 2 else "",
            widest=1.5,
        )
        for k, n, allowed in ((2, 20, COVERAGE), (5, 20, (0.96, 0.995)))
    ),
    *(
        Case(
            f"{'Friedman' if k > 2 else 'Wilcoxon'}, {k} arms on {n} items",
            "agreement",
            partial(_rejects, n_arms=k, n_items=n),
            2_000,
            allowed,
            note="ten items of few points: errs on the safe side" if k == 2 and n == 10 else "",
            tier="bench",
        )
        for k, n, allowed in (
            (2, 10, (0.0, 0.03)),
            (2, 60, TYPE_I),
            (3, 10, TYPE_I),
            (3, 30, TYPE_I),
            (5, 30, TYPE_I),
        )
    ),
]
