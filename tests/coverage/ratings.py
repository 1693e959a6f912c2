"""Rating studies by people: means, differences, the omnibus test, strictness, drift, signs of
carelessness. The scale is 0 to 2 and its points are rounded from a latent rating."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from cbtqa.ratings.answers import Rating
from cbtqa.ratings.attention import check_raters
from cbtqa.ratings.behaviour import order_effect, rater_effects
from cbtqa.ratings.scores import Mark, Scale, compare_systems, fit_systems, score_systems
from cbtqa.ratings.study import StudyFolder
from tests.coverage.cases import COVERAGE, TYPE_I, Case, Generator, Shown, Tier, shown

POINTS = Scale("relevance", "ordinal", (0, 1, 2), (0, 2))
SYSTEMS = ("A", "B", "C", "D")
ITEM, REST = 0.3, 0.5


@dataclass(frozen=True)
class Design:
    """One kind of study; standard deviations in points of the latent scale."""

    n_questions: int = 20
    n_raters: int = 5
    n_systems: int = 2
    severity: float = 0.4
    by_system: float = 0.0
    """Of a rater's leaning towards a system."""
    question: float = 0.2
    middle: float = 1.0
    n_criteria: int = 1
    n_repeats: int = 0
    n_practice: int = 0
    is_kept: Callable[[int, int, int], bool] = lambda system, question, rater: True

    @property
    def mean(self) -> float:
        """What the mean would be over all questions and raters."""
        spread = math.hypot(self.severity, self.by_system, self.question, ITEM, REST)
        return sum(
            0.5 * math.erfc((edge - self.middle) / spread / math.sqrt(2)) for edge in (0.5, 1.5)
        )

    def ratings(self, rng: Generator) -> list[Rating]:
        """Plain objects with the fields of `Rating`, which are quicker made."""
        shape = (self.n_systems, self.n_questions, self.n_raters)
        fixed = self.middle + rng.normal(0, self.question, (1, self.n_questions, 1))
        fixed = fixed + rng.normal(0, self.severity, (1, 1, self.n_raters))
        fixed = fixed + rng.normal(0, self.by_system, (self.n_systems, 1, self.n_raters))
        fixed = fixed + rng.normal(0, ITEM, (*shape[:2], 1))
        orders = [rng.permutation(shape[0] * shape[1]) for _ in range(self.n_raters)]
        found = []
        for criterion in range(self.n_criteria):
            for repeat in range(2 if self.n_repeats else 1):
                given = np.clip(np.rint(fixed + rng.normal(0, REST, shape)), 0, 2)
                for place in np.ndindex(*shape):
                    system, question, rater = place
                    if not self.is_kept(*place) or (repeat and question >= self.n_repeats):
                        continue
                    found.append(
                        SimpleNamespace(
                            item_id=f"{system}-{question}",
                            question_id=f"q{question}",
                            system=SYSTEMS[system],
                            rater=f"R{rater}",
                            criterion=POINTS.id if not criterion else f"other{criterion}",
                            value=int(given[place]),
                            low=0,
                            high=2,
                            order=1 + int(orders[rater][system * shape[1] + question]),
                            repeat=repeat,
                            phase=(
                                "calibration"
                                if question < self.n_practice and not system
                                else "main"
                            ),
                            seconds=None,
                        )
                    )
        return cast("list[Rating]", found)

    @property
    def raters(self) -> list[str]:
        return [f"R{number}" for number in range(self.n_raters)]


def marks_of(ratings: list[Rating]) -> list[Mark]:
    return [Mark(one, one.criterion, float(one.value or 0), None) for one in ratings]


def _mean(rng: Generator, design: Design) -> Shown | None:
    marks = marks_of(design.ratings(rng))
    score = score_systems(POINTS, marks, ["A"], fit_systems(POINTS, marks))[0]
    return shown(score.mean, score.low, score.high, design.mean)


def _difference(rng: Generator, design: Design) -> bool | None:
    """Whether two systems that do not differ are told apart."""
    marks = marks_of(design.ratings(rng))
    found = compare_systems(POINTS, marks, SYSTEMS[:2], fit_systems(POINTS, marks))[0][0]
    if found.test.p is None or found.low is None or found.high is None:
        return None
    assert (found.test.p < 0.05) == (not found.low <= 0 <= found.high)
    return found.test.p < 0.05


def _omnibus(rng: Generator, design: Design) -> bool | None:
    marks = marks_of(design.ratings(rng))
    systems = SYSTEMS[: design.n_systems]
    found = compare_systems(POINTS, marks, systems, fit_systems(POINTS, marks))[1][0].test
    return None if found.p is None else found.p < 0.05


def _drift(rng: Generator, design: Design) -> Shown | None:
    rho = order_effect(POINTS, marks_of(design.ratings(rng)), design.raters).rho
    return shown(rho.value, rho.low, rho.high, 0.0)


def _strictness(rng: Generator, design: Design) -> Shown | None:
    """Of a rater no stricter than the others."""
    found = rater_effects(POINTS, marks_of(design.ratings(rng)), design.raters)[0]
    return shown(found.severity, found.severity_low, found.severity_high, 0.0)


def _flags(rng: Generator, design: Design) -> bool:
    """Whether anything stands out in sound raters."""
    folder = SimpleNamespace(study=SimpleNamespace(raters=design.raters), items={})
    checks = check_raters(cast("StudyFolder", cast(Any, folder)), design.ratings(rng))
    return any(one.is_flagged for one in checks)


LEANING = 0.2
UNEQUAL = Design(n_questions=30, by_system=LEANING, is_kept=lambda s, q, r: (q + r) % 5 < 2)
STOPPED = Design(by_system=LEANING, is_kept=lambda s, q, r: r > 0 or q < 5)
ONE_SYSTEM = Design(by_system=LEANING, is_kept=lambda s, q, r: r > 0 or s == 0)
Told = tuple[tuple[float, float], float, str]
"""What is allowed, the greatest width, and why it is not nominal."""
NOMINAL: Told = (COVERAGE, math.inf, "")
FEW_RATERS: Told = ((0.95, 1.0), 2.2, "two or three raters: errs on the wide side")
AT_END: Told = ((0.93, 1.0), 2.0, "nearly all ratings at one end: errs on the wide side")
LEVEL: Told = (TYPE_I, math.inf, "")
SAFE: Told = ((0.005, 0.06), math.inf, "few raters, or none who differ: errs on the safe side")

MEANS: list[tuple[str, Design, Told, Tier]] = [
    ("5 raters of severity SD .4", Design(n_systems=1), NOMINAL, "suite"),
    ("10 raters, 5 questions", Design(5, 10, 1), NOMINAL, "suite"),
    ("3 raters, 10 questions", Design(10, 3, 1), FEW_RATERS, "suite"),
    ("2 raters, 20 questions", Design(20, 2, 1), FEW_RATERS, "suite"),
    ("3 raters near the ceiling", Design(20, 3, 1, middle=2.2), AT_END, "bench"),
    ("10 raters near the ceiling", Design(20, 10, 1, middle=2.5), NOMINAL, "suite"),
    ("2 of 5 raters each question", UNEQUAL, NOMINAL, "suite"),
    ("5 raters, one stops early", STOPPED, NOMINAL, "suite"),
]
ALIKE: list[tuple[str, Design, Told, Tier]] = [
    ("5 raters, rater by system SD .2", Design(30, by_system=LEANING), LEVEL, "suite"),
    ("3 raters, 10 questions, SD .2", Design(10, 3, by_system=LEANING), SAFE, "suite"),
    ("10 raters, 5 questions, SD .2", Design(5, 10, by_system=LEANING), LEVEL, "suite"),
    ("5 raters who lean to no system", Design(), SAFE, "bench"),
    ("2 of 5 raters each question", UNEQUAL, LEVEL, "suite"),
    ("one rater rated one system alone", ONE_SYSTEM, LEVEL, "bench"),
    ("near the ceiling", Design(middle=2.2, by_system=LEANING), SAFE, "bench"),
]
SOUND = Design(20, 5, n_criteria=3, n_repeats=5, n_practice=4)
FLAGS = ((0.0, 0.05), math.inf, "a flag in at most so many sound studies")

CASES = [
    *(
        Case(
            f"mean, {name}",
            "rate",
            partial(_mean, design=design),
            600,
            allowed,
            widest=widest,
            note=note,
            tier=tier,
        )
        for name, design, (allowed, widest, note), tier in MEANS
    ),
    *(
        Case(
            f"no difference, {name}",
            "rate",
            partial(_difference, design=design),
            600,
            allowed,
            note=note,
            tier=tier,
        )
        for name, design, (allowed, _, note), tier in ALIKE
    ),
    Case(
        "4 systems that do not differ",
        "rate",
        partial(_omnibus, design=Design(n_systems=4, by_system=LEANING)),
        400,
        SAFE[0],
        note=SAFE[2],
        tier="bench",
    ),
    Case(
        "no drift, 5 raters", "rate", partial(_drift, design=Design(6)), 400, COVERAGE, tier="bench"
    ),
    Case(
        "strictness of one among 5 raters",
        "rate",
        partial(_strictness, design=Design(severity=0.0)),
        1_000,
        COVERAGE,
        tier="bench",
    ),
    *(
        Case(
            f"signs of carelessness in 5 sound raters{name}",
            "rate",
            partial(_flags, design=design),
            200,
            FLAGS[0],
            note=FLAGS[2],
            tier="bench",
        )
        for name, design in (("", SOUND), (" near the ceiling", replace(SOUND, middle=2.4)))
    ),
]
