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
from cbtqa.ratings.behaviour import order_effect, rater_effects, repeat_agreement
from cbtqa.ratings.scores import Mark, Scale, compare_systems, fit_systems, score_systems
from cbtqa.ratings.study import StudyFolder
from tests.coverage.cases import COVERAGE, TYPE_I, Case, Generator

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
                        Rating.model_construct(
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
        return found

    @property
    def raters(self) -> list[str]:
        return [f"R{number}" for number in range(self.n_raters)]


def marks_of(ratings: list[Rating]) -> list[Mark]:
    return [Mark(one, one.criterion, float(one.value or 0), None) for one in ratings]


def _mean(rng: Generator, design: Design) -> bool | None:
    marks = marks_of(design.ratings(rng))
    score = score_systems(POINTS, marks, ["A"], fit_systems(POINTS, marks))[0]
    return (
        None if score.low is None or score.high is None else score.low <= design.mean <= score.high
    )


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


def _drift(rng: Generator, design: Design) -> bool | None:
    rho = order_effect(POINTS, marks_of(design.ratings(rng)), design.raters).rho
    return None if rho.low is None or rho.high is None else rho.low <= 0 <= rho.high


def _strictness(rng: Generator, design: Design) -> bool | None:
    """Of a rater no stricter than the others."""
    found = rater_effects(POINTS, marks_of(design.ratings(rng)), design.raters)[0]
    low, high = found.severity_low, found.severity_high
    return None if low is None or high is None else low <= 0 <= high


def _steadiness(rng: Generator, design: Design) -> bool | None:
    """Share of repeats rated alike: raters are alike here, so the truth is a large study's."""
    found = repeat_agreement(POINTS, marks_of(design.ratings(rng)), design.raters)
    share = found.coefficients[0]
    return None if share.low is None or share.high is None else share.low <= ALIKE <= share.high


def _flags(rng: Generator, design: Design) -> bool:
    """Whether anything stands out in sound raters."""
    folder = SimpleNamespace(study=SimpleNamespace(raters=design.raters), items={})
    checks = check_raters(cast("StudyFolder", cast(Any, folder)), design.ratings(rng))
    return any(one.is_flagged for one in checks)


STUDY = Design()
UNEQUAL = Design(n_questions=30, by_system=0.2, is_kept=lambda s, q, r: (q + r) % 5 < 2)
STOPPED = Design(by_system=0.2, is_kept=lambda s, q, r: r > 0 or q < 5)
STRICT_ON_ONE = Design(by_system=0.2, is_kept=lambda s, q, r: r > 0 or s == 0)
WIDE = (0.92, 1.0)

CASES = [
    *(
        Case(f"mean, {name}", "rate", partial(_mean, design=design), 400, allowed, note=note)
        for name, design, allowed, note in (
            ("5 raters of severity SD .4", Design(n_systems=1), COVERAGE, ""),
            (
                "10 raters, 5 questions",
                Design(n_systems=1, n_raters=10, n_questions=5),
                (0.92, 0.99),
                "",
            ),
            (
                "3 raters, 10 questions",
                Design(n_systems=1, n_raters=3, n_questions=10),
                (0.91, 0.99),
                "two degrees of freedom between raters",
            ),
            ("2 raters", Design(n_systems=1, n_raters=2), WIDE, "one degree of freedom: wide"),
            (
                "3 raters near the ceiling",
                Design(n_systems=1, n_raters=3, middle=2.2),
                WIDE,
                "few values can occur: the interval errs on the wide side",
            ),
            ("2 of 5 raters each question", UNEQUAL, COVERAGE, ""),
            ("5 raters, one stops early", STOPPED, COVERAGE, ""),
        )
    ),
    *(
        Case(
            f"no difference, {name}",
            "rate",
            partial(_difference, design=design),
            400,
            allowed,
            note=note,
        )
        for name, design, allowed, note in (
            ("5 raters, rater by system SD .2", Design(n_questions=30, by_system=0.2), TYPE_I, ""),
            (
                "the same, 3 raters, 10 questions",
                Design(n_questions=10, n_raters=3, by_system=0.2),
                (0.0, 0.07),
                "few raters: errs on the safe side",
            ),
            (
                "10 raters, 5 questions",
                Design(n_questions=5, n_raters=10, by_system=0.2),
                (0.02, 0.08),
                "",
            ),
            (
                "raters who do not lean",
                Design(),
                (0.01, 0.07),
                "errs on the safe side where raters do not differ",
            ),
            ("2 of 5 raters each question", UNEQUAL, TYPE_I, ""),
            ("one rater rated one system alone", STRICT_ON_ONE, (0.02, 0.07), ""),
            (
                "near the ceiling",
                Design(middle=2.2, by_system=0.2),
                (0.0, 0.07),
                "few values can occur",
            ),
        )
    ),
]
